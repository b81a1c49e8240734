"""Names that a user's patterns choose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ..models.errors import BadInput, first_few


def matching(patterns: Iterable[str], names: Sequence[str], what: str) -> list[str]:
    """Return the names that match a pattern (`fnmatch`), in their order.

    Args:
        patterns: the user's.
        names: all there are.
        what: what each names, for the message: `layer`.

    Raises:
        BadInput: a pattern matches none: a misspelt name would silently do nothing.
    """
    patterns = tuple(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            there = f"there are {first_few(names)}" if names else "the model has none"
            raise BadInput(f"the pattern {pattern!r} matches no {what}; {there}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
