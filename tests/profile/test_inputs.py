"""Random inputs by specification, and the check of given ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from shipworthy.profile.dims import value_of
from shipworthy.profile.errors import BadPlan
from shipworthy.profile.inputs import InputSpec, check_inputs, random_inputs

IMAGE = InputSpec("image", "tensor(float)", ("N", 3, 8, 8))
TOKENS = InputSpec("ids", "tensor(int64)", ("N", 16))
TOKENS_OF_ANY_LENGTH = InputSpec("ids", "tensor(int64)", ("N", "length"))


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
    words = (
        "m.onnx: input 'ids' tensor(int64) (N, length): dimension 1 is dynamic and not the batch; "
        "give inputs (--samples) or its shape (--shape ids=batch,SIZE, or Plan(shapes=...))"
    )
    with refused(words):
        random_inputs([InputSpec("ids", "tensor(int64)", ("N", "length"))], 1, 0, "m.onnx")


def test_a_shape_tells_the_sizes_of_names_and_formulas_everywhere() -> None:
    """The batch stays the plan's, also where it is second; what has no name takes its own shape."""
    specs = [
        InputSpec("ids", "tensor(int64)", ("N", "length")),
        InputSpec("mask", "tensor(float)", ("N", 1, "2*length + 1")),
        InputSpec("state", "tensor(float)", (2, "N", None)),
        InputSpec("old", "tensor(float)", (-1, 3)),
    ]
    shapes = {"ids": (None, 7), "state": (2, 3, 5)}
    made = random_inputs(specs, 3, 0, "m.onnx", shapes)
    assert [array.shape for array in made.values()] == [(3, 7), (3, 1, 15), (2, 3, 5), (3, 3)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"id": (1, 7)}, "shape id=1,7: no such input, wanted one of ids, mask"),
        ({"ids": (7,)}, "shape ids=7: wanted 2 sizes, as it declares (N, length)"),
        ({"ids": (2, 7)}, "shape ids=2,7: its batch is 2, and the plan's is 1; make them equal, or write batch"),
        ({"ids": (1, 7), "mask": (1, 8)}, "shape mask=1,8: 'length' is 7 elsewhere; make them equal"),
        ({"ids": (1, 1 << 40)}, "GB of random numbers; give a smaller shape"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shapes: dict[str, tuple[int | None, ...]], words: str) -> None:
    """Contradictions are named, and no memory is taken for what nobody can have meant."""
    specs = [TOKENS_OF_ANY_LENGTH, InputSpec("mask", "tensor(float)", ("N", "length"))]
    with refused(words):
        random_inputs(specs, 1, 0, "m.onnx", shapes)


@pytest.mark.parametrize(
    ("formula", "value"),
    [("2*n + 1", 15), ("floor(n/2)", 3), ("n/2", None), ("Max(1, n - 9)", 1), ("m*n", None), ("n**9", None),
     ("f(n)", None), ("__import__('os')", None), ("(" * 150, None), ("-n", None), ("n.real", None), ("0.5*n", None)],
)  # fmt: skip
def test_formulas_are_arithmetic_alone(formula: str, value: int | None) -> None:
    """A dimension's name comes from the file, and nothing in it is run."""
    assert value_of(formula, {"n": 7}) == value


def test_a_fixed_file_may_hold_state_of_other_sizes() -> None:
    """Its batch is that of its first input."""
    specs = [InputSpec("x", "tensor(float)", (1, 16)), InputSpec("h", "tensor(float)", (2, 1, 8))]
    assert random_inputs(specs, 1, 0, "m.onnx")["h"].shape == (2, 1, 8)


def test_what_is_no_tensor_cannot_be_given() -> None:
    """Text and sequences are refused each in its own words; a batch of 0 would measure nothing."""
    for kind, shape, words in (
        ("tensor(string)", ("N",), "text cannot be invented; give inputs (--samples)"),
        ("seq(tensor(float))", (), "only tensors can be given"),
        ("tensor(float)", (0, 3), "its batch is declared as 0, and ONNX Runtime takes it so"),
    ):
        with refused(words):
            random_inputs([InputSpec("x", kind, shape)], 1, 0, "m.onnx")


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
