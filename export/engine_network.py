"""A network as TensorRT's parser made it: why it refused, the optimization profiles, and the layers' precision.

Runs in the child process of a build; the module of TensorRT comes as a parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Profile = dict[str, list[list[int]]]
"""Least, usual and largest shape by input."""

_NO_DRIVER = "cudaError 35"
_FOR_CPUS = "this is an int8 file for CPUs; export it with target=tensorrt"
_HINTS = {
    "Non-zero zero point": _FOR_CPUS,
    "input has type Int32 but must have type FP8": _FOR_CPUS,
    "Plugin not found": "TensorRT has no such operator; export the model without it",
    "Einsum equation": "write the equation in lower-case letters and export again",
    "must have same input types": "the file mixes number formats; export it again with one precision",
}


class Refused(Exception):
    """The build cannot be done; `kind` is whose fault it is: `input`, `absent` or `tool`."""

    def __init__(self, message: str, kind: str = "input") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Input:
    """One input of a network; dynamic sizes are -1, and have a name where the file gives one."""

    name: str
    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    is_shape: bool = False


def parse(trt: Any, network: Any, logger: Any, path: str) -> None:
    """Fill a network from an ONNX file.

    Raises:
        Refused: the parser does not take it; the message names the node.
    """
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        raise Refused("; ".join(parser_errors(parser)) or "the parser gave no reason; see the log")


def parser_errors(parser: Any) -> list[str]:
    """Return what a parser says against a file, one text for each error."""
    return [_error(parser.get_error(index)) for index in range(parser.num_errors)]


def _error(error: Any) -> str:
    lines = [line.strip() for line in error.desc().splitlines() if line.strip()]
    # Without a driver TensorRT complains of that too, whatever it was asked.
    words = "; ".join([line for line in lines if _NO_DRIVER not in line] or lines)
    if words in ("", "false") or error.code().name == "UNSUPPORTED_NODE":
        words = "TensorRT does not support it" + (f" ({words})" if words not in ("", "false") else "")
    hint = next((f" ({remedy})" for words_of, remedy in _HINTS.items() if words_of in words), "")
    return f"{_node(error)}{words}{hint}"


def _node(error: Any) -> str:
    if error.node() < 0 or not error.node_operator():
        return ""
    name = f" '{error.node_name()}'" if error.node_name() else ""
    return f"node {error.node()}{name} ({error.node_operator()}): "


def inputs_of(network: Any) -> list[Input]:
    """Return the inputs of a network."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return [
        Input(
            tensor.name,
            tuple(tensor.shape),
            tuple(tensor.get_dimension_name(axis) or None for axis in range(len(tensor.shape))),
            bool(tensor.is_shape_tensor),
        )
        for tensor in tensors
    ]


def profiles_of(inputs: Sequence[Input], batches: Sequence[int], shapes: Sequence[Mapping[str, Any]]) -> list[Profile]:
    """Return the optimization profiles: shapes as given, and batches for dynamic first dimensions of other inputs.

    Args:
        inputs: of the network.
        batches: least, usual and largest.
        shapes: least, usual and largest shape by input, one mapping for each profile.

    Returns:
        One profile for each mapping, with the dynamic inputs; none at all where no input is dynamic.

    Raises:
        Refused: a name or shape does not fit the network, or a dimension that is no batch is dynamic and has no shape.
    """
    for given in shapes:
        _check_names(inputs, given)
    made = [{one.name: _bounds(one, batches, given.get(one.name)) for one in inputs} for given in shapes]
    dynamic = {one.name for one in inputs if -1 in one.shape}
    kept = [{name: bounds for name, bounds in profile.items() if name in dynamic} for profile in made]
    return kept if dynamic else []


def _check_names(inputs: Sequence[Input], given: Mapping[str, Any]) -> None:
    names = [one.name for one in inputs]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise Refused(f"shapes are given for {', '.join(unknown)}, and the file's inputs are {', '.join(names)}")


def _bounds(one: Input, batches: Sequence[int], given: list[list[int]] | None) -> list[list[int]]:
    if one.is_shape:
        raise Refused(f"input '{one.name}' holds sizes (a shape tensor); export the model with these sizes fixed")
    if given is None:
        return _batched(one, batches)
    for shape in given:
        fits = len(shape) == len(one.shape) and all(w in (-1, size) for w, size in zip(one.shape, shape, strict=True))
        if not fits or min(shape, default=1) < 1:
            raise Refused(f"input '{one.name}': got shape {_shape(shape)}, wanted one that fits {_declared(one)}")
    least, usual, most = given
    if not all(low <= mid <= high for low, mid, high in zip(least, usual, most, strict=True)):
        got = ", ".join(map(_shape, given))
        raise Refused(f"input '{one.name}': got {got}, wanted shapes that do not fall: least, usual, largest")
    return given


def _batched(one: Input, batches: Sequence[int]) -> list[list[int]]:
    others = [one.names[axis] or f"number {axis}" for axis in range(1, len(one.shape)) if one.shape[axis] == -1]
    if others:
        example = ":".join(_shape([size if size > 0 else most for size in one.shape]) for most in (1, 8, 32))
        raise Refused(
            f"input '{one.name}' {_declared(one)}: dimension {' and '.join(others)} is dynamic and no batch; give its "
            f"least, usual and largest shape (--shape {one.name}={example}, or EngineSettings.shapes)"
        )
    return [[batch if size == -1 else size for size in one.shape] for batch in batches]


def _declared(one: Input) -> str:
    pairs = zip(one.shape, one.names, strict=True)
    return f"({', '.join(str(size) if size >= 0 else name or '?' for size, name in pairs)})"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def layers_of(network: Any) -> list[dict[str, Any]]:
    """Return name, type, inputs' and outputs' number formats of every layer, as they are before TensorRT fuses them."""
    return [_layer(network.get_layer(index)) for index in range(network.num_layers)]


def _layer(layer: Any) -> dict[str, Any]:
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    return {
        "name": layer.name,
        "type": layer.type.name,
        "inputs": [one.dtype.name for one in inputs if one is not None],
        "outputs": [one.dtype.name for one in outputs],
    }


def precisions(layers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Count layers by type and number format: that of what comes out, or both where it is not that of what goes in."""
    found: dict[str, Counter[str]] = {}
    for layer in layers:
        found.setdefault(layer["type"], Counter())[precision(layer)] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(found.items())}


def precision(layer: Mapping[str, Any]) -> str:
    """Return the number format of a layer, such as `HALF`, or `FLOAT to HALF` for one that converts."""
    first, out = layer["inputs"][:1], layer["outputs"][:1]
    if not out:
        return "none"
    return str(out[0]) if first in ([], out) else f"{first[0]} to {out[0]}"
