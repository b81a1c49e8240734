"""Count what a model costs: parameters, multiply-accumulates and activations, operator by operator."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .fake_quantize import PER_CHANNEL, bare
from .graph import module_path
from .model import Model, TensorSpec
from .operator_macs import macs_of


@dataclass(frozen=True)
class LayerRow:
    """One operator that has parameters or costs multiply-accumulates (per example)."""

    name: str
    kind: str
    output_shape: tuple[int | str, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """What `inspect` shows. MACs are those of layers and products of matrices, per example."""

    source: str
    params: int
    macs: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[LayerRow, ...]


class _Counter(Interpreter):
    """Run the graph on fake tensors and note each operator's cost."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.module)
        self.batch = _batch(model)
        self.dynamic = model.dynamic_batch
        self.layers: list[LayerRow] = []
        self.macs: dict[str, int] = {}
        self.sizes: dict[Node, list[int]] = {}

    def run_node(self, n: Node) -> Any:
        """Count one node."""
        known = not isinstance(n.target, HigherOrderOperator)
        with FlopCounterMode(display=False) if not known else nullcontext() as counter:
            result = super().run_node(n)
        first = next((x for x in tree_leaves(result) if isinstance(x, Tensor)), None)
        if first is None:
            return result
        self.sizes[n] = list(first.shape)
        if n.op != "call_function":
            return result
        macs = (macs_of(n, self.sizes.__getitem__) if counter is None else counter.get_total_flops() // 2) // self.batch
        self.macs[n.name] = macs
        # The rounding of a weight is part of the layer that multiplies with it.
        sources = [] if n.target == PER_CHANNEL else n.all_input_nodes
        params = sum(self._own_params(source) for source in sources)
        if macs or params:
            kind = str(n.target).removeprefix("aten.").partition(".")[0]
            shape: tuple[int | str, ...] = tuple(first.shape)
            shape = ("batch", *shape[1:]) if self.dynamic else shape
            self.layers.append(LayerRow(module_path(n) or n.name, kind, shape, params, macs))
        return result

    def _own_params(self, node: Node) -> int:
        node = bare(node)
        if node.op != "get_attr":
            return 0
        value = self.fetch_attr(str(node.target))
        return value.numel() if isinstance(value, torch.nn.Parameter) else 0


def _batch(model: Model) -> int:
    """Return how many examples one call takes: dimension 0 of the input, where every output has it too."""
    first = model.example_inputs[0].shape[:1]
    shared = model.dynamic_batch or all(spec.shape[:1] == tuple(first) for spec in model.outputs)
    return int(first[0]) if first and shared else 1


def summarize(model: Model) -> Summary:
    """Count a model's parameters and MACs without computing anything."""
    counter = _count(model)
    params = sum(p.numel() for p in model.module.parameters())
    macs = sum(layer.macs for layer in counter.layers)
    return Summary(model.source, params, macs, model.inputs, model.outputs, tuple(counter.layers))


def macs_by_operator(model: Model) -> dict[str, int]:
    """Return the MACs per example of every operator, by its name in the graph, without computing anything."""
    return _count(model).macs


def _count(model: Model) -> _Counter:
    counter = _Counter(model)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        counter.run(*(fake.from_tensor(x) for x in model.example_inputs))
    return counter
