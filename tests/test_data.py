"""Data sources give what they promise, and say what is wrong with what they are given."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from shipworthy.models import data_fashion
from shipworthy.models.data import Dataset, Preprocessing, open_data
from shipworthy.models.data_pack import pack, pick
from shipworthy.models.errors import BadInput


@pytest.fixture(scope="module")
def fashion() -> Dataset:
    """The images in the package."""
    return open_data("fashion-mnist", "bundled")


# --- Fashion-MNIST


def test_bundled_images_are_balanced_and_small(fashion: Dataset) -> None:
    """The package holds 800 training and 1,000 test images of each class, in files below 5 MB."""
    assert torch.bincount(fashion.train.labels).tolist() == [800] * 10
    assert torch.bincount(fashion.test.labels).tolist() == [1000] * 10
    assert fashion.input_shape == (1, 28, 28)
    assert fashion.facts["training_set"] == "bundled subset of 8,000 images"
    assert all(path.stat().st_size < 5e6 for path in data_fashion.ASSETS.glob("fashion_mnist_*.xz"))


def test_batches_are_floats_in_0_to_1(fashion: Dataset) -> None:
    """A batch is float32 in 0 to 1 with its own labels, and upright: trousers are tall and narrow."""
    trousers = torch.nonzero(fashion.test.labels == 1)[:200, 0]
    x, y = fashion.batch(fashion.test, trousers)
    assert x.shape == (200, 1, 28, 28)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert y.tolist() == [1] * 200
    assert float(x[:, :, :, :6].mean()) < 0.5 * float(x[:, :, :6].mean())


def test_sample_is_balanced_seeded_and_nested(fashion: Dataset) -> None:
    """The same seed picks the same images, equally many of a class; fewer are the first of more; too many are all."""
    chosen = fashion.sample(100, 7)
    assert torch.bincount(fashion.train.labels[chosen]).tolist() == [10] * 10
    assert len(set(chosen.tolist())) == 100
    assert torch.equal(chosen, fashion.sample(100, 7))
    assert torch.equal(chosen[:35], fashion.sample(35, 7))
    assert not torch.equal(chosen, fashion.sample(100, 8))
    assert sorted(fashion.sample(99_999, 0).tolist()) == list(range(8000))
    with pytest.raises(BadInput, match="cannot sample 0"):
        fashion.sample(0, 0)


def test_fingerprint_knows_data_and_preprocessing(fashion: Dataset) -> None:
    """The fingerprint repeats, and changes with the preprocessing."""
    assert open_data("fashion-mnist", "bundled").fingerprint == fashion.fingerprint
    assert open_data("fashion-mnist", "bundled", mean=(0.5,), std=(0.5,)).fingerprint != fashion.fingerprint


def _idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def _full_root(root: Path, fashion: Dataset) -> Path:
    raw = root / "FashionMNIST" / "raw"
    labels = fashion.test.labels.numpy().astype(np.uint8)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        _idx(raw / f"{name}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        _idx(raw / f"{name}-labels-idx1-ubyte", np.resize(labels, count))
    return raw


def test_full_set_is_found_and_checked(tmp_path: Path, fashion: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision root is used whether given or named by the environment; a damaged or foreign file is refused."""
    raw = _full_root(tmp_path, fashion)
    monkeypatch.setattr(data_fashion, "SYSTEM_ROOT", tmp_path / "absent")
    assert open_data("fashion-mnist").facts["train_images"] == 8000
    monkeypatch.setenv("SHIPWORTHY_DATA", str(tmp_path))
    for opened in (open_data("fashion-mnist"), open_data("fashion-mnist", raw)):
        assert opened.facts["training_set"] == f"full training set, 60,000 images from {raw}"
        assert len(opened.train) == 60_000
    labels = raw / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-5])
    with pytest.raises(BadInput, match="promises 10000 bytes, the file holds 9995"):
        open_data("fashion-mnist")
    _idx(labels, np.zeros(99, np.uint8))
    with pytest.raises(BadInput, match=r"t10k-labels.*\(99,\), wanted \(10000,\)"):
        open_data("fashion-mnist", tmp_path)
    labels.unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(BadInput, match="not a readable gzip"):
        open_data("fashion-mnist", tmp_path)
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(BadInput, match=r"lacks .*t10k-labels-idx1-ubyte"):
        open_data("fashion-mnist", raw)
    with pytest.raises(BadInput, match="no such folder"):
        open_data("fashion-mnist", tmp_path / "nowhere")


def test_packing_gives_equal_bytes_and_reads_back(tmp_path: Path) -> None:
    """Two packings of one set are the same bytes, and reading them gives the images that were put in."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (40, 5, 4), np.uint8), np.arange(40).astype(np.uint8) % 4
    for name in ("train", "t10k"):
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            _idx(tmp_path / "raw", array)
            (tmp_path / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress((tmp_path / "raw").read_bytes()))
    for out in ("a", "b"):
        pack(tmp_path, tmp_path / out, per_class=3)
    first, second = ((tmp_path / out / "fashion_mnist_train.npy.xz").read_bytes() for out in ("a", "b"))
    assert first == second
    found, truth = data_fashion.read_packed(tmp_path / "a" / "fashion_mnist_train.npy.xz")
    chosen = pick(labels, 3, 0)
    np.testing.assert_array_equal(found[:, 0], images[chosen])
    assert np.bincount(truth).tolist() == [3] * 4


# --- preprocessing


def test_preprocessing_normalises_each_channel() -> None:
    """Bytes become `(x / 255 - mean) / std`, channel by channel, and the bytes stay."""
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before, mean, std = pixels.clone(), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    found = Preprocessing(mean=mean, std=std)(pixels)
    wanted = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(pixels, before)
    assert Preprocessing(mean=mean, std=std).to_dict() == {"scale": 1 / 255, "mean": list(mean), "std": list(std)}


def test_preprocessing_refuses_what_it_cannot_apply() -> None:
    """Unequal lengths, a zero deviation and floats are bad input."""
    with pytest.raises(BadInput, match="one number for each channel"):
        Preprocessing(mean=(0.0, 0.0), std=(1.0,))
    with pytest.raises(BadInput, match="std must be positive"):
        Preprocessing(std=(0.0,))
    with pytest.raises(BadInput, match=r"got torch\.float32"):
        Preprocessing()(torch.rand(1, 1, 2, 2))


def test_unknown_sources_are_explained() -> None:
    """A misspelt name gets the nearest right one, a missing folder the list of what is possible."""
    with pytest.raises(BadInput, match="did you mean fashion-mnist"):
        open_data("fashon-mnist")
    with pytest.raises(BadInput, match="neither a known name nor a folder; give fashion-mnist"):
        open_data("/no/such/place")


# --- functions

GOOD = """
import numpy as np
def data():
    images = np.arange(6 * 8 * 5 * 3, dtype=np.uint8).reshape(6, 8, 5, 3)
    labels = np.array([0, 1, 0, 1, 0, 1])
    return {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels,
            "classes": ["no", "yes"], "mean": [0.5, 0.5, 0.5], "std": (0.5, 0.5, 0.5)}
def pair():
    import torch
    images, labels = torch.zeros(4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
    return images, labels, images, labels
def changed(**new):
    return {**data(), **new}
"""


def _function(tmp_path: Path, body: str) -> str:
    (tmp_path / "own.py").write_text(f"{GOOD}\ndef made():\n    {body}\n")
    return f"{tmp_path / 'own.py'}:made"


def test_functions_give_arrays_or_tensors(tmp_path: Path) -> None:
    """Channels may come last, names and numbers are taken, and a plain tuple of tensors does as well."""
    found = open_data(_function(tmp_path, "return data()"))
    assert found.classes == ("no", "yes")
    assert found.input_shape == (3, 8, 5)
    assert found.train.pixels(torch.tensor([0]))[0, :, 0, 1].tolist() == [3, 4, 5]
    assert found.preprocessing.to_dict()["mean"] == [0.5, 0.5, 0.5]
    own = open_data(_function(tmp_path, "return data()"), mean=(0.1,), std=(1.0,))
    assert own.preprocessing.to_dict()["mean"] == [0.1]
    plain = open_data(_function(tmp_path, "return pair()"))
    assert plain.classes == ("0", "1", "2")
    assert plain.input_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "returned a int, wanted a mapping"),
        ("return 1, 2", "returned a tuple of 2"),
        ("return changed(train_image=3)", "unknown key 'train_image'; did you mean train_images"),
        ("return changed(test_labels=None)", "returned no test_labels"),
        ("return changed(train_images=data()['train_images'] / 255)", "train_images are float64, wanted bytes"),
        ("return changed(train_images=np.zeros((6, 9, 9, 9), 'uint8'))", r"shape \(6, 9, 9, 9\)"),
        ("return changed(train_images=np.zeros((6, 9), 'uint8'))", r"shape \(6, 9\)"),
        ("return changed(test_images=np.zeros((6, 3, 9, 9), 'uint8'))", r"test_images \(3, 9, 9\)"),
        ("return changed(train_labels=np.zeros(6))", "train_labels are float64"),
        ("return changed(train_labels=np.array([0, 1]))", "6 train_images, but 2 train_labels"),
        ("return changed(train_labels=np.array([0, 1, 0, 1, 0, 9]))", "run from 0 to 9, but there are 2 classes"),
        ("return changed(train_labels=np.zeros(6, int))", "training set has no image of class yes"),
        ("return changed(classes=['one'])", r"1 class \(one\)"),
        ("return [np.zeros((0, 4, 4), 'uint8'), np.zeros(0, int)] * 2", "0 class"),
    ],
)  # fmt: skip
def test_functions_that_return_something_else_are_explained(tmp_path: Path, body: str, message: str) -> None:
    """Every wrong return has a message that says what came and what is wanted."""
    with pytest.raises(BadInput, match=message):
        open_data(_function(tmp_path, body))


def test_faults_in_a_function_show_its_line(tmp_path: Path) -> None:
    """An exception inside the user's code names the user's line, not ours or a library's."""
    spec = _function(tmp_path, "return np.zeros(3).reshape(7)")
    line = (tmp_path / "own.py").read_text().splitlines().index("    return np.zeros(3).reshape(7)") + 1
    with pytest.raises(BadInput, match=rf"own\.py:{line}, in made: ValueError"):
        open_data(spec)
