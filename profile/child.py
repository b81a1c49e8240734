"""Run a child process that writes down what it measures, step by step, and say in words how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadPlan, RuntimeAbsent
from .memory_limit import lacks_memory

REPLY = "reply.json"

MODULE_FLAGS = ("-P", "-m") if sys.version_info >= (3, 11) else ("-m",)
"""Start a module by its name; where Python knows `-P`, nothing in the current folder can take its place."""


def write_reply(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write a child's reply; the file is whole at every moment, since the child may be killed at any."""
    beside = folder / f"{REPLY}.new"
    beside.write_text(json.dumps(entries), encoding="utf-8")
    beside.replace(folder / REPLY)


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        reply: what it wrote down before.
        failed: why it ended early, or None.
        fits: whether memory was enough; None where it ended for another reason, or for one that it did not tell.
    """

    reply: dict[str, Any]
    failed: str | None
    fits: bool | None


def run_to_end(
    command: Sequence[str], folder: Path, timeout_s: float, started: Callable[[int], object] = lambda pid: None
) -> Ended:
    """Run a child that writes `reply.json` into `folder`.

    Args:
        command: with its arguments.
        folder: where it replies.
        timeout_s: seconds after which it is killed.
        started: called with its process number.

    Raises:
        BadPlan: the child reports bad input (`RuntimeAbsent` included).
    """
    try:
        code, stderr = _run(command, timeout_s, started)
        failed, lack = death(code, stderr), died_of_memory(code, stderr)
    except subprocess.TimeoutExpired:
        failed, lack = f"the child process did not end within {timeout_s:g} s", False
    except OSError as fault:
        failed, lack = f"the child process could not be started: {fault}", False
    reply = _reply(folder / REPLY)
    if "refused" in reply:
        raise (RuntimeAbsent if reply.get("absent") else BadPlan)(reply["refused"])
    failed = reply.get("failed") or failed
    return Ended(reply, failed, True if failed is None else False if lack or reply.get("fits") is False else None)


def death(code: int, stderr: str) -> str | None:
    """Say in words how a child process ended, or None for a good end."""
    if code == 0:
        return None
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lack = next((line for line in lines if lacks_memory(line)), None)
    if code > 0:
        return f"the child process ended with code {code}: {lack or (lines or ['it wrote no error'])[-1]}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", most likely because memory ran out" if name == "SIGKILL" else f": {lack}" if lack else ""
    return f"the child process was killed by {name}{hint}"


def died_of_memory(code: int, stderr: str) -> bool:
    """Tell whether a child process ended for lack of memory: it said so, or the system killed it outright."""
    return code != 0 and (code == -9 or lacks_memory(stderr))


def _run(command: Sequence[str], timeout_s: float, started: Callable[[int], object]) -> tuple[int, str]:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        started(child.pid)
        try:
            _, stderr = child.communicate(timeout=timeout_s)
        except BaseException:
            child.kill()
            raise
        return child.returncode, stderr


def _reply(path: Path) -> dict[str, Any]:
    """Read what the child left; a child that dies while it writes leaves its last whole reply."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
