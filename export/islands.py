"""Which operators of a low-precision graph must stay in fp32: found by comparing with the graph in fp32."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..models.errors import BadInput
from .onnx_clean import MODULE
from .onnx_graph import OnnxGraph
from .rounding import run, with_roundings
from .typed import FLOAT, Low, placed, rounded, to_typed, value_types
from .typed_nodes import LOW, SENSITIVE

Array = NDArray[Any]
KeepFp32 = Literal["auto", "none"] | tuple[str, ...]

HEADROOM = 4.0
"""Other inputs give larger values than the examples do."""
WANTED = {"fp16": 1e-2, "bf16": 8e-2}
"""The largest difference, relative to an output's largest value, that is left alone: bf16 has three bits fewer."""
LIMITS = {"fp16": (65504.0, 2.0**-14), "bf16": ((2 - 2.0**-7) * 2.0**127, 2.0**-126)}
"""The largest value of a type, and the smallest with all its digits."""
_LEAST_DIGITS = 2.0**-6
_JUMP = 4.0
_SHARE = 0.05
_ROUNDS = 2


@dataclass(frozen=True)
class Choice:
    """Names of the nodes that stay in fp32, and the largest relative error left; None where none was measured."""

    nodes: frozenset[str]
    error: float | None


def choose(graph: OnnxGraph, low: Low, asked: KeepFp32, feeds: Mapping[str, Array], mixed: bool) -> Choice:
    """Choose the nodes that stay in fp32.

    What a constant beyond the type's range goes into stays always. `auto` keeps as well what gives or takes values
    beyond the range on the examples; then, as long as the outputs differ by more than `WANTED`, operators that are
    delicate by their kind, and those at which the error jumps. A larger set that does not halve the error is not taken.

    Args:
        graph: in fp32.
        low: the type.
        asked: `auto`, `none`, or patterns of node names, operator types or module paths.
        feeds: examples, batch first; used by `auto`.
        mixed: keep delicate operators from the start.

    Raises:
        BadInput: a pattern fits no node.
    """
    nodes = list(graph.proto.graph.node)
    base = touching(graph, unfit_constants(graph, low))
    if mixed:
        base |= {node.name for node in nodes if node.op_type in SENSITIVE}
    if asked == "none":
        return Choice(frozenset(base), None)
    if not isinstance(asked, str):
        return Choice(frozenset(base | named(graph.proto.graph.node, asked, "keep_fp32")), None)
    base |= touching(graph, _beyond(ranges(graph, feeds), low) | _lost_divisors(graph, low, feeds))
    return _widen(graph, low, base, feeds)


def _widen(graph: OnnxGraph, low: Low, base: set[str], feeds: Mapping[str, Array]) -> Choice:
    wanted = run(graph, feeds)
    best = Choice(frozenset(base), _error(graph, low, base, feeds, wanted))
    for more in range(1 + _ROUNDS):
        if best.error is None or best.error <= WANTED[low]:
            break
        if more == 0:
            tried = best.nodes | {node.name for node in graph.proto.graph.node if node.op_type in SENSITIVE}
        else:
            tried = best.nodes | _jumps(graph, low, best.nodes, feeds)
        error = _error(graph, low, set(tried), feeds, wanted) if tried != best.nodes else best.error
        if error <= best.error / 2:
            best = Choice(frozenset(tried), error)
    return best


def named(nodes: Iterable[NodeProto], patterns: Sequence[str], key: str) -> set[str]:
    """Return the names of nodes that patterns name: by node, by operator type, or by the path of their module.

    Args:
        nodes: to choose from.
        patterns: as in a shell.
        key: the setting that they are of, for messages.

    Raises:
        BadInput: a pattern fits none; the message has the nearest name.
    """
    labels = {node.name: {node.name, node.op_type, *_paths(node)} for node in nodes}
    found: set[str] = set()
    for pattern in patterns:
        fitting = {name for name, own in labels.items() if any(fnmatchcase(label, pattern) for label in own)}
        if not fitting:
            near = difflib.get_close_matches(pattern, sorted(set().union(*labels.values())), 1, 0)
            hint = f"; the nearest name is {near[0]!r}" if near else ""
            raise BadInput(f"{key}: {pattern!r} fits no node, operator type or module path of the graph{hint}")
        found |= fitting
    return found


def _paths(node: NodeProto) -> list[str]:
    """Return the path of a node's module and those of all around it."""
    path = next((entry.value for entry in node.metadata_props if entry.key == MODULE), "")
    parts = path.split(".") if path else []
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def unfit_constants(graph: OnnxGraph, low: Low) -> set[str]:
    """Return the fp32 constants that the type cannot hold: too large, or so small that no digits are left."""
    found = set()
    for held in graph.proto.graph.initializer:
        values = graph.constant(held.name) if held.data_type == FLOAT else None
        if values is None or not values.size:
            continue
        most = float(np.abs(values, where=np.isfinite(values), out=np.zeros(values.shape, np.float32)).max())
        near = float(rounded(np.array(most, np.float32), LOW[low]))
        if abs(near - most) > _LEAST_DIGITS * most:
            found.add(held.name)
    return found


def touching(graph: OnnxGraph, values: set[str]) -> set[str]:
    """Return the nodes that give or take any of these values."""
    return {n.name for n in graph.proto.graph.node if not values.isdisjoint((*n.input, *n.output))}


def _beyond(found: Mapping[str, float], low: Low) -> set[str]:
    most, least = LIMITS[low]
    return {name for name, value in found.items() if value > most / HEADROOM or 0 < value < least}


def _lost_divisors(graph: OnnxGraph, low: Low, feeds: Mapping[str, Array]) -> set[str]:
    """Return what is divided by and so small somewhere that the type makes zero of it: a norm held above 1e-12."""
    floats = set(_floats(graph))
    names = [n.input[1] for n in graph.proto.graph.node if n.op_type == "Div" and n.input[1] in floats]
    names = list(dict.fromkeys(names))
    if not names:
        return set()
    made, results = ModelProto(), [f"least__{place}" for place in range(len(names))]
    made.CopyFrom(graph.proto)
    del made.graph.value_info[:], made.graph.output[:]
    for name, result in zip(names, results, strict=True):
        made.graph.node.append(helper.make_node("Abs", [name], [f"{result}_abs"]))
        made.graph.node.append(helper.make_node("ReduceMin", [f"{result}_abs"], [result], keepdims=0))
        made.graph.output.append(helper.make_tensor_value_info(result, FLOAT, []))
    found = run(OnnxGraph(made, graph.weights), feeds, results)
    _, least = LIMITS[low]
    return {name for name, result in zip(names, results, strict=True) if 0 < float(found[result]) < least}


def ranges(graph: OnnxGraph, feeds: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest finite magnitude of every fp32 value on the examples."""
    names = _floats(graph)
    made, results = _with_sums(graph.proto, [(name, None) for name in names])
    found = run(OnnxGraph(made, graph.weights), feeds, results)
    return {name: float(found[result]) for name, result in zip(names, results, strict=True)}


def _floats(graph: OnnxGraph) -> list[str]:
    types = value_types(graph)
    given = [name for node in graph.proto.graph.node for name in node.output if name]
    return [name for name in (*(i.name for i in graph.proto.graph.input), *given) if types.get(name) == FLOAT]


def _with_sums(proto: ModelProto, pairs: list[tuple[str, str | None]]) -> tuple[ModelProto, list[str]]:
    """Return a graph that gives the largest finite magnitude of each value, or of its difference from another."""
    made = ModelProto()
    made.CopyFrom(proto)
    graph, results = made.graph, []
    del graph.value_info[:], graph.output[:]
    graph.initializer.append(helper.make_tensor("most__zero", FLOAT, [], [0.0]))
    for place, (name, other) in enumerate(pairs):
        value, mark = name, f"most__{place}"
        if other is not None:
            graph.node.append(helper.make_node("Sub", [name, other], [f"{mark}_apart"]))
            value = f"{mark}_apart"
        graph.node.extend([
            helper.make_node("Abs", [value], [f"{mark}_abs"]),
            helper.make_node("IsInf", [value], [f"{mark}_inf"]),
            helper.make_node("Where", [f"{mark}_inf", "most__zero", f"{mark}_abs"], [f"{mark}_finite"]),
            helper.make_node("ReduceMax", [f"{mark}_finite"], [mark], keepdims=0),
        ])  # fmt: skip
        graph.output.append(helper.make_tensor_value_info(mark, FLOAT, []))
        results.append(mark)
    return made, results


def _error(
    graph: OnnxGraph, low: Low, keep: set[str], feeds: Mapping[str, Array], wanted: Mapping[str, Array]
) -> float:
    """Return the largest difference of any output, relative to its largest value."""
    found = run(with_roundings(to_typed(graph, low, keep)), feeds)
    return max((apart(found[name], value) for name, value in wanted.items() if value.dtype == np.float32), default=0.0)


def apart(found: Array, wanted: Array) -> float:
    """Return the largest difference relative to the largest wanted value; infinite where only one of them is finite."""
    both = np.isfinite(wanted)
    if not np.array_equal(np.isfinite(found), both):
        return float("inf")
    if not both.any():
        return 0.0
    scale = float(np.abs(wanted[both]).max()) or 1.0
    return float(np.abs(found[both].astype(np.float64) - wanted[both]).max()) / scale


def _jumps(graph: OnnxGraph, low: Low, keep: frozenset[str], feeds: Mapping[str, Array]) -> set[str]:
    """Return the nodes whose result has far more error than what they take; the worst few of them."""
    lower = with_roundings(to_typed(graph, low, keep))
    there = {name for node in lower.proto.graph.node for name in node.output}
    names = [name for name in _floats(graph) if name in there]
    both = _side_by_side(graph, lower)
    pairs: list[tuple[str, str | None]] = [(name, f"low/{name}") for name in names]
    made, results = _with_sums(both.proto, [*pairs, *((name, None) for name in names)])
    found = run(OnnxGraph(made, both.weights), feeds, results)
    values = [float(found[result]) for result in results]
    sizes = dict(zip(names, values[len(names) :], strict=True))
    errors = {n: v / (sizes[n] or 1.0) for n, v in zip(names, values[: len(names)], strict=True)}
    unit = 2.0 ** -(11 if low == "fp16" else 8)
    steps: dict[str, float] = {}
    plan = placed(graph, LOW[low], keep)
    for node, slot in zip(graph.proto.graph.node, plan, strict=True):
        before = max([unit, *(errors[name] for name in node.input if name in errors)])
        after = max((errors[node.output[at]] for at in slot.outputs), default=0.0)
        if np.isfinite(before):  # what takes an error without end does not make it
            steps[node.name] = after / before if np.isfinite(after) else float("inf")
    worst = sorted((name for name in steps if steps[name] > _JUMP), key=lambda name: -steps[name])
    return set(worst[: max(1, int(_SHARE * len(steps)))])


def _side_by_side(left: OnnxGraph, right: OnnxGraph) -> OnnxGraph:
    """Return both graphs on the same inputs; every other name of the right one begins with `low/`."""
    made = ModelProto()
    made.CopyFrom(left.proto)
    inputs = {value.name for value in left.proto.graph.input} | {""}
    for source in right.proto.graph.node:
        node = NodeProto()
        node.CopyFrom(source)
        for part in (node.input, node.output):
            part[:] = [name if name in inputs else f"low/{name}" for name in part]
        node.name = ""
        made.graph.node.append(node)
    for held in right.proto.graph.initializer:
        copied = TensorProto()
        copied.CopyFrom(held)
        copied.name = f"low/{held.name}"
        made.graph.initializer.append(copied)
    return OnnxGraph(made, {**left.weights, **{f"low/{name}": read for name, read in right.weights.items()}})
