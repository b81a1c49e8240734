"""Run a torch module eagerly. Imports torch only when one is opened."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from .callable_runner import bind
from .errors import BadPlan, RuntimeAbsent
from .plan import Plan


@final
class TorchRunner:
    """Calls a module under `inference_mode` with `plan.threads` threads; waits for the GPU where the module is on one.

    The thread count is the process's; the previous one comes back when the context ends. The GPU path has not been
    run on a GPU yet.

    Raises:
        RuntimeAbsent: torch is not installed.
        BadPlan: the target is not a module, is in training mode, or has no inputs.
    """

    runtime = "torch"
    file = None
    sha256 = None
    inputs = "given"

    def __init__(self, target: Any, plan: Plan, inputs: Mapping[str, Any] | Sequence[Any] | None = None) -> None:
        self._torch = _import_torch()
        self.name = type(target).__name__
        _check(self._torch, target, inputs)
        self.plan = plan
        self._call = bind(target, inputs)
        self._on_gpu = any(parameter.is_cuda for parameter in target.parameters())
        self._threads_before = self._torch.get_num_threads()
        self._torch.set_num_threads(plan.threads)
        self.details: dict[str, Any] = {"device": "cuda" if self._on_gpu else "cpu", "mode": "eager, inference_mode"}

    def run(self) -> None:
        """Do one inference."""
        with self._torch.inference_mode():
            self._call()
        if self._on_gpu:
            self._torch.cuda.synchronize()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._torch.set_num_threads(self._threads_before)


def _import_torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as fault:
        raise RuntimeAbsent("runtime torch: torch is not installed; pip install torch") from fault


def _check(torch: Any, target: Any, inputs: object) -> None:
    if not isinstance(target, torch.nn.Module):
        raise BadPlan(f"{target!r}: runtime torch takes a torch.nn.Module; use ort-cpu for a file, else callable")
    if not isinstance(inputs, Mapping | Sequence) or not inputs:
        raise BadPlan(f"{type(target).__name__}: wanted inputs: a tuple of tensors, or a dict by argument name")
    # Exported graphs always say that they train; their mode is part of their operators.
    if target.training and not isinstance(target, torch.fx.GraphModule):
        raise BadPlan(f"{type(target).__name__}: in training mode a run would change it; call .eval() first")
