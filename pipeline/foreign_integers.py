"""How much of an ONNX file of any origin runs in integers: it is run in a child process under limits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ..export.onnx_claims import memory_bytes
from ..profile.child import MODULE_FLAGS, death
from ..profile.errors import ProfileError
from ..profile.integer_share import INTEGER, WEIGHTS_ONLY, IntegerShare, integer_share
from ..profile.plan import Plan
from .input_shapes import ShapeTable

_RUNTIME = "ort-cpu"
_QUANTIZED = INTEGER | WEIGHTS_ONLY | {"QuantizeLinear", "DequantizeLinear"}
_CPU_S, _WALL_S = 60, 120


def integers_in(path: Path, nodes: Mapping[str, int], shapes: ShapeTable, batch: int) -> IntegerShare | None:
    """Return a file's share of MACs in integers; without one it says why.

    Args:
        path: an ONNX file.
        nodes: how many it has of each operator.
        shapes: whole shapes of its inputs.
        batch: that MACs are counted at.

    Returns:
        None for a file without anything in integers.
    """
    if not any(name.rpartition(".")[2] in _QUANTIZED for name in nodes):
        return None
    job = json.dumps({"path": str(path), "batch": batch, "shapes": list(shapes.items())})
    command = [sys.executable, *MODULE_FLAGS, "shipworthy.pipeline.foreign_integers"]
    try:
        child = subprocess.run(command, input=job, capture_output=True, text=True, timeout=_WALL_S, check=False)
    except subprocess.TimeoutExpired:
        return IntegerShare(_RUNTIME, absent=f"an inference takes over {_WALL_S} s")
    failed = death(child.returncode, child.stderr)
    if failed:
        return IntegerShare(_RUNTIME, absent=failed)
    return IntegerShare.from_dict(json.loads(child.stdout))


def _answer(job: str) -> IntegerShare:
    told = json.loads(job)
    plan = Plan(batch=told["batch"], shapes=told["shapes"])
    try:
        return integer_share(told["path"], _RUNTIME, plan)
    except ProfileError as fault:
        return IntegerShare(_RUNTIME, absent=str(fault).splitlines()[0])


if __name__ == "__main__":
    from ..export.onnx_child import limit

    limit(memory_bytes(), _CPU_S)
    sys.stdout.write(json.dumps(_answer(sys.stdin.read()).to_dict()))
