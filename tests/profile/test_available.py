"""Which runtimes are usable here."""

from __future__ import annotations

import sys

import pytest

from shipworthy.profile.available import runtimes
from shipworthy.profile.devices import cuda_absent


def test_every_runtime_has_a_state_and_a_note() -> None:
    """ONNX Runtime on the CPU and torch are usable with their versions; the GPU's only where a GPU is."""
    found = {state.name: state for state in runtimes()}
    assert list(found) == ["ort-cpu", "ort-cuda", "torch", "tensorrt", "rtx"]
    assert all(state.note for state in found.values())
    assert found["ort-cpu"].usable
    assert found["torch"].usable
    assert found["ort-cuda"].usable <= (cuda_absent() is None)


def test_a_missing_package_is_a_state_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime cannot be imported, its runtimes say what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = {state.name: state for state in runtimes()}
    assert not found["ort-cpu"].usable
    assert "pip install onnxruntime" in found["ort-cpu"].note
