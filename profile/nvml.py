"""One NVIDIA GPU as NVML sees it: memory, energy, clocks, temperature, and what holds its clocks down.

Not run on a GPU yet.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, final

from .devices import cuda_bus_id
from .errors import RuntimeAbsent

if TYPE_CHECKING:
    from typing import Self

IDLE, USER_CLOCKS = "idle", "clocks set by the user"

_REASONS = {
    0x1: IDLE,
    0x2: USER_CLOCKS,
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}


def reason_words(mask: int) -> tuple[str, ...]:
    """Say in words what holds a GPU's clocks down; empty where nothing does.

    Args:
        mask: as `nvmlDeviceGetCurrentClocksEventReasons` gives it.
    """
    known = tuple(words for bit, words in _REASONS.items() if mask & bit)
    unknown = mask & ~sum(_REASONS)
    return (*known, f"unknown ({unknown:#x})") if unknown else known


@final
class Gpu:
    """The GPU that CUDA calls number `index`, whatever order NVML has. What the GPU or driver does not tell is None.

    Raises:
        RuntimeAbsent: there is no driver or GPU, nvidia-ml-py is not installed, or NVML refuses.
    """

    def __init__(self, index: int = 0) -> None:
        bus_id = cuda_bus_id(index)
        self._nvml = _import_nvml()
        try:
            self._nvml.nvmlInit()
            self._handle: Any = _handle(self._nvml, bus_id)
        except self._nvml.NVMLError as fault:
            raise RuntimeAbsent(f"NVML does not open GPU {index} ({bus_id}): {fault}") from fault
        self.name = str(self._ask("nvmlDeviceGetName") or f"GPU {index}")
        self.rated_sm_mhz: float | None = self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM)

    def used_bytes(self) -> int | None:
        """Return the GPU's memory that is taken, by all processes together."""
        info = self._ask("nvmlDeviceGetMemoryInfo")
        return None if info is None else int(info.used)

    def process_bytes(self, pid: int) -> int | None:
        """Return what one process holds; None also in a container, where the driver knows other process numbers."""
        listed = self._ask("nvmlDeviceGetComputeRunningProcesses") or ()
        # Drivers that list a process and do not know its memory say None or 0.
        return next((int(one.usedGpuMemory) for one in listed if one.pid == pid and one.usedGpuMemory), None)

    def energy_j(self) -> float | None:
        """Return the joules that the whole board took since the driver was loaded; GPUs before Volta do not count."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def sm_mhz(self) -> float | None:
        """Return the present clock of its multiprocessors."""
        found: float | None = self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        return found

    def temperature_c(self) -> float | None:
        """Return the temperature of the chip."""
        found: float | None = self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)
        return found

    def power_w(self) -> float | None:
        """Return the power of the board: now, or on some GPUs the mean of the last second."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1e3

    def throttle(self) -> tuple[str, ...]:
        """Say what holds the clocks down now."""
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        masks = (self._ask(name) for name in names)  # drivers before 535 know the second name alone
        return reason_words(next((mask for mask in masks if mask is not None), 0))

    def close(self) -> None:
        """Let go of NVML."""
        self._nvml.nvmlShutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def _ask(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def _handle(nvml: Any, bus_id: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
    except nvml.NVMLError:
        nvml.nvmlShutdown()
        raise


def _import_nvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as fault:
        raise RuntimeAbsent("NVML: nvidia-ml-py is not installed; pip install nvidia-ml-py") from fault
