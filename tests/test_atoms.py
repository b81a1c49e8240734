"""Atoms: whatever was said to be one stays one, whatever is removed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipworthy.compress.atoms import STAYS, Atoms, AtomTable, Lost, kept, merge, stacked, staying

GRIDS = [(2, 6), (3, 4), (4, 3), (6, 2), (2, 2, 3), (12, 1)]


def _lost(table: AtomTable, dims: list[Atoms], data: st.DataObject) -> Lost:
    """Draw free atoms to remove."""
    free = sorted({int(a) for dim in dims for a in table.resolve(dim).ravel() if a != STAYS})
    lost = np.zeros(len(table) + 1, np.bool_)
    lost[list(data.draw(st.sets(st.sampled_from(free))) if free else [])] = True
    return lost


@settings(derandomize=True, max_examples=300)
@given(data=st.data())
def test_what_is_united_is_kept_together(data: st.DataObject) -> None:
    """After any joining, splitting, tiling and freezing, removal leaves united dimensions alike and splits a grid."""
    table = AtomTable()
    dims = [table.new(12) for _ in range(4)]
    pairs: list[tuple[Atoms, Atoms]] = []
    grids: list[tuple[Atoms, tuple[int, ...], list[Atoms | None]]] = []
    for _ in range(data.draw(st.integers(1, 8))):
        left, right = (dims[data.draw(st.integers(0, len(dims) - 1))] for _ in range(2))
        what = data.draw(st.sampled_from(["unite", "split", "merge", "turn", "stack", "freeze"]))
        if what == "unite":
            table.unite(left, right, "told")
            pairs.append((left, right))
        elif what == "split":
            sizes = data.draw(st.sampled_from(GRIDS))
            grids.append((left, sizes, table.split(left, sizes)))
        elif what == "merge":
            dims.append(merge([table.new(3), table.new(4)], [3, 4]))  # type: ignore[arg-type]  # not None
        elif what == "turn":
            dims.append(left[np.arange(12).reshape(3, 4).T.ravel()])
        elif what == "stack":
            dims.append(stacked([left[:6], staying(2), right[:4]]))
        else:
            table.freeze(left[data.draw(st.integers(0, 11)) :][:1], "told")
    lost = _lost(table, dims, data)
    for left, right in pairs:
        np.testing.assert_array_equal(kept(table.resolve(left), lost), kept(table.resolve(right), lost))
    for whole, sizes, axes in grids:
        cut = [
            np.ones(n, bool) if a is None else kept(table.resolve(a), lost) for a, n in zip(axes, sizes, strict=True)
        ]
        wanted = cut[0]
        for one in cut[1:]:
            wanted = np.logical_and.outer(wanted, one)
        np.testing.assert_array_equal(kept(table.resolve(whole), lost).reshape(sizes), wanted)


def test_a_split_makes_products() -> None:
    """Of twelve positions in a grid of three by four, either a row or a column goes; both axes are free."""
    table = AtomTable()
    whole = table.new(12)
    rows, columns = table.split(whole, [3, 4])
    assert rows is not None
    assert columns is not None
    lost = np.zeros(len(table) + 1, np.bool_)
    lost[[rows[1, 0], columns[2, 0]]] = True
    left = kept(table.resolve(whole), lost).reshape(3, 4)
    assert left.tolist() == [[True, True, False, True], [False] * 4, [True, True, False, True]]


def test_another_grid_refines_the_first() -> None:
    """Three by four, then six by two: rows split in halves, so that both views stay grids."""
    table = AtomTable()
    whole = table.new(12)
    table.split(whole, [3, 4])
    rows, columns = table.split(whole, [6, 2])
    assert rows is not None
    assert columns is not None
    assert len(np.unique(table.resolve(whole)[:, 0])) == 3
    assert table.resolve(rows).shape == (6, 2)


def test_freezing_goes_to_all_that_is_one_with_it() -> None:
    """A reason reaches a class whenever it is given, and the factors of a product."""
    table = AtomTable()
    a, b, c = table.new(3), table.new(3), table.new(12)
    table.freeze(a[:1], "told")
    table.unite(a, b, "beside it")
    assert [table.reason(int(root)) for root in table.roots(b)[:, 0]] == ["told", None, None]
    rows, columns = table.split(c, [3, 4])
    table.freeze(c[:1], "first")
    assert rows is not None
    assert columns is not None
    assert table.reason(int(table.roots(rows)[0, 0])) == "first"
    assert table.resolve(c).shape[1] == 2
    assert not table.resolve(c[:1]).size


@pytest.mark.parametrize("other", [(4, 3), (2, 6)])
def test_products_that_do_not_fit_are_kept(other: tuple[int, int]) -> None:
    """Where positions are products of different grids on both sides, none of them goes."""
    table = AtomTable()
    left = merge([table.new(3), table.new(4)], [3, 4])
    right = merge([table.new(other[0]), table.new(other[1])], list(other))
    assert left is not None
    assert right is not None
    table.unite(left, right, "does not fit")
    assert not table.resolve(left).size
    assert table.reason(int(table.roots(right)[0, 0])) == "does not fit"
