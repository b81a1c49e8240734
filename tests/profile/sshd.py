"""A real sshd on the loopback address, with keys and settings of its own, and the machine behind it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

_PLACES = "/usr/sbin:/usr/local/sbin:/sbin"

_SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
PermitUserEnvironment yes
"""

_CLIENT = """\
IdentityFile {folder}/user_key
IdentitiesOnly yes
IdentityAgent none
KexAlgorithms curve25519-sha256
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
"""


@dataclass
class Server:
    """A running sshd.

    Attributes:
        folder: its keys and settings.
        far: the folder for temporary files on its side.
        python: an interpreter there that has numpy and onnxruntime.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    python: str = sys.executable

    @property
    def url(self) -> str:
        """Where it is, with the user who runs the tests."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def options(self) -> tuple[str, ...]:
        """What the client needs to trust it and to be let in."""
        return ("-F", str(self.folder / "client"))

    @property
    def far(self) -> Path:
        """Where a measurement puts its folder."""
        return self.folder / "far"

    def admit(self, *, key: str = "user_key", command: str = "", **environment: str) -> None:
        """Let in who has this key: with these variables, and with this command in place of the one asked for.

        A home folder of its own keeps what the user's shell does at its start out of the tests.
        """
        known = {"HOME": str(self.folder), "TMPDIR": str(self.far)} | environment
        words = [f'environment="{name}={value}"' for name, value in known.items()]
        words += [f'command="{command}"'] if command else []
        line = f"{','.join(words)} {(self.folder / key).with_suffix('.pub').read_text()}"
        (self.folder / "authorized_keys").write_text(line.lstrip())

    def script(self, name: str, *lines: str) -> str:
        """Write an executable shell script there; return its path."""
        path = self.folder / name
        path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        path.chmod(0o755)
        return str(path)


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Start an sshd in an empty folder and end it afterwards. Without one, skip: `.ci/run` installs it."""
    program = _sshd()
    (folder / "far").mkdir()
    for name in ("host_key", "other_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged half up; Debian's service makes it
    server = _start(program, folder)
    try:
        (folder / "client").write_text(_CLIENT.format(folder=folder))
        for name, key in (("known_hosts", "host_key"), ("changed_hosts", "other_key")):
            public = (folder / key).with_suffix(".pub").read_text()
            (folder / name).write_text(f"[127.0.0.1]:{server.port} {public}")
        server.admit()
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until something holds; tell whether it came to hold at all."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def free_port() -> int:
    """Return a port of the loopback address on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _start(program: str, folder: Path) -> Server:
    for _ in range(5):  # another process may take the port first
        port = free_port()
        (folder / "server").write_text(_SETTINGS.format(folder=folder, port=port))
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen([program, "-D", "-e", "-f", folder / "server"], stderr=log)
        until(partial(_started_or_ended, process, port))
        if process.poll() is None:
            return Server(folder, port, process)
        process.kill()
        process.wait()
    pytest.fail(f"sshd does not start: {(folder / 'server.log').read_text()}")


def _started_or_ended(process: subprocess.Popen[bytes], port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return process.poll() is not None


def _sshd() -> str:
    found = shutil.which("sshd", path=_PLACES)
    if found is not None:
        return found
    pytest.skip("there is no sshd; install openssh-server")
