"""Static int8: find ranges, and write Q/DQ pairs where a target computes in integers and is faster for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from ..models.errors import BadInput
from ..models.model import Quantization
from ..models.schemes import Scheme
from .artifact import Target
from .calibration import METHODS, Calibrating, Method, observe
from .islands import named
from .quant_bias import corrected, with_biases
from .quant_equalize import equalizable, equalized
from .quant_grid import Range
from .quant_linear import in_tables
from .quant_place import Grids, place
from .quant_plan import Wiring, plan
from .quant_prepare import prepared, wiring_of
from .quant_smooth import smoothable, smoothed
from .quant_stem import stems_in_blocks
from .quant_stream import Examples, Feeds, largest_by_channel
from .session import in_batches

Array = NDArray[Any]

LEAST_EXAMPLES = 16
"""Of `n` examples, one new one in `n + 1` lies outside of the range of a tensor: with 16, every seventeenth."""


@dataclass(frozen=True)
class Int8Settings:
    """How a file is quantized.

    Attributes:
        method: how a range is found, see `calibration.Calibrating`.
        keep_float: patterns of operator types, module paths or nodes that stay in fp32.
        weight_bits: of weights; None for 7 on CPUs (right with and without VNNI) and 8 for TensorRT.
        weights_by_error: choose weights' scales by squared error, not by the largest weight.
        equalize: even out channels between products that follow one another, see `quant_equalize`.
        correct_bias: make good in biases what rounding moves means by, see `quant_bias`.
        smooth: so much of norms' outliers goes into the weights that read them, in 0 to 1, see `quant_smooth`.
        scheme: what becomes integers, see `quant_schemes`; the others need no examples.
    """

    method: Method = "minmax"
    keep_float: tuple[str, ...] = ()
    weight_bits: int | None = None
    weights_by_error: bool = False
    equalize: bool = False
    correct_bias: bool = False
    smooth: float | None = None
    scheme: Scheme = "int8"


@dataclass(frozen=True, eq=False)
class Known:
    """Scales that are known before calibration, from training: by names in the graph."""

    ranges: Mapping[str, Range] = field(default_factory=dict)
    weight_scales: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A graph with Q/DQ pairs.

    Attributes:
        proto: the graph.
        products: names of the nodes with MACs that are quantized.
        kept: names of those that are not.
    """

    proto: ModelProto
    products: tuple[str, ...]
    kept: tuple[str, ...]


def to_int8(
    proto: ModelProto,
    examples: Examples,
    target: Target,
    settings: Int8Settings = Int8Settings(),
    known: Known = Known(),
    told: Callable[[int], object] = lambda done: None,
) -> Quantized:
    """Return the graph with Q/DQ pairs: weights per channel and symmetric, activations per tensor.

    - `cpu`: unsigned activations and signed weights (U8S8), with integers at both sides of every operator that ONNX
      Runtime has an integer kernel for, so that it computes in them from end to end; embeddings in int8.
    - `tensorrt`: signed and symmetric (S8S8) at the inputs of products and at the shortcuts of sums, biases in fp32.

    Args:
        proto: an fp32 graph of any origin.
        examples: what calibrates it.
        target: the family of runtimes.
        settings: how.
        known: ranges and scales that are given.
        told: called with the number of examples seen.

    Raises:
        BadInput: nothing to quantize, a pattern that fits nothing, too few examples, or values that are no numbers.
    """
    _check(settings, known)
    graph, given = prepared(proto), _checked(examples)
    keep = named(graph.graph.node, settings.keep_float, "keep_float")
    if not plan(wiring_of(graph), target, keep).products:
        raise BadInput(
            "int8: nothing to quantize: the graph has no convolution or matrix product with fp32 weights that is not "
            "kept in floating point; leave the quantization out"
        )
    graph = rescaled(graph, given, settings)
    if settings.correct_bias:
        graph = with_biases(graph, plan(wiring_of(graph), target, keep).products)
    chosen = plan(wiring_of(graph), target, keep)
    missing = [name for name in chosen.observed if name not in known.ranges]
    ranges = {name: known.ranges[name] for name in chosen.observed if name in known.ranges}
    if missing:
        ranges |= observe(graph, missing, given(), Calibrating(settings.method, target), told)
    grids = Grids(ranges, known.weight_scales, settings.weight_bits, settings.weights_by_error)

    def placed(one: ModelProto) -> ModelProto:
        return place(one, wiring_of(one), chosen, grids, target)

    if settings.correct_bias:
        graph = corrected(graph, chosen.products, placed, given)
    kept = [node.name for node in _products(wiring_of(graph)) if node.name not in chosen.products]
    made = placed(graph)
    if target == "cpu":
        made = stems_in_blocks(in_tables(made, wiring_of(made), keep))
    return Quantized(made, chosen.products, tuple(kept))


def settings_of(quantization: Quantization) -> Int8Settings:
    """Return what a model's quantize pass asks of its file.

    Raises:
        BadInput: it asks for something that is unknown here.
    """
    known = {one.name for one in fields(Int8Settings)} - {"scheme"}
    if other := sorted(set(quantization.options) - known):
        raise BadInput(f"int8: options {', '.join(other)} are unknown, choose of {', '.join(sorted(known))}")
    asked = Int8Settings(**{"method": quantization.method, **quantization.options})
    return replace(asked, scheme=cast(Scheme, quantization.scheme))  # an unknown one is refused where it is carried out


def in_parts(arrays: Mapping[str, Array]) -> Examples:
    """Return what gives arrays `(examples, ...)` in parts, as often as it is called."""
    count = min(map(len, arrays.values()))
    return lambda: ({name: array[part] for name, array in arrays.items()} for part in in_batches(count))


def _check(settings: Int8Settings, known: Known) -> None:
    if settings.method not in METHODS:
        raise BadInput(f"int8: method {settings.method!r}, choose one of {', '.join(METHODS)}")
    if settings.smooth is not None and not 0 <= settings.smooth <= 1:
        raise BadInput(f"int8: smooth {settings.smooth}, wanted 0 to 1; 0.5 shares outliers out")
    check_bits(settings)
    late = settings.equalize or settings.correct_bias or settings.smooth is not None
    if late and (known.ranges or known.weight_scales):
        raise BadInput(
            "int8: equalize, correct_bias and smooth change what the scales were trained for; leave them out"
        )


def check_bits(settings: Int8Settings) -> None:
    """Refuse weights of more bits than an int8 has, and of so few that only zero is left.

    Raises:
        BadInput: it is so.
    """
    if settings.weight_bits is not None and not 2 <= settings.weight_bits <= 8:
        raise BadInput(f"{settings.scheme}: weight_bits {settings.weight_bits}, wanted 2 to 8")


def rescaled(graph: ModelProto, examples: Examples, settings: Int8Settings) -> ModelProto:
    """Return the same function with channels of more equal size, as far as settings ask for it."""
    if settings.smooth is not None:
        graph = smoothed(graph, largest_by_channel(graph, smoothable(graph), examples()), settings.smooth)
    if settings.equalize:
        graph = equalized(graph, largest_by_channel(graph, equalizable(graph), examples()))
    return graph


def _products(wiring: Wiring) -> Iterator[NodeProto]:
    """Yield the nodes with MACs."""
    yield from (node for node in wiring.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"))


def _checked(examples: Examples) -> Examples:
    """Pass examples on, and say so where they are no numbers, or too few in the end."""
    return lambda: _enough(examples)


def _enough(examples: Examples) -> Iterator[Feeds]:
    count = 0
    for feeds in examples():
        sizes = {name: len(array) for name, array in feeds.items()}
        if len(set(sizes.values())) != 1:
            raise BadInput(f"calibration: the inputs hold unequally many examples: {sizes}")
        for name, array in feeds.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise BadInput(f"calibration: input {name!r} holds NaN or infinity; take those examples out")
        count += next(iter(sizes.values()))
        yield feeds
    check_count(count)


def check_count(count: int) -> None:
    """Refuse too few examples.

    Raises:
        BadInput: it is so.
    """
    if count < LEAST_EXAMPLES:
        raise BadInput(
            f"calibration: got {count} example{'s' * (count != 1)}, wanted at least {LEAST_EXAMPLES}, better 128 to "
            "512: of n examples, one new one in n + 1 goes beyond the range that was seen, and is cut off"
        )


__all__ = [
    "LEAST_EXAMPLES",
    "Examples",
    "Int8Settings",
    "Known",
    "Quantized",
    "Scheme",
    "check_bits",
    "in_parts",
    "rescaled",
    "settings_of",
    "to_int8",
]
