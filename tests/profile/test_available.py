"""Which runtimes are usable here."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from shipworthy.profile.available import RuntimeState, runtimes
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.runners import RUNTIMES

HAS_RTX = importlib.util.find_spec("tensorrt_rtx_bindings") is not None


def found() -> dict[str, RuntimeState]:
    """Return the states by name."""
    return {state.name: state for state in runtimes()}


def test_every_runtime_has_a_state_and_a_note() -> None:
    """All but callables and commands, which need nothing; a GPU's only where a GPU is."""
    states = found()
    assert set(states) == set(RUNTIMES) - {"callable", "command"}
    assert all(state.note for state in states.values())
    assert states["ort-cpu"].usable
    assert states["torch"].usable
    for name in ("ort-cuda", "ort-tensorrt", "tensorrt", "rtx"):
        assert states[name].usable <= (cuda_absent() is None)


def test_a_missing_package_is_a_state_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime cannot be imported, its runtimes say what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    states = found()
    assert not states["ort-cpu"].usable
    assert "pip install onnxruntime" in states["ort-cpu"].note


@pytest.mark.skipif(not HAS_RTX, reason="TensorRT for RTX is not installed")
def test_engines_can_run_where_a_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed TensorRT builds engines anywhere and runs them where the driver sees a GPU."""
    monkeypatch.setattr("shipworthy.profile.available.cuda_absent", lambda: "the driver is asleep")
    assert (found()["rtx"].usable, found()["rtx"].note.partition(" here: ")[2]) == (False, "the driver is asleep")
    monkeypatch.setattr("shipworthy.profile.available.cuda_absent", lambda: None)
    assert found()["rtx"].usable


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler torch runs and torch.compile does not; the note names the compiler that is missing."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    states = found()
    assert (states["torch"].usable, states["torch-compile"].usable) == (True, False)
    assert "the C++ compiler no-such-compiler is not there" in states["torch-compile"].note
