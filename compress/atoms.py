"""Atoms: what the positions of tensor dimensions are made of, when some of them are to be removed.

A position is kept as long as all of its atoms are. Most positions have one: channel 5 of a convolution. Where a
dimension is a product of others (heads x head size, groups x channels in each) its positions have one atom of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Atoms: TypeAlias = NDArray[np.int64]
"""The atoms of a dimension's positions `(positions, columns)`; -1 fills up. A position without any always stays."""

Lost: TypeAlias = NDArray[np.bool_]
"""Whether each atom is removed; one more place at the end, for STAYS, is False."""

STAYS = -1
_ROUNDS = 64


class AtomTable:
    """Union-find over atoms, where a class may also be a product of others, or have a reason to stay."""

    def __init__(self) -> None:
        self._parent = np.empty(0, np.int64)
        self._reason = np.empty(0, np.int32)  # per root: 0, or the place of its reason in _reasons
        self._factors = np.empty((0, 1), np.int64)  # per root: itself, or what it is the product of
        self._is_product = np.empty(0, bool)
        self._reasons = [""]
        self._used = 0

    def new(self, count: int) -> Atoms:
        """Make `count` fresh atoms: a dimension `(count, 1)`."""
        first, self._used = self._used, self._used + count
        if self._used > len(self._parent):
            room = max(2 * len(self._parent), self._used, 1024)
            grown = np.arange(len(self._parent), room, dtype=np.int64)
            self._parent = np.concatenate([self._parent, grown])
            self._reason = np.concatenate([self._reason, np.zeros(len(grown), np.int32)])
            self._is_product = np.concatenate([self._is_product, np.zeros(len(grown), bool)])
            own = np.full((len(grown), self._factors.shape[1]), STAYS, np.int64)
            own[:, 0] = grown
            self._factors = np.concatenate([self._factors, own])
        return np.arange(first, self._used, dtype=np.int64)[:, None]

    def __len__(self) -> int:
        """Return how many atoms there are."""
        return self._used

    def roots(self, atoms: Atoms) -> Atoms:
        """Return the representative of each atom's class; products are not taken apart."""
        found = np.where(atoms == STAYS, STAYS, self._parent[atoms])
        while True:
            above = np.where(found == STAYS, STAYS, self._parent[found])
            if np.array_equal(above, found):
                break
            found = above
        filled = atoms != STAYS
        self._parent[atoms[filled]] = found[filled]
        return found

    def resolve(self, atoms: Atoms, *, frozen: bool = False) -> Atoms:
        """Return a dimension in terms of representatives that are no products, each once a position.

        Atoms that stay anyhow are left out, unless `frozen` asks for them.
        """
        columns = [self.roots(atoms[:, i]) for i in range(atoms.shape[1])]
        while any(self._is_product[column[column != STAYS]].any() for column in columns):
            columns = _packed([part for column in columns for part in self._taken_apart(column)])
        if not frozen:
            columns = [np.where(self._reason[column] == 0, column, STAYS) for column in columns]
        columns = _packed(columns)
        return np.stack(columns, 1) if columns else np.empty((len(atoms), 0), np.int64)

    def _taken_apart(self, column: Atoms) -> list[Atoms]:
        self._flatten(np.unique(column[self._is_product[column] & (column != STAYS)]))
        parts = np.where(column[:, None] == STAYS, STAYS, self._factors[column])
        return [self.roots(part) for part in parts.T if (part != STAYS).any()]

    def _flatten(self, products: Atoms) -> None:
        """Write products of products as products of what those are made of, one level."""
        factors = self._factors[products]
        factors = np.where(factors == STAYS, STAYS, self.roots(factors))
        if not self._is_product[factors[factors != STAYS]].any():
            return
        below = np.where(factors[:, :, None] == STAYS, STAYS, self._factors[factors]).reshape(len(products), -1)
        self._put_factors(products, np.stack(_packed(list(below.T)), 1))

    def _put_factors(self, products: Atoms, factors: Atoms) -> None:
        width = factors.shape[1]
        if width > self._factors.shape[1]:
            more = np.full((len(self._factors), width - self._factors.shape[1]), STAYS, np.int64)
            self._factors = np.concatenate([self._factors, more], 1)
        self._factors[products] = STAYS
        self._factors[products, :width] = factors
        self._is_product[products] = True

    def freeze(self, atoms: Atoms | None, reason: str) -> None:
        """Forbid the removal of these positions: of all their atoms."""
        if atoms is None:
            return
        free = self.resolve(atoms).ravel()
        free = free[free != STAYS]
        if len(free):
            self._reasons.append(reason)
            self._reason[free] = len(self._reasons) - 1

    def reason(self, root: int) -> str | None:
        """Return why a class must stay, or None when it may go."""
        return self._reasons[self._reason[root]] or None

    def unite(self, left: Atoms, right: Atoms, reason: str) -> None:
        """Make two dimensions one: position i of both is kept or removed together.

        Columns that repeat in the same way are united, a column alone becomes the product of those on the other side;
        where neither works the positions are frozen, with `reason`.
        """
        sides = left, right
        left, right = self.resolve(left), self.resolve(right)
        if left.shape == right.shape and np.array_equal(left, right):
            return
        reason = self._first_reason(*sides) or reason
        ours, others = _unmatched(left, right)
        for i, j in _alike(ours, others):
            self._unite_columns(ours[i], others[j], reason)
            ours[i] = others[j] = None  # type: ignore[call-overload]  # emptied below
        rest_ours = [column for column in ours if column is not None]
        rest_others = [column for column in others if column is not None]
        if len(rest_ours) == len(rest_others) == 1:
            self._unite_columns(rest_ours[0], rest_others[0], reason)
        elif len(rest_ours) == 1 and rest_others:
            self._make_product(rest_ours[0], np.stack(rest_others, 1), reason)
        elif len(rest_others) == 1 and rest_ours:
            self._make_product(rest_others[0], np.stack(rest_ours, 1), reason)
        else:
            for column in (*rest_ours, *rest_others):
                self.freeze(column[:, None], reason)

    def _first_reason(self, *dims: Atoms) -> str | None:
        """Return why something of these dimensions stays, if anything does."""
        for atoms in dims:
            roots = self.resolve(atoms, frozen=True).ravel()
            stays = roots[(roots != STAYS) & (self._reason[roots] != 0)]
            if len(stays):
                return self.reason(int(stays[0]))
        return None

    def _unite_columns(self, left: Atoms, right: Atoms, reason: str) -> None:
        left, right = self.roots(left), self.roots(right)
        lone = (left == STAYS) != (right == STAYS)
        if lone.any():
            self.freeze(np.where(left == STAYS, right, left)[lone][:, None], reason)
        differ = (left != right) & (left != STAYS) & (right != STAYS)
        for a, b in zip(left[differ].tolist(), right[differ].tolist(), strict=True):
            self._join(a, b)

    def _join(self, a: int, b: int) -> None:
        parent = self._parent
        while parent[a] != a:
            a = int(parent[a])
        while parent[b] != b:
            b = int(parent[b])
        if a == b:
            return
        parent[b] = a
        if self._reason[b] and not self._reason[a]:
            self._reason[a] = self._reason[b]

    def _make_product(self, whole: Atoms, factors: Atoms, reason: str) -> None:
        """Let each atom of `whole` `(n,)` stand for all of a row of `factors` `(n, m)`."""
        if np.isin(whole[whole != STAYS], factors).any():
            self.freeze(np.concatenate([whole[:, None], factors], 1), reason)
            return
        for _ in range(_ROUNDS):  # equal rows have one whole, equal wholes one row; one may bring about the other
            before = whole, factors
            whole = self._same_where_same(factors, whole[:, None])[:, 0]
            factors = self._same_where_same(whole[:, None], factors)
            if np.array_equal(before[0], whole) and np.array_equal(before[1], factors):
                break
        self._freeze_half_known(whole, factors, reason)
        roots, first = np.unique(whole, return_index=True)
        rows = np.stack(_packed(list(factors[first].T)) or [np.full(len(first), STAYS)], 1)
        several, one = (rows != STAYS).sum(1) > 1, (rows != STAYS).sum(1) == 1
        self._put_factors(roots[several & (roots != STAYS)], rows[several & (roots != STAYS)])
        for root, row in zip(roots[one].tolist(), rows[one, 0].tolist(), strict=True):
            if root != STAYS:
                self._join(row, root)

    def _same_where_same(self, keys: Atoms, values: Atoms) -> Atoms:
        """Unite the values of all rows whose keys are equal; rows without keys have nothing in common."""
        _, first, places = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        keyed = (keys != STAYS).any(1)
        leaders = np.where(keyed, first[places.ravel()], np.arange(len(keys)))
        for column in range(values.shape[1]):
            self._unite_columns(values[leaders, column], values[:, column], "is beside a position that stays")
        return np.stack([self.roots(values[:, i]) for i in range(values.shape[1])], 1)

    def _freeze_half_known(self, whole: Atoms, factors: Atoms, reason: str) -> None:
        self.freeze(factors[(whole == STAYS) | (self._reason[whole] != 0)], reason)
        self.freeze(whole[(factors == STAYS).all(1)][:, None], reason)

    def split(self, atoms: Atoms, sizes: Sequence[int]) -> list[Atoms | None]:
        """Lay a dimension out as a grid of `sizes` and return its axes, as dimensions of their own.

        What depends on one axis alone goes with it. What depends on several becomes a product of fresh atoms, one for
        each kind of slice along each axis, so that what is left is always a grid.
        """
        atoms = self.resolve(atoms)
        axes: list[list[Atoms]] = [[] for _ in sizes]
        for i in range(atoms.shape[1]):
            grid = atoms[:, i].reshape(*sizes)
            along = [axis for axis in range(len(sizes)) if sizes[axis] > 1 and (np.take(grid, [0], axis) != grid).any()]
            if not along:
                self.freeze(atoms[:1, i : i + 1], "is all there is of a dimension")
            elif len(along) == 1:
                slices = np.moveaxis(grid, along[0], 0).reshape(sizes[along[0]], -1)
                axes[along[0]].append(slices[:, 0])
            else:
                self._split_column(grid, along, axes)
        return [np.stack(columns, 1) if columns else None for columns in axes]

    def _split_column(self, grid: Atoms, along: list[int], axes: list[list[Atoms]]) -> None:
        product = []
        for axis in along:
            slices = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
            kinds = np.unique(slices, axis=0, return_inverse=True)[1].ravel()
            fresh = self.new(int(kinds.max()) + 1)[kinds, 0]
            axes[axis].append(fresh)
            shape = [1] * grid.ndim
            shape[axis] = -1
            product.append(np.broadcast_to(fresh.reshape(shape), grid.shape).ravel())
        self.unite(grid.reshape(-1, 1), np.stack(product, 1), "is split across what stays")


def merge(dims: Sequence[Atoms | None], sizes: Sequence[int]) -> Atoms | None:
    """Return neighbouring dimensions as one, row-major; None where no position of it can be removed."""
    columns: list[Atoms] = []
    for axis, atoms in enumerate(dims):
        if atoms is None:
            continue
        outer, inner = int(np.prod(sizes[:axis], dtype=int)), int(np.prod(sizes[axis + 1 :], dtype=int))
        columns.append(np.tile(np.repeat(atoms, inner, axis=0), (outer, 1)))
    return np.concatenate(columns, 1) if columns else None


def stacked(parts: Sequence[Atoms]) -> Atoms:
    """Return dimensions one after the other."""
    width = max(part.shape[1] for part in parts)
    filled = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=STAYS) for part in parts]
    return np.concatenate(filled)


def staying(count: int) -> Atoms:
    """Return a dimension whose positions all stay."""
    return np.full((count, 1), STAYS, np.int64)


def kept(atoms: Atoms, lost: Lost) -> Lost:
    """Return which positions are kept when some atoms are removed."""
    return np.logical_not(lost[atoms].any(1))


def _packed(columns: list[Atoms]) -> list[Atoms]:
    """Return as few columns as hold the atoms of every position, each once and in their order."""
    columns = _to_the_left(columns)
    again = False
    for i, column in enumerate(columns):
        for earlier in columns[:i]:
            same = (column == earlier) & (column != STAYS)
            if same.any():
                column[same] = STAYS
                again = True
    return _to_the_left(columns) if again else columns


def _to_the_left(columns: list[Atoms]) -> list[Atoms]:
    columns = [column for column in columns if (column != STAYS).any()]
    if len(columns) < 2 or all((column != STAYS).all() for column in columns[:-1]):
        return columns
    table = np.stack(columns, 1)
    table = np.take_along_axis(table, np.argsort(table == STAYS, 1, kind="stable"), 1)
    return [column.copy() for column in table.T if (column != STAYS).any()]


def _unmatched(left: Atoms, right: Atoms) -> tuple[list[Atoms], list[Atoms]]:
    """Return the columns of both sides without those that both have."""
    others = list(right.T)
    ours: list[Atoms] = []
    for column in left.T:
        twin = next((i for i, other in enumerate(others) if np.array_equal(column, other)), None)
        if twin is None:
            ours.append(column)
        else:
            others.pop(twin)
    return ours, others


def _alike(ours: list[Atoms], others: list[Atoms]) -> list[tuple[int, int]]:
    """Pair columns that repeat in the same way."""
    pairs, free = [], dict(enumerate(map(_pattern, others)))
    for i, column in enumerate(ours):
        pattern = _pattern(column)
        twin = next((j for j, other in free.items() if np.array_equal(pattern, other)), None)
        if twin is not None:
            pairs.append((i, twin))
            del free[twin]
    return pairs


def _pattern(column: Atoms) -> Atoms:
    """Return for each position the first one with the same atom."""
    _, first, places = np.unique(column, return_index=True, return_inverse=True)
    return np.asarray(first[places.ravel()], np.int64)
