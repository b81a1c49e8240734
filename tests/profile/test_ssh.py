"""What is checked before a connection, what ssh's errors mean, and what is sent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipworthy.profile import remote_pack
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.remote import compare_on, measure_on
from shipworthy.profile.remote_pack import OLDEST, needed
from shipworthy.profile.ssh import Place, not_reached, place, ssh_command

URL = "ssh://pi@edge.local"
FOLDER = Path(remote_pack.__file__).parent

NEWER = {
    (
        3,
        11,
    ): "Self LiteralString Never assert_never Required NotRequired Unpack TypeVarTuple StrEnum ReprEnum file_digest "
    "tomllib UTC chdir TaskGroup ExceptionGroup BaseExceptionGroup add_note exc_info cbrt exp2",
    (3, 12): "override batched TypeAliasType sumprod",
    (3, 13): "PythonFinalizationError ReadOnly TypeIs",
}
"""Names of the standard library by the Python that brought them."""


@pytest.mark.parametrize(
    "url",
    [
        "http://pi@edge",
        "edge",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://-l@edge",
        "ssh://pi:secret@edge",
        "ssh://pi@edge:0",
        "ssh://pi@edge:70000",
        "ssh://pi@edge/folder",
        "ssh://pi@edge;reboot",
        "ssh://pi@$(reboot)",
        "ssh://pi@edge\n",
    ],
)
def test_a_bad_url_is_refused(url: str, tmp_path: Path) -> None:
    """What could be an option, a command or a secret is no address."""
    (tmp_path / "m.onnx").touch()
    with pytest.raises(BadPlan, match=re.escape(f"{url!r}: wanted ssh://user@host or ssh://user@host:port")):
        measure_on(url, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("ssh://edge", Place("edge")),
        ("ssh://pi@edge.local", Place("edge.local", "pi")),
        ("ssh://pi@10.0.0.7:2222", Place("10.0.0.7", "pi", 2222)),
        ("ssh://pi@[fe80::1%eth0]:22", Place("fe80::1%eth0", "pi", 22)),
    ],
)
def test_a_url_is_read_and_written(url: str, wanted: Place) -> None:
    """A place reads back from what it writes."""
    assert place(url) == wanted
    assert str(wanted) == url


def test_the_call_of_ssh_asks_nothing_and_checks_the_host() -> None:
    """Our settings come before the user's, of which ssh then ignores the same ones; the host can be no option."""
    words = ssh_command(Place("edge", "pi", 2222), "true", 1.2, ("-o", "StrictHostKeyChecking=no"))
    assert words.index("StrictHostKeyChecking=yes") < words.index("StrictHostKeyChecking=no")
    assert {"BatchMode=yes", "ConnectTimeout=2", "ServerAliveInterval=5", "ServerAliveCountMax=3"} < set(words)
    assert words[-3:] == ["--", "edge", "true"]


def test_without_ssh_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without OpenSSH's client is told so."""
    (tmp_path / "m.onnx").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeAbsent, match=re.escape(f"{URL}: ssh is not installed here; install OpenSSH's client")):
        measure_on(URL, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("ssh: connect to host edge port 22: No route to host", ProfileError, "it does not answer"),
        ("ssh: connect to host edge port 22: Network is unreachable", ProfileError, "it does not answer"),
        ("ssh: connect to host edge port 22: Operation timed out", ProfileError, "it does not answer"),
        ("Received disconnect: 2: Too many authentication failures", BadPlan, "it accepts none of the keys"),
        ("Can't open user config file x: No such file", BadPlan, "ssh refuses its options"),
        ("kex_exchange_identification: Connection reset", ProfileError, "ssh could not connect: kex_exchange"),
        ("", ProfileError, "ssh could not connect: it wrote no error"),
    ],
)
def test_what_ssh_says_is_explained(said: str, kind: type[ProfileError], words: str) -> None:
    """Errors that cannot be made on the loopback address are told apart by ssh's words, which are kept."""
    fault = not_reached(Place("edge"), 255, f"{said}\r\n")
    assert type(fault) is kind
    assert words in str(fault)
    assert said in str(fault)


def test_what_cannot_be_measured_is_refused_before_a_connection(tmp_path: Path) -> None:
    """Targets, runtimes, inputs and settings are checked here: nothing listens at this address."""
    model = tmp_path / "m.onnx"
    model.touch()
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(remote_pack.MOST_BYTES + 1)  # a hole, not bytes
    strings = {"x": np.array(["a", None])}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (len, {}, "only a file can be copied to another machine, wanted a path"),
        (tmp_path / "absent.onnx", {}, "absent.onnx: no such file; wanted a model file"),
        (large, {}, f"large.onnx: {remote_pack.MOST_BYTES + 1} bytes are to be copied, wanted at most"),
        (model, {"runtime": "ort"}, "runtime 'ort' is unknown"),
        (model, {"runtime": "torch"}, "runtime torch takes no file that could be copied"),
        (model, {"inputs": [1]}, "got inputs as a list, wanted a dict of numpy arrays"),
        (model, {"inputs": {"x": [1]}}, "input 'x': got a list, wanted a numpy array of numbers"),
        (model, {"inputs": strings}, "input 'x': got a array of object, wanted a numpy array of numbers"),
        (model, {"timeout_s": 0}, "timeout_s: got 0, wanted a number of seconds above 0"),
        (model, {"connect_timeout_s": -1}, "connect_timeout_s: got -1, wanted a number of seconds above 0"),
        (model, {"python": "-c"}, "python: got '-c', wanted the name or path of an interpreter there"),
    ]
    for target, settings, words in cases:
        with pytest.raises(BadPlan, match=re.escape(words)):
            measure_on("ssh://127.0.0.1:1", target, **settings)
    with pytest.raises(BadPlan, match="no such file"):
        compare_on("ssh://127.0.0.1:1", model, tmp_path / "absent.onnx")


def test_only_what_is_needed_is_sent() -> None:
    """The runner holds what measuring imports, inside functions too, and neither reports nor this end of the line."""
    sent = set(needed())
    assert {"remote_main", "remote_guard", "measure", "ort_runner", "memory_child", "plan", "errors"} <= sent
    assert not {"remote", "remote_pack", "remote_link", "ssh", "histogram", "available", "compare"} & sent


@pytest.mark.parametrize("name", needed())
def test_what_is_sent_runs_on_the_oldest_python(name: str) -> None:
    """What runs there uses no syntax and no name of the standard library that came after `OLDEST`."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"), feature_version=OLDEST)
    newer = {word for version, words in NEWER.items() if version > OLDEST for word in words.split()}
    assert newer & set(run_time_names(tree)) == set()


def run_time_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module imports or takes from other modules when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.Attribute):
            yield node.attr
        yield from run_time_names(node)
