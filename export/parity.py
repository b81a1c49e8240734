"""Whether two forms of a model are the same function, output by output, and where they part if they are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from torch.fx import GraphModule

from ..models.errors import BadInput
from ..models.model import Model
from ..models.schemes import QUANTIZED
from .parity_cost import TaskCost, task_cost
from .parity_layers import BadLayer, Place, Search
from .parity_noise import TOLERANCE, NoisyTaps, distance, output_noises, tolerance
from .parity_runs import Opened, Runnable, examples, opened, pick, precision_of, run_all
from .parity_taps import OnnxTaps, Open, Taps, open_on_cpu
from .parity_torch import TorchTaps, traced

Array = NDArray[Any]

_FEW = 8
"""Examples that layers are compared on: those whose outputs are furthest off."""

_CLOSED = "the layers of an engine or a callable cannot be read: compare the ONNX file that it was made of"

_MANY = 64
"""Examples that the cost of a layer is taken on."""


@dataclass(frozen=True)
class OutputParity:
    """One output of the candidate against the reference's.

    `relative` is `max_abs` over the largest magnitude in the reference. `cosine` is of the flattened outputs.
    `top1_agreement` is the share of examples with the same largest entry, None for outputs that are not
    `(examples, scores)`. `noise` is how far rounding to the candidate's precision moves the reference; None where that
    is not known.
    """

    name: str
    max_abs: float
    relative: float
    cosine: float
    top1_agreement: float | None
    tolerance: float
    passed: bool
    noise: float | None = None


@dataclass(frozen=True)
class Parity:
    """All outputs, over `samples` examples.

    On a breach `layer` is the one that made it and `cost` what that costs; `notes` say why there is none, and what ran
    elsewhere than it was asked for.
    """

    outputs: tuple[OutputParity, ...]
    samples: int
    precision: str = "fp32"
    layer: BadLayer | None = None
    cost: TaskCost | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.passed for output in self.outputs)


@dataclass(frozen=True, eq=False)
class Comparing:
    """How two forms of a model are compared.

    Attributes:
        labels: the right class of each sample `(examples,)`, for what a breach costs.
        layers: on a breach, look for the layer that made it.
        open_file: how the candidate's file and parts of it run.
    """

    labels: Array | None = None
    layers: bool = True
    open_file: Open = field(default=open_on_cpu)


def parity(
    reference: Runnable,
    candidate: Runnable,
    samples: Mapping[str, Array] | None = None,
    precision: str | None = None,
    how: Comparing | None = None,
) -> Parity:
    """Run both on the same samples and compare every output; on a breach, find the layer that made it.

    The tolerance is a multiple of what rounding to the candidate's precision does to the reference on these samples.

    Args:
        reference: a captured model, an ONNX file, or a callable from inputs by name to outputs.
        candidate: the same of what is in question.
        samples: name -> array, batch first; None draws 64 standard normal examples by the reference's inputs.
        precision: of the candidate, a key of `TOLERANCE`; None reads it from its graph.
        how: labels, the search for layers, and the runtime.

    Raises:
        BadInput: a file cannot be read, samples do not fit or hold NaN, the outputs differ in number or shape, or
            `precision` is unknown.
    """
    how = how or Comparing()
    if precision not in (None, *TOLERANCE):
        raise BadInput(f"precision {precision!r}: choose one of {', '.join(TOLERANCE)}")
    right, other = opened(reference), opened(candidate, how.open_file)
    feeds = dict(samples) if samples is not None else _random(right)
    count = _check_samples(right, feeds, how.labels)
    left, found = run_all(right, feeds), run_all(other, feeds)
    if [a.shape for a in left] != [b.shape for b in found]:
        raise BadInput(f"the outputs differ in shape: {[a.shape for a in left]} against {[b.shape for b in found]}")
    known = precision or _precision_of(candidate)
    noises = output_noises(right, feeds, left, known)
    names = other.outputs or right.outputs or tuple(f"output_{i}" for i in range(len(left)))
    rows = tuple(compare(*row, known) for row in zip(names, left, found, noises, strict=True))
    made = Parity(rows, count, known)
    return (
        made
        if made.passed or not how.layers
        else _with_layer(made, _Breach(right, other, feeds, left, found, how.labels))
    )


def _check_samples(reference: Opened, feeds: Mapping[str, Array], labels: Array | None) -> int:
    """Return how many examples there are."""
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(f"sample {name!r} holds NaN or infinity; outputs could not be compared")
    count = examples(reference, feeds) or 1
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (count,)):
        raise BadInput(f"labels: got {labels.dtype} {labels.shape}, wanted whole numbers of shape ({count},)")
    return count


def _random(reference: Opened, count: int = 64) -> dict[str, Array]:
    if reference.inputs is None:
        raise BadInput("the reference is a callable, which tells nothing of its inputs: give samples")
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for name, (kind, shape) in reference.inputs.items():
        if "float" not in kind and "double" not in kind:
            raise BadInput(f"input {name!r} is {kind}: random values would mean nothing, give samples (an .npz file)")
        rest = [size for size in shape[1:] if isinstance(size, int)]
        if len(rest) != len(shape) - 1:
            raise BadInput(f"input {name!r} has the open shape {shape}: give samples (an .npz file)")
        feeds[name] = generator.standard_normal((count, *rest), dtype=np.float32)
    return feeds


def _precision_of(target: Runnable) -> str:
    return "fp32" if isinstance(target, Model) or callable(target) else precision_of(target)


def compare(name: str, left: Array, right: Array, noise: float | None, precision: str) -> OutputParity:
    """Return how far one output is from what it should be; numbers that are none on both sides are equal."""
    off, allowed = distance(left, right), tolerance(precision, noise)
    a, b = left.astype(np.float64), right.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    worst = (
        float(np.abs(a - b, where=both, out=np.zeros_like(a)).max(initial=0.0)) if np.isfinite(off) else float("inf")
    )
    a, b = a[both], b[both]
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = (float((a * b).sum() / norm) if norm else float(worst == 0)) if np.isfinite(off) else 0.0
    same = float((left.argmax(-1) == right.argmax(-1)).mean()) if _is_scores(left) else None
    return OutputParity(name, worst, off, cosine, same, allowed, off <= allowed, noise)


def _is_scores(output: Array) -> bool:
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


@dataclass(frozen=True, eq=False)
class _Breach:
    """Both sides of a comparison that failed, with what they gave."""

    right: Opened
    other: Opened
    feeds: Mapping[str, Array]
    left: list[Array]
    found: list[Array]
    labels: Array | None

    def few(self) -> dict[str, Array]:
        """Return the examples that are furthest off, as many as both sides take at once, by the reference's names."""
        feeds = self.right.named(self.feeds)
        size, count = self.other.batch or self.right.batch, examples(self.right, feeds)
        off = [_distances(a, b) for a, b in zip(self.left, self.found, strict=True) if a.ndim and len(a) == count]
        order = np.argsort(-np.max(off, axis=0), kind="stable") if off else np.arange(count or 0)
        places = np.sort(order[: size or _FEW])
        filled = np.concatenate([places, np.repeat(places[-1:], size - len(places))]) if size else places
        return pick(self.right, feeds, filled)

    def many(self) -> dict[str, Array]:
        """Return examples that a task is judged on, by the reference's names."""
        feeds = self.right.named(self.feeds)
        count = min(examples(self.right, feeds) or 1, self.other.batch or self.right.batch or _MANY)
        return pick(self.right, feeds, np.arange(count))


def _distances(left: Array, right: Array) -> NDArray[np.float64]:
    """Return how far each example is off, `(examples,)`."""
    gaps = np.nan_to_num(np.abs(left.astype(np.float64) - right.astype(np.float64)), nan=np.inf, posinf=np.inf)
    found: NDArray[np.float64] = gaps.reshape(len(gaps), -1).max(axis=1, initial=0.0)
    return found


def _with_layer(made: Parity, breach: _Breach) -> Parity:
    """Add the layer and its cost; the comparison itself stands whatever becomes of the search."""
    if breach.right.source is None or breach.other.source is None:
        return replace(made, notes=(_CLOSED,))
    try:
        search = _search(made, breach)
        broken = any(not np.isfinite(row.relative) for row in made.outputs)
        layer, place = search.find() if made.precision not in QUANTIZED or broken else search.largest()
        return replace(made, layer=layer, cost=_cost(made, breach, search, place))
    except Exception as fault:
        said = str(fault).strip().splitlines() or [type(fault).__name__]
        return replace(made, notes=(f"the layers could not be compared: {said[0]}",))


def _search(made: Parity, breach: _Breach) -> Search:
    source = _graph(breach.right)
    right, other = _taps(source, open_on_cpu), _taps(_graph(breach.other), breach.other.open_file)
    feeds = dict(zip(right.inputs, breach.few().values(), strict=True))
    return Search(right, NoisyTaps(source, made.precision), other, made.precision, feeds)


def _cost(made: Parity, breach: _Breach, search: Search, place: Place) -> TaskCost | None:
    scores = next((i for i, row in enumerate(made.outputs) if row.top1_agreement is not None), None)
    size = breach.other.batch or breach.right.batch
    feeds = breach.many()
    count = examples(breach.right, feeds)
    if scores is None or count is None or (size and count < size):
        return None
    own = dict(zip(search.reference.inputs, feeds.values(), strict=True))
    return task_cost(search, place, own, scores, None if breach.labels is None else breach.labels[:count])


def _graph(one: Opened) -> GraphModule | ModelProto:
    if isinstance(one.source, Model):
        return traced(one.source)
    return one.source  # type: ignore[return-value]  # a callable's None does not come here


def _taps(source: GraphModule | ModelProto, open_file: Open) -> Taps:
    return TorchTaps(source) if isinstance(source, GraphModule) else OnnxTaps(source, open_file)


__all__ = ["TOLERANCE", "BadLayer", "Comparing", "OutputParity", "Parity", "Runnable", "TaskCost", "compare", "parity"]
