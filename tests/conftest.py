"""What several test modules start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shipworthy.compress.distill import Distill
from shipworthy.models.data import Dataset
from shipworthy.models.model import Model
from shipworthy.tests.small_nets import CALM, captured, quadrants


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Train on one thread: on tiny tensors the others only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Four classes of bright corners."""
    return quadrants()


@pytest.fixture(scope="module")
def teacher(data: Dataset) -> Model:
    """A model that has learnt the corners from their labels."""
    model = captured("residual", torch.float32)
    return Distill(steps=40, alpha=0.0, **CALM)(model, data=data, teacher=model).model
