"""What could be left out of a model, and what that would spare."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.model import Model
from ..models.summary import macs_by_operator
from .blocks import Block, Kind, find_blocks, find_layers, in_order
from .bypass import names_of, without


@dataclass(frozen=True)
class Candidate:
    """A residual block, or a convolution or pooling that keeps its input's shape, with all that goes with it.

    Attributes:
        path: the module's, or that of a module and an operator's name in the graph.
        kind: what it is.
        params: parameters that nothing else uses.
        macs: multiply-accumulates per example.
        block: where it is.
        erased: the names of the graph's nodes that go with it.
    """

    path: str
    kind: Kind
    params: int
    macs: int
    block: Block
    erased: frozenset[str]


def find_candidates(model: Model) -> tuple[Candidate, ...]:
    """Return all that `Trim` can remove, in the order of the graph; nothing is changed."""
    macs = macs_by_operator(model)
    blocks = in_order(model, (*find_blocks(model), *find_layers(model)))
    return tuple(_candidate(model, block, macs) for block in blocks)


def _candidate(model: Model, block: Block, macs: dict[str, int]) -> Candidate:
    graph = model.module.graph
    erased = names_of(graph) - names_of(without(graph, (block,)))
    parameters = dict(model.module.named_parameters())
    constants = {str(node.target) for node in graph.nodes if node.op == "get_attr" and node.name in erased}
    params = sum(parameters[name].numel() for name in constants if name in parameters)
    return Candidate(block.path, block.kind, params, sum(macs.get(name, 0) for name in erased), block, erased)
