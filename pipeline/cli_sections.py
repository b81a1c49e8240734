"""What `profile` adds to the warm latency: one table of sections, each with its text and its data.

Memory and energy take what they need; see `taking` for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .cli_output import columns
from .taking import TAKERS, Request, Taken, energy_of, take_layers

__all__ = ["SECTIONS", "Request", "Section", "memory_text"]

Section = tuple[str, Any]
"""Text for people, and plain data."""


def _memory(request: Request) -> Section:
    from ..profile.memory import peak_memory

    found = peak_memory(request.target, request.runtime, request.plan, request.inputs)
    return memory_text(found), found


def memory_text(found: Any) -> str:
    """Return a `Memory` as a table, with what it does not see."""
    from ..profile.memory_limit import MB

    rows = [(one.name, f"{one.bytes / MB:.1f} MB", one.note) for one in found.lines() if one.bytes is not None]
    head = [f"memory: {found.failed}"] if found.failed else []
    seen = [columns([("memory", "", "what it is"), *rows])] if rows else []
    return "\n".join([*head, *seen, *(f"not seen: {spot}" for spot in found.blind_spots)])


def _energy(request: Request) -> Section:
    found = energy_of(request)
    if found.absent:
        return found.absent, found.to_dict()
    joules = [1e3 * value for value in (found.joules, found.low, found.high) if value is not None]
    ends = f" (95 % interval {joules[1]:.4g} to {joules[2]:.4g})" if len(joules) == 3 else ""
    lines = [f"energy: {joules[0]:.4g} mJ an inference beyond idle{ends}, by {found.source}", *found.notes]
    return "\n".join(lines), found.to_dict()


def _taken(take: Callable[[Request], Taken], request: Request) -> Section:
    taken = take(request)
    return "\n".join(taken.lines), taken.found.to_dict()


def _layers(request: Request) -> Section:
    from ..models.files import write_text
    from ..profile.layer_table import NUMBERS, layer_rows, operator_rows
    from .layer_picture import layer_svg

    taken = take_layers(request)
    found = taken.found
    texts = [
        "\n".join(taken.lines),
        columns(layer_rows(found.profile, found.roofline), NUMBERS),
        columns(operator_rows(found.profile), NUMBERS),
    ]
    if request.picture:
        write_text(request.picture, layer_svg(found.profile, found.roofline))
        texts.append(f"wrote   {request.picture}")
    return "\n\n".join(texts), found.to_dict()


SECTIONS: dict[str, Callable[[Request], Section]] = {
    "memory": _memory,
    "energy": _energy,
    **{name: partial(_taken, take) for name, take in TAKERS.items()},
    "layers": _layers,
}
"""By the name of the option and of the key in the data."""
