"""What several test modules start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shipworthy.models.data import Dataset
from shipworthy.tests.small_nets import quadrants


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
