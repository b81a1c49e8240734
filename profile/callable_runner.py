"""Run any Python callable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

from .errors import BadPlan
from .opening import refuse_cuda_graph
from .plan import Plan

if TYPE_CHECKING:
    from typing import Self


@final
class CallableRunner:
    """Calls a function with preset arguments. What it starts asynchronously it must wait for itself.

    Raises:
        BadPlan: the target is a path, or not callable, or the plan asks for a CUDA graph.
    """

    runtime = "callable"
    file = None
    sha256 = None
    inputs = "given"

    def __init__(
        self, target: Callable[..., Any], plan: Plan, inputs: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> None:
        if isinstance(target, str | os.PathLike) or not callable(target):
            raise BadPlan(f"{target!r}: runtime callable takes a Python callable; for an ONNX file use runtime ort-cpu")
        refuse_cuda_graph(plan, self.runtime)
        self.name = str(getattr(target, "__qualname__", type(target).__qualname__))
        self.plan = plan
        self.details: dict[str, Any] = {"transfers": "as the callable does them"}
        self.run: Callable[[], Any] = bind(target, inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        """Release nothing: the callable belongs to the caller."""


def bind(function: Callable[..., Any], inputs: Mapping[str, Any] | Sequence[Any] | None) -> Callable[[], Any]:
    """Return the call with its arguments in place, by name or in order."""
    if inputs is None:
        return function
    return partial(function, **inputs) if isinstance(inputs, Mapping) else partial(function, *inputs)
