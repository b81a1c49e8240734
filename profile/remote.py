"""Measure files on another machine over ssh, with the code of this folder."""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from .child import death
from .compare import Comparison, compare_measurements
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .measure import Measurement
from .plan import Plan
from .remote_link import END, Answer, Link
from .remote_pack import OLDEST, Job, Parcel, far_command, parcels, stream
from .runners import Inputs, Target, opener
from .sampling import Report
from .ssh import Place, last_line, not_reached, place, ssh_command

_WITHOUT_FILE = ("torch", "torch-compile", "callable", "command")
_SPARE_S = 300.0
_LATER_S = 60  # so much after this end has given up, the far side does too
_LONGEST_S = 1 << 30
_TICK_S = 0.25
_FAREWELL_S = 1.0
_KINDS = {kind.__name__: kind for kind in (ProfileError, BadPlan, RuntimeAbsent)}


@dataclass(frozen=True)
class _Reach:
    """How to get there and what to start."""

    where: Place
    python: str
    timeout_s: float
    connect_timeout_s: float
    ssh_options: tuple[str, ...]


def measure_on(  # noqa: PLR0913 (what `measure` takes, and how to get there)
    url: str,
    target: Target,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    *,
    memory: bool = False,
    python: str = "python3",
    timeout_s: float | None = None,
    connect_timeout_s: float = 10.0,
    ssh_options: Sequence[str] = (),
    report: Report | None = None,
) -> Measurement:
    """Measure the latency of one file on another machine.

    The file and the code that measures are copied to a new private folder there, which is removed in any case. Needed
    there: a POSIX shell, Python, numpy and the runtime. The host's key must be known and a key of the user accepted.
    Files beside it that hold an ONNX file's weights go along, and an engine's manifest.

    Args:
        url: `ssh://user@host:port`; user and port may be left out.
        target: a path here to a file that `runtime` takes.
        runtime: a key of `runners.RUNTIMES` that takes a file.
        plan: how; `Plan()` if None.
        inputs: arrays by name; random if None.
        memory: also measure peak memory in a fresh process there; see `Measurement.details["memory"]`.
        python: the interpreter there, by name or path.
        timeout_s: seconds for all of it, copying included; by default what the plan takes and 5 minutes.
        connect_timeout_s: seconds until the connection must stand.
        ssh_options: more options of ssh, such as `("-i", "key")`.
        report: called with the share done and a text, about once a second.

    Returns:
        The measurement with the environment of that machine, `file` as given, and `details["on"]`, the machine's url.

    Raises:
        RuntimeAbsent: no ssh here; no Python, too old a Python, no numpy or no runtime there.
        BadPlan: a bad url; a host that is unknown, whose key is unknown or that accepts no key of the user; a target
            or inputs that cannot be measured.
        ProfileError: the machine does not answer, has no room, hangs up, takes too long, or an inference failed.
    """
    reach = _reach(url, plan, python, timeout_s, connect_timeout_s, ssh_options)
    return _run(reach, _job((target,), runtime, plan, inputs, memory), report)[0]


def compare_on(  # noqa: PLR0913 (what `compare` takes, and how to get there)
    url: str,
    a: Target,
    b: Target,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    *,
    python: str = "python3",
    timeout_s: float | None = None,
    connect_timeout_s: float = 10.0,
    ssh_options: Sequence[str] = (),
    report: Report | None = None,
) -> Comparison:
    """Measure two files interleaved on another machine and compare them; see `measure_on` and `compare`.

    Raises:
        ProfileError: as `measure_on`.
    """
    plan = plan or Plan()
    reach = _reach(url, plan, python, timeout_s, connect_timeout_s, ssh_options)
    seen = _run(reach, _job((a, b), runtime, plan, inputs, False), report)
    return compare_measurements(seen[0], seen[1], plan.same_margin)


def _reach(
    url: str,
    plan: Plan | None,
    python: str,
    timeout_s: float | None,
    connect_timeout_s: float,
    ssh_options: Sequence[str],
) -> _Reach:
    limit = _default_timeout_s(plan or Plan()) if timeout_s is None else timeout_s
    if not 0 < limit < math.inf:
        raise BadPlan(f"timeout_s: got {timeout_s!r}, wanted a number of seconds above 0")
    if not python or python.startswith("-"):
        raise BadPlan(f"python: got {python!r}, wanted the name or path of an interpreter there, such as python3")
    return _Reach(place(url), python, limit, connect_timeout_s, tuple(ssh_options))


def _default_timeout_s(plan: Plan) -> float:
    return plan.warmup_cap_s + plan.budget_s + _SPARE_S


def _job(targets: tuple[Target, ...], runtime: str, plan: Plan | None, inputs: Inputs | None, memory: bool) -> Job:
    opener(runtime)
    if runtime in _WITHOUT_FILE:
        raise BadPlan(f"runtime {runtime} takes no file that could be copied to another machine; use ort-cpu")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise BadPlan(f"got inputs as a {type(inputs).__name__}, wanted a dict of numpy arrays by input name")
    return Job(tuple(_path(each) for each in targets), runtime, plan or Plan(), inputs, memory)


def _path(target: Target) -> Path:
    if not isinstance(target, str | os.PathLike):
        raise BadPlan(f"{target!r}: only a file can be copied to another machine, wanted a path")
    return Path(target)


def _run(reach: _Reach, job: Job, report: Report | None) -> list[Measurement]:
    """Connect, copy, measure, and bring home one measurement for each target."""
    frame = f"shipworthy-{secrets.token_hex(8)}"
    far = far_command(frame, reach.python, min(math.ceil(reach.timeout_s), _LONGEST_S) + _LATER_S)
    command = ssh_command(reach.where, far, reach.connect_timeout_s, reach.ssh_options)
    files = parcels(job)
    with Link(command, frame) as link:
        found = _Talk(reach, link, files, report or _silent).reply()
    seen = [Measurement.from_dict(each) for each in found]
    return [_brought_home(one, reach.where, link.farewell) for one in seen]


def _silent(share: float, text: str) -> None:
    """Report nothing."""


def _brought_home(seen: Measurement, where: Place, farewell: Answer | None) -> Measurement:
    note = f"whether the folder on {where} was removed is not known"
    if farewell is not None:
        note = f"{farewell.text} on {where} could not be removed" if farewell.kind == "left" else ""
    notes = seen.notes + ((note,) if note else ())
    return replace(seen, details=seen.details | {"on": str(where)}, notes=notes)


class _Talk:
    """Listening to the far side until it has answered, with what is known of it so far."""

    def __init__(self, reach: _Reach, link: Link, files: Sequence[Parcel], report: Report) -> None:
        self._reach, self._link, self._files, self._report = reach, link, files, report
        self._total = sum(parcel.size for parcel in files)
        self._doing = "connecting"

    def reply(self) -> list[Any]:
        """Wait for the measurements.

        Raises:
            ProfileError: the far side refused, died, was lost or takes too long.
        """
        deadline = time.monotonic() + self._reach.timeout_s
        while (left := deadline - time.monotonic()) > 0:
            answer = self._link.next(min(left, _TICK_S))
            if answer is not None and answer.kind == "reply":
                return list(self._read(answer))
            self._note(answer)
        raise ProfileError(f"{self._reach.where}: {self._doing} did not end within {self._reach.timeout_s:g} s in all")

    def _note(self, answer: Answer | None) -> None:
        if answer is None:
            if self._doing == "copying":
                self._report(0.0, f"copying {self._link.sent_bytes / 1e6:.1f} of {self._total / 1e6:.1f} MB")
        elif answer.kind == "here":
            self._doing = "copying"
            self._link.send(stream(self._files))
        elif answer.kind == "copied":
            self._doing = "measuring"
        elif answer.kind == "progress":
            self._report(*self._read(answer))
        else:
            self._fail(answer)

    def _read(self, answer: Answer) -> Any:
        try:
            return json.loads(answer.text)
        except ValueError as fault:
            raise ProfileError(f"{self._reach.where}: its answer is mixed with other output: {fault}") from fault

    def _fail(self, answer: Answer) -> NoReturn:
        where, python = self._reach.where, self._reach.python
        wanted = f"Python {OLDEST[0]}.{OLDEST[1]} or newer"
        match answer.kind:
            case "absent":
                raise RuntimeAbsent(
                    f"{where}: there is no {python} there; install {wanted}, or name another interpreter"
                )
            case "old":
                raise RuntimeAbsent(f"{where}: {python} is Python {answer.text}, wanted {wanted}; name another one")
            case "nofolder":
                why = last_line(self._link.ended()[1])
                raise ProfileError(f"{where}: no private folder can be made in {answer.text}: {why}")
            case "refused":
                kind, text = self._read(answer)
                raise _KINDS[kind](f"{where}: {text}")
            case "died":
                raise ProfileError(f"{where}: {death(*self._read(answer))}")
            case "gone" | "left" if self._link.next(_FAREWELL_S) != END:
                raise ProfileError(f"{where}: {self._doing} ended early and without an answer")
            case _:
                raise self._lost()

    def _lost(self) -> ProfileError:
        where, (code, text) = self._reach.where, self._link.ended()
        if self._doing == "connecting":
            return not_reached(where, code, text)
        if code != 255:
            return ProfileError(f"{where}: {self._doing} ended with code {code} and no answer: {last_line(text)}")
        why = f"the connection was lost while {self._doing}: {last_line(text)}"
        return ProfileError(f"{where}: {why}; what was copied there removes itself")
