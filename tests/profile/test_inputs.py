"""Random inputs by specification, and the check of given ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from shipworthy.profile.errors import BadPlan
from shipworthy.profile.inputs import InputSpec, check_inputs, random_inputs

IMAGE = InputSpec("image", "tensor(float)", ("N", 3, 8, 8))
TOKENS = InputSpec("ids", "tensor(int64)", ("N", 16))


def refused(words: str) -> Any:
    """Expect BadPlan with these words."""
    return pytest.raises(BadPlan, match=re.escape(words))


def test_random_inputs_follow_the_specification() -> None:
    """Types and shapes are the declared ones, the batch the plan's, integers 0 or 1; equal seeds give equal inputs."""
    specs = [IMAGE, TOKENS, InputSpec("flag", "tensor(bool)", ()), InputSpec("raw", "tensor(uint8)", (None, 4))]
    made = random_inputs(specs, 5, 3, "m.onnx")
    assert {name: (array.dtype.name, array.shape) for name, array in made.items()} == {
        "image": ("float32", (5, 3, 8, 8)),
        "ids": ("int64", (5, 16)),
        "flag": ("bool", ()),
        "raw": ("uint8", (5, 4)),
    }
    assert set(np.unique(made["ids"])) == {0, 1}
    again, other = random_inputs(specs, 5, 3, "m.onnx"), random_inputs(specs, 5, 4, "m.onnx")
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not np.array_equal(made["image"], other["image"])
    assert check_inputs(specs, made, 5, "m.onnx").keys() == made.keys()


def test_a_dynamic_dimension_that_is_not_the_batch_asks_for_inputs() -> None:
    """A length cannot be invented."""
    words = "m.onnx: input 'ids' tensor(int64) (N, length): dimension 1 is dynamic and not the batch; give inputs"
    with refused(words):
        random_inputs([InputSpec("ids", "tensor(int64)", ("N", "length"))], 1, 0, "m.onnx")


def test_a_fixed_batch_must_be_the_plans() -> None:
    """A result must not claim a batch that was not run."""
    with refused("its batch is fixed, but plan.batch is 4; set batch=2, export a dynamic batch, or give inputs"):
        random_inputs([InputSpec("x", "tensor(float)", (2, 3))], 4, 0, "m.onnx")


def test_a_type_that_numpy_lacks_is_refused() -> None:
    """There is nothing to bind for a bfloat16 input."""
    with refused("input 'x' tensor(bfloat16) (2): this type has no numpy equivalent"):
        random_inputs([InputSpec("x", "tensor(bfloat16)", (2,))], 1, 0, "m.onnx")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"img": np.zeros((1, 3, 8, 8), np.float32)}, "inputs missing: ['image'], not declared: ['img']"),
        ({"image": [1.0]}, "got a list, wanted a numpy array"),
        ({"image": np.zeros((1, 3, 8, 8))}, "got float64, wanted float32; use .astype()"),
        ({"image": np.zeros((1, 8, 8, 3), np.float32)}, "got shape (1, 8, 8, 3)"),
        ({"image": np.zeros((3, 8, 8), np.float32)}, "got shape (3, 8, 8)"),
        ({"image": np.zeros((2, 3, 8, 8), np.float32)}, "got a batch of 2, but plan.batch is 1; make them equal"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    """Names, types, shapes and the batch are checked before anything runs."""
    with refused(words):
        check_inputs([IMAGE], given, 1, "m.onnx")
