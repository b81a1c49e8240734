"""Open a file of `torch.export.save` as a module with inputs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadPlan, RuntimeAbsent
from .inputs import InputSpec, check_inputs, random_inputs
from .plan import Plan

_TYPES = {
    "float32": "float",
    "float64": "double",
    **{name: name for name in ("float16", "int8", "int16", "int32", "int64", "uint8", "bool")},
}


def load_program(path: Path, plan: Plan, inputs: Mapping[str, Any] | None = None) -> tuple[Any, tuple[Any, ...]]:
    """Load an exported program.

    Args:
        path: a `.pt2` file.
        plan: batch and seed.
        inputs: arrays by the names that the program gives its inputs; random if None.

    Returns:
        The module, and its inputs as tensors in order.

    Raises:
        RuntimeAbsent: torch is not installed.
        BadPlan: not such a file, inputs that are not tensors, or inputs that do not fit.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as fault:
        raise RuntimeAbsent("runtime torch: torch is not installed; pip install torch") from fault
    try:
        program = torch.export.load(str(path))
    except MemoryError:
        raise
    except Exception as fault:
        raise BadPlan(f"{path}: torch {torch.__version__} cannot load it: {fault}; wanted a .pt2 file") from fault
    specs = _specs(program, str(path))
    if inputs is None:
        arrays = random_inputs(specs, plan.batch, plan.seed, str(path))
    else:
        arrays = check_inputs(specs, inputs, plan.batch, str(path))
    return program.module(), tuple(torch.from_numpy(arrays[spec.name]) for spec in specs)


def _specs(program: Any, where: str) -> list[InputSpec]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name) if isinstance(name, str) else None
        if value is None or not hasattr(value, "shape"):
            raise BadPlan(f"{where}: input {name!r} is no tensor; export the model with tensors alone as inputs")
        kind = str(value.dtype).removeprefix("torch.")
        specs.append(InputSpec(name, f"tensor({_TYPES.get(kind, kind)})", _shape(value.shape)))
    return specs


def _shape(sizes: Any) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)
