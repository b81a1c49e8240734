"""What `inspect --groups` says: the groups of channels that pruning sees, and what `trim` can remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cli_output import columns
from .report_numbers import fixed

if TYPE_CHECKING:
    from ..compress.group_table import GroupRow, GroupTable
    from ..models.model import Model
    from ..models.summary import Summary


@dataclass(frozen=True)
class Removable:
    """A residual block or a layer that `trim` can remove, with its share of parameters and MACs, 0 to 1."""

    path: str
    kind: str
    params_share: float
    macs_share: float


def find_removable(model: Model, summary: Summary) -> tuple[Removable, ...]:
    """Return all that `trim` can remove, in the order of the graph."""
    from ..compress.candidates import find_candidates

    params, macs = summary.params or 1, summary.macs or 1
    return tuple(Removable(c.path, c.kind, c.params / params, c.macs / macs) for c in find_candidates(model))


def groups_data(table: GroupTable, removable: Sequence[Removable]) -> dict[str, Any]:
    """Return what `--json` adds to the summary."""
    return {"groups": table.rows, "unknown": table.unknown, "removable": removable}


def groups_text(table: GroupTable, removable: Sequence[Removable]) -> str:
    """Return both tables, the largest shares first, and what is left out of them."""
    shown = sorted(channel_groups(table), key=lambda row: row.share, reverse=True)
    head = ("group", "width", "kind", "members", "params", "MACs", "state")
    cells = [
        (row.name, row.width, row.kind, len(row.members), share_text(row.params_share), share_text(row.macs_share),
         state(row))
        for row in shown
    ]  # fmt: skip
    parts = [
        "groups of channels, each with the share of the model that goes with all of it (groups overlap)",
        columns([head, *cells], frozenset((1, 3, 4, 5))) if cells else "none",
        "\n".join(filter(None, [others_text(table), unknown_text(table)])),
        "what trim can remove",
        _removable_text(removable),
    ]
    return "\n\n".join(filter(None, parts))


def channel_groups(table: GroupTable) -> list[GroupRow]:
    """Return the groups that are worth a row of their own."""
    return [row for row in table.rows if row.kind != "no channels"]


def state(row: GroupRow) -> str:
    """Return whether a group can be pruned, and why not."""
    return f"frozen: {row.frozen}" if row.frozen else "prunable"


def share_text(share: float) -> str:
    """Return a share, 0 to 1, in per cent with one decimal."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{fixed(share * 100, 1)} %"


def others_text(table: GroupTable) -> str:
    """Return how many dimensions have no row, or nothing."""
    others = len(table.rows) - len(channel_groups(table))
    return f"and {counted(others, 'dimension that is', 'dimensions that are')} no channels" if others else ""


def unknown_text(table: GroupTable) -> str:
    """Return which operators are not followed, or nothing."""
    return f"operators without a rule, which keep what reaches them: {', '.join(table.unknown)}" * bool(table.unknown)


def counted(number: int, one: str, many: str) -> str:
    """Return `1 group` or `3 groups`."""
    return f"{number:,} {one if number == 1 else many}"


def _removable_text(rows: Sequence[Removable]) -> str:
    if not rows:
        return "nothing: no residual block, and no layer that keeps its input's shape"
    cells = [(row.path, row.kind, share_text(row.params_share), share_text(row.macs_share)) for row in rows]
    return columns([("block or layer", "kind", "params", "MACs"), *cells], frozenset((2, 3)))
