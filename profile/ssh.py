"""Reach another machine with OpenSSH's own client: where it is, what is called, and what its errors mean."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import BadPlan, ProfileError, RuntimeAbsent

_USER = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_HOST = r"[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]"
_URL = re.compile(rf"ssh://(?:(?P<user>{_USER})@)?(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/?")

_MEANINGS: tuple[tuple[str, type[ProfileError], str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        BadPlan,
        "its host key is not the one known here: it was set up anew, or somebody sits in between; "
        "if the new key is right, drop the old one with: ssh-keygen -R {known}",
    ),
    (
        r"No \S+ host key is known|Host key verification failed",
        BadPlan,
        "its host key is not known here; connect once by hand and compare the fingerprint ({by_hand}), "
        "or add a key that you trust (ssh-keyscan {scan} >> ~/.ssh/known_hosts)",
    ),
    (r"Could not resolve hostname", BadPlan, "no machine of this name is found; check the name, or give an address"),
    (
        r"Permission denied|Too many authentication failures|No supported authentication methods",
        BadPlan,
        "it accepts none of the keys offered; nothing can be typed here, so add a key first: ssh-copy-id {by_hand_at}",
    ),
    (r"Bad configuration option|Can't open user config file|^usage: ssh", BadPlan, "ssh refuses its options"),
    (r"Connection refused", ProfileError, "no ssh server answers at this port; is it running?"),
    (
        r"timed out|No route to host|Network is unreachable",
        ProfileError,
        "it does not answer; is it switched on and in reach?",
    ),
)


@dataclass(frozen=True)
class Place:
    """A machine that ssh can reach; user and port are ssh's own choice where they are None."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def login(self) -> str:
        """What the ssh commands take, such as `pi@edge.local`."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"ssh://{user}{host}" + ("" if self.port is None else f":{self.port}")


def place(url: str) -> Place:
    """Read `ssh://user@host:port`; user and port may be left out, an IPv6 address stands in brackets.

    Raises:
        BadPlan: anything else, such as another scheme, a password or a path.
    """
    found = _URL.fullmatch(url)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or port == 0 or (port or 0) > 65535:
        raise BadPlan(f"{url!r}: wanted ssh://user@host or ssh://user@host:port, with no password and no path")
    return Place(found["host"].strip("[]"), found["user"], port)


def ssh_command(where: Place, remote: str, connect_timeout_s: float, options: Sequence[str] = ()) -> list[str]:
    """Return the call of ssh that runs a command line there, asks nothing and checks the host's key.

    ssh keeps the first value of an option that it reads: neither `options` nor the user's configuration lowers these.

    Args:
        where: the machine.
        remote: for the user's shell there, quoted.
        connect_timeout_s: seconds until a connection must stand; whole ones, rounded up.
        options: more options of ssh, such as `("-i", "key")`.

    Raises:
        RuntimeAbsent: there is no ssh here.
        BadPlan: the timeout is not a number above 0.
    """
    program = shutil.which("ssh")
    if program is None:
        raise RuntimeAbsent(f"{where}: ssh is not installed here; install OpenSSH's client (Debian: openssh-client)")
    if not 0 < connect_timeout_s < math.inf:
        raise BadPlan(f"connect_timeout_s: got {connect_timeout_s!r}, wanted a number of seconds above 0")
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": math.ceil(connect_timeout_s),
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
        # A master connection left in the background would keep our pipes open.
        "ControlMaster": "no",
        "RemoteCommand": "none",
        "ClearAllForwardings": "yes",
        "LogLevel": "INFO",
    }
    ours = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    port = [] if where.port is None else ["-p", str(where.port)]
    user = [] if where.user is None else ["-l", where.user]
    return [program, "-T", "-a", "-x", *ours, *port, *user, *options, "--", where.host, remote]


def not_reached(where: Place, code: int, stderr: str) -> ProfileError:
    """Make an error of what ssh said before anything answered there: `BadPlan` where the user has to change something.

    Args:
        where: the machine.
        code: ssh's exit code; 255 for its own errors, else the one of the shell there.
        stderr: what it wrote.
    """
    last = last_line(stderr)
    if code != 255:
        return ProfileError(f"{where}: its login shell ended with code {code} before anything was measured: {last}")
    for pattern, kind, meaning in _MEANINGS:
        if re.search(pattern, stderr, re.MULTILINE):
            return kind(f"{where}: {meaning.format(**_words(where))} (ssh says: {_line_of(pattern, stderr)})")
    return ProfileError(f"{where}: ssh could not connect: {last}")


def last_line(text: str) -> str:
    """Return the last line that is not empty, for messages."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it wrote no error")


def _words(where: Place) -> dict[str, str]:
    port = [] if where.port is None else ["-p", str(where.port)]
    known = where.host if where.port in (None, 22) else f"[{where.host}]:{where.port}"
    at = shlex.join([*port, where.login])
    return {
        "known": shlex.quote(known),
        "by_hand": f"ssh {at}",
        "by_hand_at": at,
        "scan": shlex.join([*port, where.host]),
    }


def _line_of(pattern: str, stderr: str) -> str:
    return next((line.strip(" @\r") for line in stderr.splitlines() if re.search(pattern, line)), last_line(stderr))
