"""Measurements over a real ssh connection to this machine, and every way in which one can fail."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shipworthy.profile import remote
from shipworthy.profile.environment import comparison_key
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.measure import Measurement, measure
from shipworthy.profile.memory import Memory
from shipworthy.profile.plan import Plan
from shipworthy.profile.remote import compare_on, measure_on
from shipworthy.profile.remote_pack import Parcel, far_command, parcels, stream
from shipworthy.tests.profile.sshd import Server, free_port, running, until

psutil: Any = importlib.import_module("psutil")

LONG = Plan(warmup_s=0.0, warmup_cap_s=0.05, budget_s=600.0, min_rounds=500_000, max_rounds=1_000_000)
"""A plan that does not end while a test runs."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one sshd for all tests of this file."""
    with running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(machine: Server) -> Iterator[Server]:
    """Let the user in as usual; whatever a test did, nothing of it may be left there."""
    machine.admit()
    yield machine
    assert until(lambda: not any(machine.far.iterdir()))


def on(server: Server, target: Any, plan: Plan, **changes: Any) -> Measurement:
    """Measure there with the interpreter that has everything."""
    given = {"python": server.python, "ssh_options": server.options} | changes
    return measure_on(given.pop("url", server.url), target, plan=plan, **given)


@contextmanager
def refused(kind: type[ProfileError], *words: str) -> Iterator[None]:
    """Expect exactly this kind of error, with these words."""
    with pytest.raises(ProfileError) as caught:
        yield
    assert type(caught.value) is kind, caught.value
    assert [each for each in words if each not in str(caught.value)] == [], caught.value


def test_a_file_is_measured_there_and_nothing_is_left(server: Server, model: Path, quick: Plan) -> None:
    """A measurement there has the shape of one here, says where it was taken, and leaves no folder."""
    told: list[tuple[float, str]] = []
    seen = on(server, model, quick, memory=True, report=lambda share, text: told.append((share, text)))
    assert not any(server.far.iterdir())
    here = measure(model, plan=quick)
    assert set(seen.to_dict()) == set(here.to_dict())
    for name in ("name", "runtime", "file", "sha256", "plan", "inputs"):
        assert getattr(seen, name) == getattr(here, name)
    assert comparison_key(seen.environment) == comparison_key(here.environment)
    assert 10 <= len(seen.samples_ns) <= 30
    assert seen.details["on"] == server.url
    assert set(here.details) == set(seen.details) - {"on", "memory"}
    assert Memory(**seen.details["memory"]).file_bytes == model.stat().st_size
    assert seen.details["memory"]["peak_bytes"] > 1 << 20
    assert told[-1] == (1.0, "peak memory")
    assert Measurement.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_two_files_of_one_name_are_compared_there(
    server: Server, chain: Callable[[int], Path], quick: Plan, tmp_path: Path
) -> None:
    """Both run interleaved on the inputs given here, whatever their names."""
    a, b = (tmp_path / name / "model.onnx" for name in "ab")
    for path, layers in ((a, 40), (b, 1)):
        path.parent.mkdir()
        shutil.copy(chain(layers), path)
    inputs = {"x": np.ones((1, 64), np.float32)}
    found = compare_on(server.url, a, b, plan=quick, inputs=inputs, python=server.python, ssh_options=server.options)
    assert (found.a.file, found.b.file) == (str(a), str(b))
    assert (found.a.inputs, found.a.group) == ("given", found.b.group)
    assert found.ratio > 1
    assert found.b.details["on"] == server.url


def test_weights_in_a_second_file_go_along(server: Server, model: Path, quick: Plan) -> None:
    """A file whose weights lie beside it is measured; without them it would not load."""
    loaded = onnx.load(model)
    (weights,) = loaded.graph.initializer
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights), weights.name))
    onnx.save(loaded, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert model.with_name("weights.bin").stat().st_size == 64 * 64 * 4
    assert on(server, model, quick).samples_ns


def test_noise_of_a_login_shell_does_not_disturb(server: Server, model: Path, quick: Plan) -> None:
    """Greetings before the answer, even without a line's end, and the command itself are not taken for answers."""
    greeting = "echo Welcome; echo 7 updates >&2; echo $SSH_ORIGINAL_COMMAND; printf half; eval $SSH_ORIGINAL_COMMAND"
    greeting = greeting.replace("$SSH_ORIGINAL_COMMAND", r"\"$SSH_ORIGINAL_COMMAND\"")
    server.admit(command=greeting)
    slow = server.script("slow", f'sleep 0.7; exec {server.python} "$@"')
    told: list[str] = []
    seen = on(server, model, quick, python=slow, report=lambda share, text: told.append(text))
    assert seen.details["on"] == server.url
    assert re.fullmatch(r"copying 0\.\d of 0\.\d MB", told[0])


def test_a_shell_that_only_talks_is_no_answer(server: Server, model: Path, quick: Plan) -> None:
    """An account without a shell is named with what it says."""
    server.admit(command="echo This account is not available.; exit 1")
    words = f"{server.url}: its login shell ended with code 1 before anything was measured: This account is not"
    with refused(ProfileError, words):
        on(server, model, quick)


def test_a_host_key_must_be_known(server: Server, model: Path, quick: Plan) -> None:
    """An unknown and a changed key are refused, each with its remedy, whatever the user's options say."""
    lax = ("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={server.folder / 'none'}", *server.options)
    with refused(BadPlan, "its host key is not known here", f"ssh -p {server.port} ", "ssh-keyscan"):
        on(server, model, quick, ssh_options=lax)
    changed = ("-o", f"UserKnownHostsFile={server.folder / 'changed_hosts'}", *server.options)
    with refused(BadPlan, "its host key is not the one known here", f"ssh-keygen -R '[127.0.0.1]:{server.port}'"):
        on(server, model, quick, ssh_options=changed)
    assert not (server.folder / "none").exists()


def test_who_is_not_let_in_is_told(server: Server, model: Path, quick: Plan) -> None:
    """A key that is not accepted, a name that is not found, a closed port and silence are told apart."""
    user = server.url.partition("@")[0]
    with refused(BadPlan, "no machine of this name is found", "Could not resolve hostname"):
        on(server, model, quick, url=f"{user}@nowhere.invalid")
    with refused(ProfileError, "no ssh server answers at this port", "Connection refused"):
        on(server, model, quick, url=f"{user}@127.0.0.1:{free_port()}")
    with refused(BadPlan, "ssh refuses its options", "Bad configuration option"):
        on(server, model, quick, ssh_options=("-o", "Nonsense=1"))
    server.admit(key="other_key")
    with refused(BadPlan, "it accepts none of the keys offered", f"ssh-copy-id -p {server.port} ", "publickey"):
        on(server, model, quick)


def test_silence_is_not_waited_for(server: Server, model: Path, quick: Plan) -> None:
    """A port that takes the connection and says nothing ends with the connection's own timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent, refused(ProfileError, "it does not answer", "timed out"):
        on(server, model, quick, url=f"ssh://127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=0.5)


def test_what_is_missing_there_is_named(server: Server, model: Path, quick: Plan, tmp_path: Path) -> None:
    """No Python, one that is too old, no numpy and no runtime are absent, by name and machine."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')\n")
    old = f'code="import sys; sys.version_info = (3, 8, 10); $2"; shift 2; exec {server.python} -c "$code" "$@"'
    cases = {
        "no-python": "there is no no-python there; install Python 3.10 or newer",
        server.script("old", old): "is Python 3.8.10, wanted Python 3.10 or newer; name another one",
        server.script("bare", f'exec {server.python} -S "$@"'): "numpy is not installed for",
        server.script("without", f'PYTHONPATH={tmp_path} exec {server.python} "$@"'): "onnxruntime is not installed",
    }
    for python, words in cases.items():
        with refused(RuntimeAbsent, f"{server.url}: ", words):
            on(server, model, quick, python=python)


def test_what_is_wrong_with_a_file_comes_back(server: Server, tmp_path: Path, quick: Plan) -> None:
    """A file that the runtime there refuses is bad input, under the name that it has here."""
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"nothing")
    with refused(BadPlan, f"{server.url}: {corrupt}: ONNX Runtime"):
        on(server, corrupt, quick)


def test_a_crash_there_is_told(server: Server, model: Path, quick: Plan, tmp_path: Path) -> None:
    """A measuring process that is killed ends with its signal, one that fails with its last words."""
    stub = tmp_path / "onnxruntime.py"
    python = server.script("crash", f'PYTHONPATH={tmp_path} exec {server.python} "$@"')
    for code, words in (("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"), ("1 / 0", "division by zero")):
        stub.write_text(code + "\n")
        with refused(ProfileError, f"{server.url}: the child process", words):
            on(server, model, quick, python=python)


def test_an_interpreter_that_does_not_work_is_told(server: Server, model: Path, quick: Plan) -> None:
    """A program that is no Python ends without an answer, with its code and last words, or with a torn one."""
    python = server.script("broken", "echo cannot load libpython >&2; exit 127")
    with refused(ProfileError, "ended with code 127 and no answer: cannot load libpython"):
        on(server, model, quick, python=python)
    torn = server.script("torn", 'echo "$3 reply [{\\"schema\\": WARNING: low battery"')
    with refused(ProfileError, f"{server.url}: its answer is mixed with other output"):
        on(server, model, quick, python=torn)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk with these limits."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        subprocess.run(["umount", "-q", place], check=False)
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        return place

    yield mounted
    subprocess.run(["umount", "-q", place], check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("size=64k", "no room in DISK: 65536 bytes are free, "),
        ("size=8m,nr_inodes=3", "no room in DISK: No space left on device; make room there"),
        ("size=8m,nr_inodes=1", "no private folder can be made in DISK: mktemp: failed to create directory"),
    ],
)
def test_a_full_disk_there_is_told(
    limits: str, words: str, server: Server, model: Path, quick: Plan, small_disk: Callable[[str], Path]
) -> None:
    """Too little room is seen before anything is copied, room that ends later while it is; both leave nothing."""
    disk = small_disk(limits)
    server.admit(TMPDIR=str(disk))
    with refused(ProfileError, f"{server.url}: {words.replace('DISK', str(disk))}"):
        on(server, model, quick)
    assert list(disk.iterdir()) == []


def sessions(server: Server) -> list[Any]:
    """List the processes of sshd that serve a connection, the last one first."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [one for one in reversed(family) if one.name().startswith("sshd")]


def measuring(server: Server) -> list[int]:
    """List the measuring processes there, by the program that they run."""
    start = str(server.far)
    return [one.pid for one in psutil.process_iter() if any(word.startswith(start) for word in command(one)[1:2])]


def command(process: Any) -> list[str]:
    """Return a process's command line; none for one that has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_lost_connection_is_told_and_cleaned_up(server: Server, model: Path) -> None:
    """When the session dies while measuring, the error says so, and the far side ends and cleans up by itself."""

    def cut(share: float, text: str) -> None:
        assert measuring(server)
        for one in sessions(server):
            one.kill()

    with refused(ProfileError, f"{server.url}: the connection was lost while measuring", "removes itself"):
        on(server, model, LONG, report=cut)
    assert until(lambda: not any(server.far.iterdir()) and not measuring(server))


def test_an_interrupt_here_ends_the_far_side(server: Server, model: Path) -> None:
    """After an interrupt the folder is gone at once and nothing measures on."""

    def interrupt(share: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on(server, model, LONG, report=interrupt)
    assert not any(server.far.iterdir())
    assert not measuring(server)


def test_the_far_side_ends_when_this_process_dies(server: Server, model: Path) -> None:
    """A caller that is killed cannot clean up; the far side still does."""
    code = (
        "import sys; from shipworthy.profile.plan import Plan; from shipworthy.profile.remote import measure_on\n"
        f"measure_on({server.url!r}, {str(model)!r}, plan={LONG!r}, python={server.python!r},"
        f" ssh_options={server.options!r}, report=lambda share, text: print(text, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline()
        assert measuring(server)
        caller.kill()
    assert until(lambda: not any(server.far.iterdir()) and not measuring(server))


def test_what_takes_too_long_is_ended(server: Server, model: Path) -> None:
    """The timeout names itself and what was going on, and ends the far side too."""
    with refused(ProfileError, f"{server.url}: measuring did not end within 1.5 s in all"):
        on(server, model, LONG, timeout_s=1.5)
    assert until(lambda: not measuring(server))


def test_a_file_that_changes_meanwhile_is_refused(
    server: Server, model: Path, quick: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bytes are seen there by their hash, a shorter file here while it is sent."""

    def changed(**how: Any) -> Callable[[Any], list[Parcel]]:
        return lambda job: [replace(one, **how) if one.name == "0/chain1.onnx" else one for one in parcels(job)]

    for how in ({"sha256": "0" * 64}, {"size": model.stat().st_size + 1}):
        monkeypatch.setattr(remote, "parcels", changed(**how))
        with refused(ProfileError, "was changed while it was copied; measure again"):
            on(server, model, quick)


def test_a_folder_that_stays_is_noted(server: Server, model: Path, quick: Plan, tmp_path: Path) -> None:
    """If removing fails there, the measurement says so."""
    place = tmp_path / "place"
    place.mkdir()
    rm = Path(server.script("rm", "exit 1")).parent
    server.admit(TMPDIR=str(place), PATH=f"{rm}:{os.environ['PATH']}")
    seen = on(server, model, quick)
    (left,) = place.iterdir()
    assert f"{left} on {server.url} could not be removed" in seen.notes


def test_a_far_side_that_vanishes_is_told(server: Server, model: Path) -> None:
    """If what guards the measuring process is killed, nobody waits for an answer that cannot come."""

    def kill_guard(share: float, text: str) -> None:
        (one,) = measuring(server)
        parent = psutil.Process(one).parent()
        assert parent is not None
        parent.kill()

    with refused(ProfileError, f"{server.url}: measuring ended early and without an answer"):
        on(server, model, LONG, report=kill_guard)
    assert until(lambda: not measuring(server))


def test_a_far_side_that_hears_nothing_ends_by_itself(tmp_path: Path) -> None:
    """On a line that is dead without having been closed, time ends the far side, and its folder goes."""
    words, place = ["sh", "-c", far_command("mark", sys.executable, limit_s=1)], os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place) as far:
        assert far.stdin is not None
        assert far.stdout is not None
        far.stdin.write(next(stream([])))
        far.stdin.flush()
        try:
            far.wait(20)
        finally:
            far.kill()
        assert far.stdout.read().split() == [b"<mark>", b"here", b"<mark>", b"gone"]
    assert list(tmp_path.iterdir()) == []
