"""What the driver and NVML tell of GPUs; on a machine without one, that they say so."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pynvml
import pytest

from shipworthy.profile import nvml
from shipworthy.profile.devices import cuda_absent, cuda_bus_id, gpus
from shipworthy.profile.errors import RuntimeAbsent
from shipworthy.profile.nvml import Gpu, reason_words

no_gpu = pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")


def test_clock_reasons_in_words() -> None:
    """Every reason that NVML names has words of its own; no reason has none; a bit to come is shown as it is."""
    names = [name for name in dir(pynvml) if re.match("nvmlClocks(Event|Throttle)Reason", name)]
    masks = {getattr(pynvml, name) for name in names if not re.search("None$|All$", name)}
    words = {mask: reason_words(mask) for mask in masks}
    assert all(len(found) == 1 and "unknown" not in found[0] for found in words.values())
    assert len(set(words.values())) == len(masks)
    assert reason_words(0) == ()
    assert reason_words(0x4 | 0x20) == ("power cap", "software thermal slowdown")
    assert reason_words(0x1 | 0x10000) == ("idle", "unknown (0x10000)")


def test_nvml_has_every_function_that_is_asked_for() -> None:
    """What the installed nvidia-ml-py lacks would silently read as not told."""
    asked = set(re.findall(r"\bnvml[A-Z]\w+|NVML_\w+", Path(nvml.__file__).read_text(encoding="utf-8")))
    assert len(asked) > 10
    assert [name for name in sorted(asked) if not hasattr(pynvml, name)] == []


@pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
def test_without_a_gpu_all_say_why() -> None:
    """There is no list, no address and no device, and the reason is the driver's."""
    assert gpus() == []
    for ask in (lambda: cuda_bus_id(0), Gpu):
        with pytest.raises(RuntimeAbsent, match="NVIDIA driver"):
            ask()


@pytest.mark.gpu
@no_gpu
def test_a_gpu_tells_its_state() -> None:
    """CUDA's first GPU is found in NVML by its address, and its figures are possible ones."""
    with Gpu() as gpu:
        assert gpu.name in [one["name"] for one in gpus()]
        assert (gpu.used_bytes() or 0) >= 0
        assert gpu.process_bytes(os.getpid()) is None or gpu.process_bytes(os.getpid()) > 0  # type: ignore[operator]
        assert 100 < (gpu.rated_sm_mhz or 1000) < 10_000
        assert 0 < (gpu.sm_mhz() or 1000) < 10_000
        assert 0 < (gpu.temperature_c() or 50) < 120
        assert all("unknown" not in words for words in gpu.throttle())
    with pytest.raises(RuntimeAbsent, match="GPU 99"):
        Gpu(99)
