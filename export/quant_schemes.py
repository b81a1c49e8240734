"""The schemes of quantization: static int8, and those that need no examples: dynamic int8, weights in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields

from onnx import ModelProto

from ..models.errors import BadInput
from ..models.schemes import SCHEMES, Scheme, useless
from .artifact import Target
from .int8 import Examples, Int8Settings, Known, Quantized, check_bits, to_int8
from .islands import named
from .quant_dynamic import dynamic
from .quant_linear import LEAST_WEIGHTS, Linear, in_tables, linear_layers
from .quant_plan import Wiring
from .quant_prepare import prepared, wiring_of
from .quant_weights import Bits, in_blocks, of_blocks, takes_blocks

_BITS: dict[Scheme, Bits] = {"int8-weights": 8, "int4-weights": 4}


def quantized(
    proto: ModelProto,
    examples: Examples | None,
    target: Target,
    settings: Int8Settings = Int8Settings(),  # noqa: B008 (frozen)
    told: Callable[[int], object] = lambda done: None,
    known: Known = Known(),  # noqa: B008 (frozen)
) -> Quantized:
    """Return the graph in the scheme that the settings name.

    Args:
        proto: an fp32 graph of any origin.
        examples: what calibrates it; None for a scheme that needs none.
        target: the family of runtimes.
        settings: the scheme, and how.
        told: called with the number of examples seen.
        known: ranges and scales from training; for `int8`.

    Raises:
        BadInput: see `to_int8` and `without_examples`; examples are missing, or given and not needed.
    """
    if settings.scheme == "int8":
        if examples is None:
            raise BadInput(
                "int8: needs calibration, examples that show the range of every value; without any choose scheme "
                "dynamic (transformers on CPUs), int8-weights or int4-weights"
            )
        return to_int8(proto, examples, target, settings, known, told)
    _check(settings.scheme, target, settings)
    if examples is not None:
        why = "ranges are found when the file runs" if settings.scheme == "dynamic" else "activations stay in fp32"
        raise BadInput(f"{settings.scheme}: takes no calibration, {why}; leave it out, or choose scheme int8")
    return without_examples(proto, target, settings)


def without_examples(proto: ModelProto, target: Target, settings: Int8Settings) -> Quantized:
    """Return the graph in a scheme that needs no calibration; for CPUs embeddings become int8 in each.

    - `dynamic`: linear layers in integers, the ranges of their inputs found at run time; on CPUs only. Convolutions
      stay in fp32: ONNX Runtime has no fast kernel for them in this form.
    - `int8-weights`, `int4-weights`: large weights of linear layers as integers in blocks, see `quant_weights`.

    Args:
        proto: an fp32 graph of any origin.
        target: the family of runtimes.
        settings: `scheme`, not `int8`; `keep_float`; for `dynamic` also `weight_bits` and `weights_by_error`.

    Raises:
        BadInput: an unknown scheme, one that the target cannot run or that has no such setting, or nothing to quantize.
    """
    scheme = settings.scheme
    _check(scheme, target, settings)
    graph = prepared(proto)
    graph = graph if scheme == "dynamic" else of_blocks(graph)
    keep = named(graph.graph.node, settings.keep_float, "keep_float")
    layers = _layers(wiring_of(graph), keep, scheme, target)
    if not layers:
        raise BadInput(f"{scheme}: nothing to quantize: {_missing(scheme)}; leave the quantization out")
    made = dynamic(graph, layers, settings.weight_bits, settings.weights_by_error) if scheme == "dynamic" else in_blocks(graph, layers, _BITS[scheme], target)  # fmt: skip # noqa: E501
    if target == "cpu":
        made = in_tables(made, wiring_of(made), keep)
    kept = [n.name for n in graph.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and n.name not in layers]  # fmt: skip # noqa: E501
    return Quantized(made, tuple(layers), tuple(kept))


def _layers(wiring: Wiring, keep: Collection[str], scheme: Scheme, target: Target) -> dict[str, Linear]:
    """Return the layers whose weights become integers."""
    if scheme == "dynamic":
        return linear_layers(wiring, keep)
    found = linear_layers(wiring, keep, LEAST_WEIGHTS)
    return {name: layer for name, layer in found.items() if takes_blocks(layer, _BITS[scheme], target)}


def _missing(scheme: Scheme) -> str:
    if scheme == "dynamic":
        return "the graph has no matrix product with constant fp32 weights that is not kept in floating point"
    return (
        f"the graph has no matrix product with at least {LEAST_WEIGHTS} constant fp32 weights that is not kept in "
        "floating point: smaller ones are neither faster nor worth their bytes"
    )


def _check(scheme: Scheme, target: Target, settings: Int8Settings) -> None:
    if scheme not in SCHEMES:
        raise BadInput(f"scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if scheme == "dynamic" and target == "tensorrt":
        raise BadInput("dynamic: TensorRT takes scales from the file only; choose int8, int8-weights or int4-weights, or target cpu")  # fmt: skip # noqa: E501
    check_bits(settings)
    usual = Int8Settings()
    if odd := useless(scheme, {one.name for one in fields(usual) if getattr(settings, one.name) != getattr(usual, one.name)}):  # fmt: skip # noqa: E501
        raise BadInput(odd)


__all__ = ["quantized", "without_examples"]
