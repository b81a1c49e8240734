"""Ranges found from a histogram are those found from all values at once, and examples stream from a file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shipworthy.export import quant_stream
from shipworthy.export.artifact import Target
from shipworthy.export.calibration import METHODS, Calibrating, Histogram, Method, observe, range_of
from shipworthy.export.npz_stream import open_npz
from shipworthy.export.quant_grid import Grid, Range, grid_of, weight_scales, whole_weights
from shipworthy.models.errors import BadInput
from shipworthy.tests.int8_nets import fed, net, noise

Array = NDArray[Any]
TAILED = np.concatenate([np.random.default_rng(0).normal(size=200_000), [40.0, -30.0]]).astype(np.float32)


def _range(values: Array, method: Method, target: Target = "cpu", parts: int = 1) -> Range:
    seen = Histogram()
    for part in np.array_split(values, parts):
        seen.add(part)
    return range_of(seen, Calibrating(method, target))


def _error(values: Array, span: Range, target: Target) -> float:
    return float(np.square(grid_of(span, target).rounded(values) - values).mean())


def test_minmax_is_exact() -> None:
    """The least and the largest value, and zero."""
    assert _range(TAILED, "minmax", parts=7) == Range(float(TAILED.min()), float(TAILED.max()))
    assert _range(np.array([2.0, 3.0]), "minmax") == Range(0, 3)


def test_percentile_is_that_of_the_values() -> None:
    """Of a million values ten are beyond the cut at each end, to the width of a bin."""
    values = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
    found = _range(values, "percentile", parts=5)
    width = 4 * float(np.abs(values).max()) / 4096
    assert (values < found.low).sum() <= 10 <= (values <= found.low + width).sum()
    assert (values > found.high).sum() <= 10 <= (values >= found.high - width).sum()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_least_error_is_the_least(target: Target) -> None:
    """No range of a fine search over the values themselves has an error that is much smaller."""
    tried = [_error(TAILED, Range(-end, end), target) for end in np.linspace(1, 40, 200)]
    assert _error(TAILED, _range(TAILED, "mse", target), target) < 1.1 * min(tried)


@pytest.mark.parametrize("values", [TAILED, np.abs(TAILED)])
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_entropy_leaves_outliers_out(values: Array, target: Target) -> None:
    """Two values far out do not cost all others their digits, and none of the bulk is cut."""
    found = _range(values, "entropy", target)
    assert 3 < found.high < 20
    bulk = values[np.abs(values) < 5.5]
    assert _error(bulk, found, target) < _error(bulk, _range(values, "minmax"), target) / 3


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_entropy_is_not_misled_by_values_that_come_again(target: Target) -> None:
    """What a layer makes of an even background, a few values again and again, is no reason to cut others off."""
    draw = np.random.default_rng(0)
    values = np.concatenate([np.repeat(draw.exponential(0.5, 8), 20_000), draw.exponential(0.5, 100_000)])
    found = _range(values, "entropy", target)
    assert (values > found.high).mean() <= 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_order_matters_little(method: Method) -> None:
    """Small batches, large ones, and the outliers first or last: the range is the same."""
    found = [_range(one, method, parts=parts) for one in (TAILED, TAILED[::-1]) for parts in (1, 50)]
    for other in found[1:]:
        assert other.high == pytest.approx(found[0].high, rel=0.02)
        assert other.low == pytest.approx(found[0].low, rel=0.02)


def test_a_histogram_does_not_grow() -> None:
    """However many values come, and however large, no count is lost and nothing more is kept."""
    seen = Histogram()
    for power in range(20):
        seen.add(np.full(10, 2.0**power))
    assert seen.counts.sum() == 200
    assert len(seen.counts) == 4096
    assert sum(value.nbytes for value in vars(seen).values() if isinstance(value, np.ndarray)) == 4096 * 8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [np.zeros(9), np.zeros(0), np.full(9, 3.0), np.full(9, -3.0), np.full(9, 1e-30)])
def test_ranges_of_little(method: Method, values: Array) -> None:
    """Zeros, nothing, or one value alone give a grid that holds them."""
    grid = grid_of(_range(values.astype(np.float32), method), "cpu")
    assert isinstance(grid, Grid)
    assert np.allclose(grid.rounded(values), values, rtol=0.02)


def test_parts_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many examples go through the graph at once that what they give back stays below the limit."""
    monkeypatch.setattr(quant_stream, "_HELD_BYTES", 8000)
    proto = net("y = Conv(x, w)", w=(8, 3, 3, 3))
    seen = list(quant_stream.values_of(proto, ["x", "y"], fed(noise(50), 50)()))
    assert sum(part.examples for part in seen) == 50
    assert [part.before for part in seen[:3]] == [0, 1, 1 + seen[1].examples]
    assert max(sum(value.nbytes for value in part.values.values()) for part in seen) <= 8000
    assert np.array_equal(np.concatenate([part.values["x"] for part in seen]), noise(50))


def test_a_fixed_batch_is_filled_up() -> None:
    """A graph that takes four examples at once gets the last again, and only new ones count."""
    proto = net("y = Conv(x, w)", given="float[4,3,8,8] x", w=(8, 3, 3, 3))
    done: list[int] = []
    found = observe(proto, ["x", "y"], fed(noise(10), 10)(), Calibrating(), done.append)
    assert found["x"] == Range(float(noise(10).min()), float(noise(10).max()))
    assert done == [4, 8, 10]


def test_values_inside_that_are_no_numbers() -> None:
    """A division by zero is named with the examples that it happens on."""
    proto = net("s = Sub(x, x) d = Div(x, s) y = Conv(d, w)", w=(8, 3, 3, 3))
    with pytest.raises(BadInput, match=r"the value 'd' becomes NaN or infinite on examples 0 to 0.*keep_float"):
        observe(proto, ["d"], fed(noise())(), Calibrating())


def test_weights_by_error() -> None:
    """Scales by squared error are never worse than by the largest weight, and better with outliers; zeros are zeros."""
    weight = np.random.default_rng(0).standard_t(3, (6, 5, 40)).astype(np.float32)
    weight[:, 2] = 0

    def error(by_error: bool) -> Array:
        scales = weight_scales(weight, 1, 4, by_error)
        back = whole_weights(weight, scales, 1, 4) * scales[None, :, None]
        return np.asarray(np.square(back - weight).sum(axis=(0, 2)))

    assert (error(True) <= error(False)).all()
    assert error(True).sum() < 0.8 * error(False).sum()
    assert error(True)[2] == 0


# --- .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_streams_what_it_holds(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts put together are the arrays, as often as they are asked for; no part is larger than the limit."""
    monkeypatch.setattr("shipworthy.export.npz_stream._CHUNK_BYTES", 3000)
    arrays = {"x": noise(37), "ids": np.arange(37 * 5).reshape(37, 5), "flag": np.arange(37) % 2 == 0}
    save(tmp_path / "d.npz", **arrays)
    stream = open_npz(tmp_path / "d.npz")
    for _ in range(2):
        parts = list(stream())
        assert max(sum(value.nbytes for value in part.values()) for part in parts) <= 3000
        for name, wanted in arrays.items():
            found = np.concatenate([part[name] for part in parts])
            assert np.array_equal(found, wanted)
            assert found.dtype == wanted.dtype


def _saved(**arrays: Array) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # arrays by name
    return file.getvalue()


def _without_end(content: bytes) -> bytes:
    file, made = io.BytesIO(content), io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:-100])
    return made.getvalue()


def _flipped(content: bytes) -> bytes:
    return content[:90_000] + bytes([content[90_000] ^ 255]) + content[90_001:]


BAD_FILES = {
    "text": (b"hello", "not an .npz file"),
    "objects": (_saved(x=np.array([{}], object)), "array 'x' is object"),
    "fortran": (_saved(x=np.asfortranarray(noise(4))), "in Fortran order; wanted numbers"),
    "scalar": (_saved(x=np.array(1, np.float32)), r"array 'x' is float32 \(\)"),
    "unequal": (_saved(x=noise(4), z=noise(5)), "equally many examples"),
    "nothing": (_saved(), "no array"),
    "no arrays": (b"PK\x05\x06" + bytes(18), "no array"),
    "cut off": (_without_end(_saved(x=noise(4))), "is cut off: got 2972 bytes of 3072"),
    "damaged": (_flipped(_saved(x=noise(400))), "array 'x' is damaged"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_none(case: str, tmp_path: Path) -> None:
    """What cannot be read says what it is and what was wanted."""
    content, words = BAD_FILES[case]
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(BadInput, match=words):
        list(open_npz(tmp_path / "d.npz")())


def test_no_file(tmp_path: Path) -> None:
    """A missing file is named."""
    with pytest.raises(BadInput, match=r"none\.npz: no such file"):
        open_npz(tmp_path / "none.npz")
