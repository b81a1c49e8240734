"""A captured model as named tensors, in the names that its ONNX file has, and in another precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from ..models.errors import BadInput
from ..models.graph import copy_graph, get_tensor, module_path
from ..models.model import Model
from ..models.quiet import quiet
from .constants import fold_constants
from .parity_taps import Feeds, Tensor

Array = NDArray[Any]


class TorchTaps:
    """The tensors of a graph of ATen operators, each computed by torch on the CPU."""

    def __init__(self, graph: GraphModule, dtype: torch.dtype = torch.float32) -> None:
        self._graph, self._dtype = graph, dtype
        nodes = list(graph.graph.nodes)
        self._nodes = [node for node in nodes if node.op in ("call_function", "get_attr")]
        self.inputs = tuple(node.name for node in nodes if node.op == "placeholder")
        self.outputs = tuple(node.name for node in nodes[-1].all_input_nodes)
        self.tensors = tuple(_computed(nodes))

    def take(self, names: Sequence[str], given: Feeds) -> dict[str, Array]:
        """Compute tensors by running the nodes between them and what is given; each is let go after its last use."""
        needed = set(names) - set(given)
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(before.name for before in node.all_input_nodes if before.name not in given)
        run = [node for node in self._nodes if node.name in needed]
        last = {before.name: place for place, node in enumerate(run) for before in node.all_input_nodes}
        used = {*last, *names}
        values: dict[str, Any] = {name: self._put(array) for name, array in given.items() if name in used}
        with torch.inference_mode():
            for place, node in enumerate(run):
                values[node.name] = self._run(node, values)
                for before in node.all_input_nodes:
                    if last[before.name] == place and before.name not in names:
                        values.pop(before.name, None)
        return {name: _array(values[name]) for name in names}

    def _put(self, array: Array) -> torch.Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array))
        return made.to(self._dtype) if made.is_floating_point() else made

    def _run(self, node: Node, values: dict[str, Any]) -> Any:
        if node.op == "get_attr":
            try:
                return get_tensor(self._graph, str(node.target))
            except TypeError:
                return self._graph.get_submodule(str(node.target))
        args = map_arg(node.args, lambda before: values[before.name])
        return node.target(*args, **map_arg(node.kwargs, lambda before: values[before.name]))  # type: ignore[operator]  # these nodes hold functions


def traced(model: Model) -> GraphModule:
    """Return the model's graph as the ONNX exporter takes it apart: its tensors have the names of the file's.

    Raises:
        BadInput: the exporter refuses the model.
    """
    from .float_graph import for_exporter

    try:
        with quiet():
            program = torch.onnx.export(
                for_exporter(fold_constants(model)).export(), dynamo=True, optimize=False, verbose=False
            )
    except Exception as fault:
        raise BadInput(f"its layers cannot be compared: the exporter refuses it: {str(fault).splitlines()[0]}") from fault  # fmt: skip # noqa: E501
    if program is None or program.exported_program is None:
        raise BadInput("its layers cannot be compared: the exporter gave no program")
    found = program.exported_program.module(check_guards=False)
    assert isinstance(found, GraphModule)
    return found


def in_precision(module: GraphModule, dtype: torch.dtype) -> GraphModule:
    """Return a copy of a graph that computes in another floating type: weights, constants and casts to fp32."""
    made = copy_graph(module)
    for part in made.modules():
        places: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))
        for held in places:
            for name, value in list(held.items()):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    held[name] = _as(value, dtype)
    for node in made.graph.nodes:
        node.args = map_aggregate(node.args, lambda x: dtype if x is torch.float32 else x)
        node.kwargs = map_aggregate(node.kwargs, lambda x: dtype if x is torch.float32 else x)
    made.recompile()
    return made


def _as(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    made = value.detach().to(dtype)
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(value, torch.nn.Parameter) else made


def _computed(nodes: list[Node]) -> Iterator[Tensor]:
    """Yield what depends on the inputs and is one tensor."""
    known = {node.name for node in nodes if node.op == "placeholder"}
    for node in nodes:
        reads = tuple(before.name for before in node.all_input_nodes)
        if node.op == "call_function" and not known.isdisjoint(reads):
            known.add(node.name)
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                yield Tensor(node.name, _operator(node), module_path(node), reads, value.is_floating_point())


def _operator(node: Node) -> str:
    """Return `conv2d` for an operator of ATen; an item of a tuple is its maker's."""
    if getattr(node.target, "__name__", "") == "getitem":
        return _operator(node.all_input_nodes[0])
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _array(value: Any) -> Array:
    return np.asarray(value.detach().float() if value.dtype in (torch.float16, torch.bfloat16) else value.detach())


__all__ = ["TorchTaps", "in_precision", "traced"]
