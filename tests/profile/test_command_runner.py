"""Command lines as inferences, with real processes."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.measure import measure
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner

PLAN = Plan()


def refused(words: str, kind: type[Exception] = BadPlan) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


def python(code: str) -> list[str]:
    """Return a command that runs this code."""
    return [sys.executable, "-S", "-c", code]


def test_each_run_is_a_process_that_has_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run returns when the process has ended; what it prints is discarded, good or bad."""
    seen = tmp_path / "seen"
    code = f"import sys; open({str(seen)!r}, 'a').write('x'); print('out'); print('err', file=sys.stderr)"
    for target in (python(code), shlex.join(python(code))):
        with open_runner(target, "command", PLAN) as runner:
            runner.run()
            runner.run()
    assert seen.read_text() == "xxxx"
    assert capfd.readouterr() == ("", "")
    assert runner.name == shlex.join(python(code))
    assert runner.details["command"] == python(code)
    assert "starting the process" in runner.details["includes"]


def test_an_executable_file_is_a_command(tmp_path: Path) -> None:
    """A path without arguments is run as it is, spaces and all; a file that the system cannot run is named."""
    good, bad = tmp_path / "a good one", tmp_path / "bad"
    good.write_text("#!/bin/sh\nexit 0\n")
    bad.write_bytes(b"\x00\x01\x02")
    for path in (good, bad):
        path.chmod(0o755)
    with open_runner(good, "command", PLAN) as runner:
        runner.run()
    with open_runner(bad, "command", PLAN) as runner, refused(f"{bad}: it cannot be started", ProfileError):
        runner.run()


def test_a_command_that_fails_gives_its_code_and_last_words(tmp_path: Path) -> None:
    """The last line of standard error is given, and that of this run, not of an earlier one."""
    flag = tmp_path / "flag"
    flag.touch()
    code = (
        f"import pathlib, sys; f = pathlib.Path({str(flag)!r}); first = f.exists(); f.unlink(missing_ok=True);"
        "sys.stderr.write('some words\\nthe last ones\\n' * first); sys.exit(3)"
    )
    with open_runner(python(code), "command", PLAN) as runner:
        with refused(f"{sys.executable}: it ended with code 3: the last ones", ProfileError):
            runner.run()
        with pytest.raises(ProfileError, match=r"it ended with code 3: it wrote no error$"):
            runner.run()


def test_a_killed_command_gives_its_signal() -> None:
    """A command that dies of a signal is an error too, with words or without."""
    with (
        open_runner(python("import os; os.kill(os.getpid(), 9)"), "command", PLAN) as runner,
        refused("it was killed by signal 9: it wrote no error", ProfileError),
    ):
        runner.run()


@pytest.mark.parametrize(
    ("target", "inputs", "words"),
    [
        ("no-such-program --fast", None, "no-such-program: no such program; wanted one on the PATH"),
        ("  ", None, "got an empty command line"),
        ([], None, "got an empty command line"),
        ("true 'open", None, "the command line cannot be split (No closing quotation); close the quote"),
        (["true", 1], None, "takes a command line, or a list of its words"),
        (len, None, "takes a command line, or a list of its words"),
        ("true", {"x": 1}, "true: a command takes no inputs; name them in its command line"),
    ],
)
def test_what_is_no_command_is_refused(target: Any, inputs: Any, words: str) -> None:
    """Before anything runs, the message says what is missing."""
    with refused(words):
        open_runner(target, "command", PLAN, inputs)


def test_a_closed_runner_says_so() -> None:
    """A run after the context has ended is an error with the remedy."""
    with open_runner("true", "command", PLAN) as runner:
        pass
    with refused("true: its runner is closed; open it again", ProfileError):
        runner.run()


def test_a_command_is_measured(quick: Plan) -> None:
    """A command goes through the same measurement as a file."""
    seen = measure("true", "command", quick)
    assert (seen.runtime, seen.name, seen.file, seen.inputs) == ("command", "true", None, "given")
    assert len(seen.samples_ns) >= quick.min_rounds
    assert min(seen.samples_ns) > 0
