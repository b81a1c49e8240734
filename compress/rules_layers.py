"""How channels pass layers: operators with weights, and normalizations."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..models.graph import argument, sizes_of
from .atoms import Atoms, merge, stacked, staying
from .channels import Dims, Tracker

KERNEL = "is what a kernel moves over"


def convolution(tracker: Tracker, node: Node) -> Dims | None:
    """Of each group of input channels, `in / groups` at a time, come `out / groups` output channels."""
    x, weight, groups = tracker.dims(node.args[0]), tracker.dims(node.args[1]), int(argument(node, "groups"))
    if len(x) != len(weight):
        return None  # without a batch the channels are elsewhere
    _keep(tracker, (*weight[2:], *x[2:]))
    out = weight[0]
    if groups == 1:
        tracker.keep_fixed(node.args[1], 0)
        tracker.link(x[1], weight[1])
    else:
        inputs, outputs = _grid(tracker, node.args[0], 1, groups), _grid(tracker, node.args[1], 0, groups)
        tracker.link(inputs[0], outputs[0])
        tracker.link(inputs[1], weight[1])
    _with_bias(tracker, out, node)
    return (x[0], out, *(None for _ in weight[2:]))


def transposed_convolution(tracker: Tracker, node: Node) -> Dims | None:
    """As a convolution, with weights `(in, out / groups, ...)`."""
    x, weight, groups = tracker.dims(node.args[0]), tracker.dims(node.args[1]), int(argument(node, "groups"))
    if len(x) != len(weight):
        return None
    _keep(tracker, (*weight[2:], *x[2:]))
    tracker.link(x[1], weight[0])
    out = weight[1]
    if groups > 1:
        each = sizes_of(node.args[1])[1]
        out = merge([_grid(tracker, node.args[1], 0, groups)[0], weight[1]], [groups, each])
    _with_bias(tracker, out, node)
    return (x[0], out, *(None for _ in weight[2:]))


def _keep(tracker: Tracker, dims: Dims) -> None:
    for atoms in dims:
        tracker.table.freeze(atoms, KERNEL)


def _grid(tracker: Tracker, node: Any, dim: int, groups: int) -> list[Atoms | None]:
    """Return a dimension as groups and what is in each."""
    atoms, size = tracker.dims(node)[dim], sizes_of(node)[dim]
    return [None, None] if atoms is None else tracker.table.split(atoms, [groups, size // groups])


def _with_bias(tracker: Tracker, out: Atoms | None, node: Node) -> None:
    bias = tracker.dims(argument(node, "bias"))
    if bias:
        tracker.link(out, bias[0])


def linear(tracker: Tracker, node: Node) -> Dims:
    """The last dimension is read by the weight's columns and made by its rows."""
    x, weight = tracker.dims(node.args[0]), tracker.dims(node.args[1])
    tracker.link(x[-1], weight[-1])
    if len(weight) == 1:
        return x[:-1]
    _with_bias(tracker, weight[0], node)
    return (*x[:-1], weight[0])


def batch_norm(tracker: Tracker, node: Node) -> Dims:
    """Weights and statistics are those of the input's channels."""
    x = tracker.dims(node.args[0])
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = tracker.dims(argument(node, name))
        if values:
            tracker.link(x[1], values[0])
    return x


def channelwise(tracker: Tracker, node: Node) -> Dims:
    """One weight for each channel, or one for all."""
    x, weight = tracker.dims(node.args[0]), tracker.dims(node.args[1])
    if weight and weight[0] is not None:
        tracker.link(x[1], weight[0])
    return x


def layer_norm(tracker: Tracker, node: Node) -> Dims:
    """The norm is taken over what is left of the normalized dimensions."""
    x = tracker.dims(node.args[0])
    for name in ("weight", "bias"):
        values = tracker.dims(argument(node, name))
        for mine, its in zip(x[len(x) - len(values) :], values, strict=True):
            tracker.link(mine, its)
    return x


def group_norm(tracker: Tracker, node: Node) -> Dims:
    """Groups go as a whole, or each loses the same channels; the norm is taken over what is left."""
    x = tracker.dims(node.args[0])
    if x[1] is not None:
        tracker.table.split(x[1], [int(argument(node, "num_groups")), len(x[1]) // int(argument(node, "num_groups"))])
    for name in ("weight", "bias"):
        values = tracker.dims(argument(node, name))
        if values:
            tracker.link(x[1], values[0])
    return x


def embedding(tracker: Tracker, node: Node) -> Dims:
    """Rows are looked up and stay; columns are the features."""
    weight = tracker.dims(node.args[0])
    tracker.table.freeze(weight[0], "is looked up by number")
    indices = tracker.dims(node.args[1])
    for atoms in indices:
        tracker.table.freeze(atoms, "is a list of numbers to look up")
    return (*(None for _ in indices), weight[1])


_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
STATE = "is a state that comes from elsewhere"


def recurrent(tracker: Tracker, node: Node) -> Dims | None:
    """Every gate has one row for each hidden unit; a layer reads its own units and those of the layer before."""
    gates = _GATES[str(node.target).split(".")[1]]
    weights, states = argument(node, "params"), argument(node, "hx")
    if weights is None or str(node.target).endswith(".data"):
        return None
    each, directions = (4 if argument(node, "has_biases") else 2), (2 if argument(node, "bidirectional") else 1)
    runs = [weights[i : i + each] for i in range(0, len(weights), each)]
    if any(sizes_of(run[1])[0] != gates * sizes_of(run[1])[1] for run in runs):
        return None  # the states are projected
    x, width = tracker.dims(node.args[0]), sizes_of(runs[0][1])[1]
    last = x[-1]
    for layer in range(0, len(runs), directions):
        units = [_run(tracker, run, last, gates) for run in runs[layer : layer + directions]]
        last = None if all(u is None for u in units) else stacked([staying(width) if u is None else u for u in units])
    # One tensor holds the states of all layers and directions: its last dimension is the units of each.
    state = None if last is None else last[:width]
    for run in runs:
        state = tracker.link(state, tracker.dims(run[1])[1], STATE)
    for given in states if isinstance(states, list | tuple) else [states]:
        state = tracker.link(state, tracker.dims(given)[-1], STATE)
    tracker.parts[node] = [(*x[:-1], last), *(((None, None, state)[-v.ndim :]) for v in node.meta["val"][1:])]
    return ()


def _run(tracker: Tracker, weights: list[Any], source: Atoms | None, gates: int) -> Atoms | None:
    """Link one layer in one direction: what it reads, its units, and its gates' rows."""
    inputs, own = tracker.dims(weights[0]), tracker.dims(weights[1])
    tracker.link(source, inputs[1])
    units = own[1]
    rows = None if units is None else merge([None, units], [gates, len(units)])
    for tensor in weights:
        tracker.link(rows, tracker.dims(tensor)[0])
    return units
