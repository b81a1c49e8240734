"""Run examples through a graph part by part, and look at values inside it: no more than one part is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from ..models.errors import BadInput
from .parity_taps import open_graph
from .session import OnnxSession

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Examples = Callable[[], Iterable[Feeds]]
"""Gives calibration examples, batch first, as often as it is called; of any number at a time."""

_MOST_EXAMPLES = 256
_HELD_BYTES = 64e6
"""Values inside a graph that one run may give back."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a part of the examples makes of a graph's values.

    Attributes:
        examples: how many there are in this part.
        before: how many came before it.
        values: by name.
    """

    examples: int
    before: int
    values: Mapping[str, Array]


def values_of(proto: ModelProto, names: Sequence[str], feeds: Iterable[Feeds]) -> Iterator[Seen]:
    """Yield values of a graph on all examples, in parts.

    A graph of one batch size gets the last example again where there are too few.

    Args:
        proto: the graph.
        names: of values in it, inputs among them.
        feeds: inputs by name, batch first, of any number of examples at a time.

    Raises:
        BadInput: the examples do not fit the graph's inputs.
    """
    inputs = {value.name for value in proto.graph.input}
    inner = [name for name in dict.fromkeys(names) if name not in inputs]
    session = open_graph(_with_outputs(proto, inner), OnnxSession)
    parts, before = _Parts(session.fixed_batch), 0
    for count, part in parts.of(feeds):
        given = dict(zip(session.outputs, session.run(part), strict=True)) if inner else {}
        values = {name: part[name] if name in inputs else given[name] for name in names}
        parts.took(values)
        yield Seen(count, before, values)
        before += count


def refuse_no_numbers(seen: Seen) -> None:
    """Refuse values that are NaN or infinite.

    Raises:
        BadInput: names the value, and the examples.
    """
    for name, array in seen.values.items():
        if not np.isfinite(array).all():
            last = seen.before + seen.examples - 1
            raise BadInput(
                f"calibration: the value {name!r} becomes NaN or infinite on examples {seen.before} to {last}; look at "
                "the data there, or leave its operator in floating point (keep_float)"
            )


def largest_by_channel(proto: ModelProto, axes: Mapping[str, int], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """Return the largest magnitude of each channel of values, `(channels,)` by name.

    Args:
        proto: an fp32 graph.
        axes: the dimension of the channels, by the value's name.
        feeds: examples.

    Raises:
        BadInput: a value becomes NaN or infinite, or the examples do not fit.
    """
    found: dict[str, Array] = {}
    for seen in values_of(proto, list(axes), feeds) if axes else ():
        refuse_no_numbers(seen)
        for name, array in seen.values.items():
            largest = np.abs(_rows(array, axes[name])).max(axis=0, initial=0.0)
            found[name] = np.maximum(found.get(name, 0.0), largest)
    return found


def means_by_channel(proto: ModelProto, axes: Mapping[str, int], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """Return the mean of each channel of values over examples and places, `(channels,)` float64 by name.

    Args:
        proto: a graph.
        axes: the dimension of the channels, by the value's name.
        feeds: examples.

    Raises:
        BadInput: the examples do not fit.
    """
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for seen in values_of(proto, list(axes), feeds) if axes else ():
        for name, array in seen.values.items():
            rows = _rows(array, axes[name])
            sums[name] = sums.get(name, 0.0) + rows.sum(axis=0, dtype=np.float64)
            counts[name] = counts.get(name, 0) + len(rows)
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _rows(array: Array, axis: int) -> Array:
    """Return values as `(others, channels)`."""
    rows: Array = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    return rows


def _with_outputs(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(proto)
    there = {value.name for value in made.graph.output}
    made.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in there)
    return made


class _Parts:
    """Cuts examples into parts so small that their values are; how large these are the first one tells."""

    def __init__(self, fixed: int | None) -> None:
        self._fixed, self._size = fixed, fixed or 1

    def took(self, values: Feeds) -> None:
        """Note what the first part gave back."""
        if self._fixed is None and self._size == 1:
            one = sum(array.nbytes for array in values.values())
            self._size = max(2, min(_MOST_EXAMPLES, int(_HELD_BYTES // max(one, 1))))

    def of(self, feeds: Iterable[Feeds]) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield all examples, with the number of those that are new."""
        for given in feeds:
            count, start = len(next(iter(given.values()))), 0
            while start < count:
                stop = min(start + self._size, count)
                places = np.minimum(np.arange(start, start + self._size if self._fixed else stop), count - 1)
                new, start = stop - start, stop
                yield new, {name: array[places] for name, array in given.items()}
