"""What runs first on the other machine: takes the files, starts the measuring process and ends it when the line is cut.

Its text is sent to `python -c` there: it imports nothing but the standard library, and needs no other file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_SPARE_BYTES = 1 << 18  # for what the runtime itself writes


class Refused(Exception):
    """Why nothing is measured, with the name of the error that it is here and there."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main(frame: str, folder: Path, limit_s: int) -> None:
    """Take the files on standard input and measure; answer in lines that begin with `frame`.

    The process ends after `limit_s` seconds at the latest, even if the other end is silent and never hangs up.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _end)
    signal.alarm(limit_s)
    source = sys.stdin.buffer
    try:
        files = json.loads(source.readline() or "[]")
        _check(sum(size for _, size, _ in files), folder)
        for name, size, sha256 in files:
            _take(source, size, sha256, folder, name)
        say(frame, "copied", None)
        _measure(frame, source, folder)
    except Refused as fault:
        say(frame, "refused", [fault.kind, str(fault)])


def say(frame: str, kind: str, what: Any) -> None:
    """Write one line of the answer."""
    sys.stdout.write(f"{frame} {kind} {json.dumps(what)}\n")
    sys.stdout.flush()


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _check(size: int, folder: Path) -> None:
    """Refuse before the files come: a machine without numpy, and a disk without room."""
    if importlib.util.find_spec("numpy") is None:
        raise Refused("RuntimeAbsent", f"numpy is not installed for {sys.executable}; pip install numpy onnxruntime")
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE_BYTES:
        raise Refused("ProfileError", _full(folder, f"{free} bytes are free, {size + _SPARE_BYTES} are wanted"))


def _full(folder: Path, why: str) -> str:
    return f"no room in {folder.parent}: {why}; make room there, or let TMPDIR name another disk"


def _take(source: BinaryIO, size: int, sha256: str, folder: Path, name: str) -> None:
    path, found = folder / name, hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in _chunks(source, size):
                found.update(chunk)
                file.write(chunk)
    except OSError as fault:
        # Others may have taken the room since it was looked at, and a quota is not seen before.
        full = fault.errno in (errno.ENOSPC, errno.EDQUOT)
        why = fault.strerror or str(fault)
        raise Refused("ProfileError", _full(folder, why) if full else f"{path} cannot be written: {why}") from fault
    if found.hexdigest() != sha256:
        raise Refused("ProfileError", f"{Path(name).name} was changed while it was copied; measure again")


def _chunks(source: BinaryIO, size: int) -> Any:
    left = size
    while left:
        chunk = source.read(min(_CHUNK, left))
        if not chunk:
            sys.exit(0)  # the line is cut
        left -= len(chunk)
        yield chunk


def _measure(frame: str, source: BinaryIO, folder: Path) -> None:
    """Run the measuring process; it answers by itself. Say how it died where it did."""
    runner = folder / "runner.pyz"
    path = os.pathsep.join([str(runner), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, str(runner), frame, str(folder)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A process that it starts finds the code, and leaves its own files where they are removed.
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    threading.Thread(target=_watch, args=(source, child), daemon=True).start()
    try:
        _, stderr = child.communicate()
    finally:
        _kill(child)
    if child.returncode:
        say(frame, "died", [child.returncode, stderr.decode(errors="replace")[-4000:]])


def _watch(source: BinaryIO, child: subprocess.Popen[bytes]) -> None:
    """End the measuring process when the line is cut: nobody waits for it any more."""
    # Not `source.read`: a thread that holds the stream's lock would break Python's own end.
    while os.read(source.fileno(), 1):
        pass
    _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and those that it started, which are in one group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[4]))
