"""Run a command line: each inference is one process, from its start to its end."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any, final

from .errors import BadPlan, ProfileError
from .opening import closed, refuse_cuda_graph
from .plan import Plan

if TYPE_CHECKING:
    from typing import Self


@final
class CommandRunner:
    """Starts a command and waits for its end. Its output is discarded; it inherits the environment and the cores.

    A command that never ends keeps the measurement from ending.

    Raises:
        BadPlan: the target is no command line, its program is not there, or inputs were given.
    """

    runtime = "command"
    file = None
    sha256 = None
    inputs = "given"

    def __init__(self, target: Any, plan: Plan, inputs: Any = None) -> None:
        words = command_words(target)
        refuse_cuda_graph(plan, self.runtime)
        if inputs is not None:
            raise BadPlan(f"{shlex.join(words)}: a command takes no inputs; name them in its command line")
        self.name, self.plan = shlex.join(words), plan
        # A file, since a pipe would be read until every process that inherited it has ended.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the context ends
        self.run: Callable[[], None] = partial(_run, words, self._errors)
        self.details: dict[str, Any] = {
            "command": words,
            "includes": "starting the process and waiting for its end",
            "threads": "as the command chooses",
            "transfers": "as the command does them",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._errors.close()
        self.run = partial(closed, self.name)


def command_words(target: Any) -> list[str]:
    """Split a command line into its words; a list of words is taken as it is.

    Raises:
        BadPlan: it is neither a string nor a list of strings, it is empty or has an open quote, or there is no such
            program.
    """
    words = _words(target)
    if not words:
        raise BadPlan(f"{target!r}: runtime command got an empty command line, wanted a program and its arguments")
    if shutil.which(words[0]) is None:
        raise BadPlan(f"{words[0]}: no such program; wanted one on the PATH, or a path to an executable file")
    return words


def _words(target: Any) -> list[str]:
    if isinstance(target, os.PathLike):
        return [os.fspath(target)]
    if isinstance(target, str):
        try:
            return shlex.split(target)
        except ValueError as fault:
            raise BadPlan(f"{target}: the command line cannot be split ({fault}); close the quote") from fault
    if not isinstance(target, Sequence) or not all(isinstance(word, str) for word in target):
        raise BadPlan(f"{target!r}: runtime command takes a command line, or a list of its words")
    return list(target)


def _run(words: list[str], errors: IO[bytes]) -> None:
    errors.seek(0)
    errors.truncate()
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, check=False)
    except OSError as fault:
        raise ProfileError(f"{words[0]}: it cannot be started: {fault}") from fault
    if done.returncode:
        how = (
            f"ended with code {done.returncode}" if done.returncode > 0 else f"was killed by signal {-done.returncode}"
        )
        raise ProfileError(f"{words[0]}: it {how}: {_last_line(errors)}")


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no error")
