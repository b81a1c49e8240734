"""Run the child process of a build with limits of time and memory, and say in words how it ended."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.errors import ToolFailed

_TICK_S = 0.02
_COMMAND = (sys.executable, "-P", "-m", "shipworthy.export.engine_child")


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes of resident memory after which the child is ended; None for no limit of memory."""

    timeout_s: float
    memory_bytes: int | None = None


@dataclass
class _Watch:
    """A child that is watched; `ended` says why it was killed by us."""

    child: subprocess.Popen[str]
    limits: Limits
    ended: str = ""
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Look until the child is gone."""
        while self.child.poll() is None:
            self.ended = self._over()
            if self.ended:
                self.child.kill()
                return
            time.sleep(_TICK_S)

    def _over(self) -> str:
        if time.monotonic() - self.began > self.limits.timeout_s:
            return f"took over {self.limits.timeout_s:g} s and was ended; give it more time"
        most = self.limits.memory_bytes
        held = _resident(self.child.pid) if most is not None else 0
        if most is not None and held > most:
            return (
                f"held {held / 1e9:.2f} GB of memory, over the limit of {most / 1e9:g} GB, and was ended; give it more"
            )
        return ""


def run_job(job: Mapping[str, Any], folder: Path, limits: Limits, report: Callable[[int], object]) -> dict[str, Any]:
    """Run one job in a child process and return its last line.

    Args:
        job: for `engine_child`.
        folder: for the job and what libraries print.
        limits: of time and memory.
        report: called with each step of progress.

    Raises:
        ToolFailed: the child broke a limit, crashed, was killed or said nothing.
    """
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    printed = folder / "stderr"
    with (folder / "job.json").open() as given, printed.open("w") as stderr:
        child = subprocess.Popen(_COMMAND, stdin=given, stdout=subprocess.PIPE, stderr=stderr, text=True)
        with child:
            watch = _Watch(child, limits)
            watcher = threading.Thread(target=watch.run, daemon=True)
            watcher.start()
            try:
                last = _listen(child, report)
            except BaseException:
                child.kill()
                raise
            code = child.wait()
            watcher.join()
    if last is not None:
        return last
    raise ToolFailed(f"the engine builder {watch.ended or death(code, printed.read_text(errors='replace'))}")


def _listen(child: subprocess.Popen[str], report: Callable[[int], object]) -> dict[str, Any] | None:
    """Pass progress on until the child has said its last; None where it did not get so far."""
    last = None
    for line in child.stdout or ():
        try:
            said: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # cut off when it was killed
            continue
        if "done" in said:
            report(said["done"])
        else:
            last = said
    return last


def death(code: int, stderr: str) -> str:
    """Say in words how a child ended that gave no answer."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    words = lines[-1] if lines else "it said nothing"
    if code >= 0:
        return f"died (exit {code}): {words}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "most likely because memory ran out" if name == "SIGKILL" else words
    return f"was killed by {name}: {hint}"


def _resident(pid: int) -> int:
    psutil = importlib.import_module("psutil")
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0
