"""Folders of images: their layouts, their faults, and what becomes of single bad files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shipworthy.models.data import Dataset, open_data
from shipworthy.models.errors import BadInput


def _write_images(
    folder: Path, count: int, *, size: tuple[int, int] = (8, 6), mode: str = "RGB", value: int = 0
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        shape = (*size, 3) if mode == "RGB" else size
        Image.fromarray(np.full(shape, value + i, np.uint8)).save(folder / f"{i:03}.png")


def _two_sided(root: Path) -> Path:
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            _write_images(root / part / name, 3, value=100 * i)
    return root


def test_folder_with_two_sides(tmp_path: Path) -> None:
    """Classes are folder names in order, sizes and channels those of the first image, pixels those of the files."""
    root = _two_sided(tmp_path)
    found = open_data(str(root))
    assert found.classes == ("cat", "dog")
    assert found.input_shape == (3, 8, 6)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = found.train.pixels(torch.tensor([5, 0]))
    assert pixels.dtype == torch.uint8
    assert pixels[:, 0, 0, 0].tolist() == [102, 0]
    grey = open_data(str(root), size=(4, 5), channels=1, mean=(0.5,), std=(0.25,))
    x, _ = grey.batch(grey.test, torch.tensor([3]))
    assert x.flatten().tolist() == pytest.approx(20 * [(100 / 255 - 0.5) / 0.25])
    assert grey.input_shape == (1, 4, 5)


def test_folder_mixes_modes(tmp_path: Path) -> None:
    """Palette, transparent, grey and colour files of any size all become the dataset's shape."""
    for name in ("a", "b"):
        _write_images(tmp_path / name, 6, mode="L")
    picture = Image.new("RGBA", (9, 9), (200, 10, 10, 128))
    picture.save(tmp_path / "a" / "x.png")
    picture.convert("RGB").quantize(4).save(tmp_path / "a" / "y.png", transparency=b"\x00\x10")
    picture.convert("RGB").save(tmp_path / "a" / "z.jpg")
    found = open_data(str(tmp_path), channels=3)
    for split in (found.train, found.test):
        assert split.pixels(torch.arange(len(split))).shape[1:] == (3, 8, 6)


def test_one_level_folder_splits_by_name(tmp_path: Path) -> None:
    """A fifth goes to the test set, no image to both, and a new file moves none of the others."""
    for name in ("a", "b"):
        _write_images(tmp_path / name, 100, size=(1, 1), mode="L")
    before = open_data(str(tmp_path))
    assert 20 <= len(before.test) <= 60
    assert len(before.train) + len(before.test) == 200
    sides = [_values(before, i) for i in (0, 1)]
    Image.new("L", (1, 1), 255).save(tmp_path / "a" / "new.png")
    after = open_data(str(tmp_path))
    assert [_values(after, i) - {(0, 255)} for i in (0, 1)] == sides
    assert after.fingerprint != before.fingerprint
    assert open_data(str(tmp_path)).fingerprint == after.fingerprint


def _values(data: Dataset, side: int) -> set[tuple[int, int]]:
    split = (data.train, data.test)[side]
    pixels = split.pixels(torch.arange(len(split))).flatten().tolist()
    return set(zip(split.labels.tolist(), pixels, strict=True))


def test_small_classes_reach_both_sides(tmp_path: Path) -> None:
    """Two images of a class are enough for one on each side, whatever their names."""
    for i in range(8):
        _write_images(tmp_path / f"class{i}", 2)
    found = open_data(str(tmp_path))
    assert (len(found.train), len(found.test)) == (8, 8)


def test_few_corrupt_images_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One unreadable file in twenty is skipped, logged and listed; five are too many."""
    for name in ("a", "b"):
        _write_images(tmp_path / name, 10)
    (tmp_path / "a" / "003.png").write_bytes(b"not an image")
    with caplog.at_level(logging.WARNING):
        found = open_data(str(tmp_path))
    assert len(found.train) + len(found.test) == 19
    assert [one.partition(":")[0] for one in found.facts["skipped"]] == ["a/003.png"]
    assert "1 of 20 images cannot be read: a/003.png" in caplog.text
    for i in range(4):
        (tmp_path / "b" / f"{i:03}.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"5 of 20 images cannot be read: .*b/000\.png"):
        open_data(str(tmp_path))


def test_image_cut_off_after_its_header_is_named(tmp_path: Path) -> None:
    """A file whose header is whole and whose pixels are not fails when it is decoded, by name."""
    root = _two_sided(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    path = root / "train" / "dog" / "001.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:80])
    found = open_data(str(root))
    with pytest.raises(BadInput, match=r"dog/001\.png: the image cannot be decoded"):
        found.train.pixels(torch.tensor([4]))


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    """Deep grey images would be clipped to white, so they are not taken."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(BadInput, match="wanted 8 bits"):
        open_data(str(tmp_path))


def test_bad_folders_are_explained(tmp_path: Path) -> None:
    """Empty folders, single classes, classes on one side only and missing sides each have their message."""

    def fault(name: str) -> str:
        with pytest.raises(BadInput) as caught:
            open_data(str(tmp_path / name))
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "no class folders" in fault("empty")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    assert "class folders without images" in fault("hollow")
    _write_images(tmp_path / "single" / "a", 4)
    assert "1 class (a)" in fault("single")
    _write_images(tmp_path / "flat" / "train" / "a", 1)
    assert "has train/ but no test/ or val/" in fault("flat")
    _write_images(tmp_path / "tested" / "test" / "a", 1)
    assert "has test/ but no train/" in fault("tested")
    _two_sided(tmp_path / "more")
    _write_images(tmp_path / "more" / "test" / "emu", 1)
    assert "classes that train/ does not have: emu" in fault("more")
    _two_sided(tmp_path / "less")
    _write_images(tmp_path / "less" / "train" / "emu", 1)
    assert "the test set has no image of class emu" in fault("less")
    _write_images(tmp_path / "lone" / "a", 3)
    _write_images(tmp_path / "lone" / "b", 1)
    assert "no image of class b" in fault("lone")


def test_options_that_a_source_cannot_heed_are_refused(tmp_path: Path) -> None:
    """An option is followed or refused, never ignored."""
    root = str(_two_sided(tmp_path))
    with pytest.raises(BadInput, match="takes no `channels`"):
        open_data("fashion-mnist", channels=3)
    with pytest.raises(BadInput, match="takes no `root`"):
        open_data(root, root="bundled")
    with pytest.raises(BadInput, match=r"wanted \(height, width\) and 1 or 3"):
        open_data(root, channels=2)
    with pytest.raises(BadInput, match="2 numbers, the images 3 channels"):
        open_data(root, mean=(0.1, 0.2))
