"""Whether two forms of a model are the same function, output by output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ..models.errors import BadInput
from ..models.model import Model
from .session import OnnxSession, in_batches

Array = NDArray[Any]
Runnable = Model | str | PathLike[str]

# The largest difference, relative to the largest value of the reference's output. Half precision keeps 11 bits and
# loses some at every layer; 8 bits lose far more, so for int8 this only guards against broken files: what the
# integers cost is judged by the paired accuracy drop.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}


@dataclass(frozen=True)
class OutputParity:
    """One output of the candidate against the reference's.

    `relative` is `max_abs` over the largest magnitude in the reference. `cosine` is of the flattened outputs.
    `top1_agreement` is the share of examples with the same largest entry along the last axis.
    """

    name: str
    max_abs: float
    relative: float
    cosine: float
    top1_agreement: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Parity:
    """All outputs, over `samples` examples."""

    outputs: tuple[OutputParity, ...]
    samples: int

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.passed for output in self.outputs)


def parity(
    reference: Runnable, candidate: Runnable, samples: Mapping[str, Array] | None = None, precision: str | None = None
) -> Parity:
    """Run both on the same samples and compare every output.

    Args:
        reference: a captured model or an ONNX file.
        candidate: the same of what is in question.
        samples: name -> array, batch first; None draws 64 standard normal examples by the reference's inputs.
        precision: sets the tolerance; None reads it from the candidate's graph.

    Raises:
        BadInput: a file cannot be read, samples do not fit or hold NaN, the outputs differ in number or shape, or
            `precision` is unknown.
    """
    feeds = dict(samples) if samples is not None else _random(reference)
    _check_samples(feeds)
    if precision not in (None, *TOLERANCE):
        raise BadInput(f"precision {precision!r}: choose one of {', '.join(TOLERANCE)}")
    left, right = run_all(reference, feeds), run_all(candidate, feeds)
    if [a.shape for a in left] != [b.shape for b in right]:
        raise BadInput(f"the outputs differ in shape: {[a.shape for a in left]} against {[b.shape for b in right]}")
    tolerance = TOLERANCE[precision or _precision_of(candidate)]
    names = output_names(candidate)
    rows = tuple(_compare(n, a, b, tolerance) for n, a, b in zip(names, left, right, strict=True))
    return Parity(rows, len(next(iter(feeds.values()))))


def _check_samples(feeds: Mapping[str, Array]) -> None:
    counts = {name: len(array) if array.ndim else 0 for name, array in feeds.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise BadInput(f"the samples must hold equally many examples of every input, at least one; got {counts}")
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(f"sample {name!r} holds NaN or infinity; outputs could not be compared")


def run_all(target: Runnable, feeds: Mapping[str, Array]) -> list[Array]:
    """Return every output for all examples, computed in batches."""
    call = _caller(target, list(feeds))
    arrays = list(feeds.values())
    parts = [call([a[part] for a in arrays]) for part in in_batches(len(arrays[0]))]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def output_names(target: Runnable) -> list[str]:
    """Return the names of what comes out."""
    return [o.name for o in target.outputs] if isinstance(target, Model) else OnnxSession(target).outputs


def _caller(target: Runnable, names: list[str]) -> Any:
    if not isinstance(target, Model):
        session = OnnxSession(target)
        own = list(session.inputs)
        if len(own) != len(names):
            raise BadInput(f"the model takes {own}, the samples give {names}")
        keys = names if set(own) == set(names) else own
        return lambda arrays: session.run(dict(zip(keys, arrays, strict=True)))

    def call(arrays: list[Array]) -> list[Array]:
        try:
            with torch.inference_mode():
                found = target.module(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
        except (RuntimeError, TypeError) as fault:
            wanted = [(spec.dtype, spec.shape) for spec in target.inputs]
            raise BadInput(f"the samples do not fit the model's inputs {wanted}: {str(fault).splitlines()[0]}") from fault  # fmt: skip # noqa: E501
        return [np.asarray(x) for x in torch.utils._pytree.tree_leaves(found)]

    return call


def _random(reference: Runnable, count: int = 64) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    if isinstance(reference, Model):
        specs = {spec.name: (spec.dtype, spec.shape) for spec in reference.inputs}
    else:
        specs = OnnxSession(reference).inputs
    feeds: dict[str, Array] = {}
    for name, (kind, shape) in specs.items():
        if "float" not in kind and "double" not in kind:
            raise BadInput(f"input {name!r} is {kind}: random values would mean nothing, give samples (an .npz file)")
        rest = [size for size in shape[1:] if isinstance(size, int)]
        if len(rest) != len(shape) - 1:
            raise BadInput(f"input {name!r} has the open shape {shape}: give samples (an .npz file)")
        feeds[name] = generator.standard_normal((count, *rest), dtype=np.float32)
    return feeds


def _precision_of(target: Runnable) -> str:
    if isinstance(target, Model):
        return "fp32"
    graph = onnx.load(str(getattr(target, "path", target)), load_external_data=False).graph
    if any(node.op_type == "QuantizeLinear" or node.op_type == "DequantizeLinear" for node in graph.node):
        return "int8"
    halves = any(i.data_type == onnx.TensorProto.FLOAT16 for i in graph.initializer)
    return "fp16" if halves else "fp32"


def _compare(name: str, left: Array, right: Array, tolerance: float) -> OutputParity:
    a, b = left.astype(np.float64), right.astype(np.float64)
    if not np.isfinite(b).all():
        return OutputParity(name, float("inf"), float("inf"), 0.0, 0.0, tolerance, False)
    scale = float(np.abs(a).max()) or 1.0
    worst = float(np.abs(a - b).max())
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float((a * b).sum() / norm) if norm else float(worst == 0)
    same = float((a.argmax(-1) == b.argmax(-1)).mean()) if a.ndim > 1 else float(worst == 0)
    return OutputParity(name, worst, worst / scale, cosine, same, tolerance, worst / scale <= tolerance)
