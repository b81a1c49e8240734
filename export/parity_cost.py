"""What a bad layer costs the task, and how much of it comes back when that layer alone is computed as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .parity_layers import Place, Search
from .parity_taps import Array, Feeds


@dataclass(frozen=True)
class TaskCost:
    """Shares (0 to 1) of the samples: right by their labels, or of one mind with the reference where there are none.

    Attributes:
        by: `accuracy` or `agreement`.
        samples: how many.
        reference: of the reference.
        candidate: of the candidate.
        repaired: of the candidate with this one layer computed by the reference, from the candidate's own tensors.
    """

    by: str
    samples: int
    reference: float
    candidate: float
    repaired: float


def task_cost(search: Search, place: Place, feeds: Feeds, output: int, labels: Array | None = None) -> TaskCost:
    """Run the samples through the reference, the candidate, and the candidate with one layer of the reference.

    Args:
        search: what found the layer.
        place: where it lies.
        feeds: samples by the reference's names of the inputs.
        output: the place among the outputs of that which holds scores `(samples, classes)`.
        labels: the right classes `(samples,)`.
    """
    name = search.candidate.outputs[output]
    inputs = dict(zip(search.candidate.inputs, (feeds[n] for n in search.reference.inputs), strict=True))
    before = search.candidate.take(place.start.live, inputs)
    known = {search.known[n]: array for n, array in before.items()}
    anew = search.reference.take([search.known[n] for n in place.end.live], {**feeds, **known})
    after = {n: anew[search.known[n]] for n in place.end.live}
    truth = search.reference.take([search.known[name]], feeds)[search.known[name]]
    scores = [truth, *(search.candidate.take([name], {**inputs, **given})[name] for given in ({}, after))]
    right = truth.argmax(-1) if labels is None else labels
    shares = [_share(one, right) for one in scores]
    return TaskCost("agreement" if labels is None else "accuracy", len(right), *shares)


def _share(scores: Array, right: NDArray[np.int64]) -> float:
    found = np.where(np.isfinite(scores).all(-1), scores.argmax(-1), -1)
    return float((found == right).mean())
