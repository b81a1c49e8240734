"""What an engine build may be told beyond the flavour and the batches; torch-free, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..models.errors import BadInput, MissingRuntime

Flavour = Literal["rtx", "tensorrt"]
Hardware = Literal["none", "ampere+", "same_compute_capability"]
Bounds = Sequence[Sequence[int]]
"""Least, usual and largest shape of one input."""

HARDWARE: tuple[Hardware, ...] = ("none", "ampere+", "same_compute_capability")
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT for RTX 1.7 has kernels for; by default an engine is for all of them from 8.0 on."""
_LEVELS = 5


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built.

    Attributes:
        shapes: least, usual and largest shape by input; inputs without one take the batches.
        further_shapes: the same for each further optimization profile; what it leaves out is as in `shapes`.
        compute_capabilities: GPUs the engine is for, such as `("8.6", "8.9")` (rtx); none: every one from 8.0 on.
        strip: leave out the weights; the engine must be refitted from the ONNX file before it runs.
        refittable: keep the engine open to other weights; TensorRT may then fuse less.
        version_compatible: the engine also runs on later versions (tensorrt).
        hardware: GPUs beside the one that builds on which the engine runs (tensorrt).
        optimization_level: 0 (fast build) to 5 (fast engine); None leaves it to TensorRT.
        tf32: let products of fp32 numbers round their inputs to 10 bits, which is TensorRT's default.
        workspace_bytes: GPU memory that one operator may use beside its tensors; None for all there is.
        memory_bytes: resident memory at which the building process is ended; None for no limit.
        timing_cache: file of the timings that choose kernels (tensorrt); None is `<engine>.cache`.
        log: file for all that TensorRT says; None is `<engine>.log`, without its most verbose messages.
        builds: how often the file is built, to see whether the engines are equal; the first is kept.
        keep_builds: keep the others too, as `<stem>.build2<suffix>` and so on.
    """

    shapes: Mapping[str, Bounds] = field(default_factory=dict)
    further_shapes: tuple[Mapping[str, Bounds], ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    strip: bool = False
    refittable: bool = False
    version_compatible: bool = False
    hardware: Hardware = "none"
    optimization_level: int | None = None
    tf32: bool = True
    workspace_bytes: int | None = None
    memory_bytes: int | None = None
    timing_cache: Path | None = None
    log: Path | None = None
    builds: int = 1
    keep_builds: bool = False

    def for_child(self) -> dict[str, Any]:
        """Return what the building process has to know, as JSON-able values."""
        return {
            "shapes": [_plain(self.shapes), *({**_plain(self.shapes), **_plain(more)} for more in self.further_shapes)],
            "compute_capabilities": list(self.compute_capabilities),
            "strip": self.strip,
            "refittable": self.refittable,
            "version_compatible": self.version_compatible,
            "hardware": self.hardware,
            "optimization_level": self.optimization_level,
            "tf32": self.tf32,
            "workspace_bytes": self.workspace_bytes,
            "verbose": self.log is not None,
        }


def check_settings(settings: EngineSettings, flavour: Flavour) -> None:
    """Raise where a setting is out of range, or unknown to the flavour.

    Raises:
        BadInput: the message names the setting, what was got and what is wanted.
    """
    _check_ranges(settings)
    _check_shapes(settings)
    if flavour == "rtx":
        _check_rtx(settings)
    elif settings.compute_capabilities:
        raise BadInput(
            f"compute_capabilities: got {', '.join(settings.compute_capabilities)}, but TensorRT builds for the GPU it "
            "builds on; build there, choose hardware='same_compute_capability' or 'ampere+', or flavour rtx"
        )


def check_batches(batches: Sequence[int]) -> None:
    """Raise unless these are a least, a usual and a largest batch.

    Raises:
        BadInput: they are not.
    """
    whole = all(isinstance(size, int) and size > 0 for size in batches)
    if len(batches) != 3 or not whole or list(batches) != sorted(batches):
        raise BadInput(f"batches: got {list(batches)}, wanted three numbers that do not fall, such as 1, 1, 32")


def _check_ranges(settings: EngineSettings) -> None:
    level = settings.optimization_level
    if level is not None and not 0 <= level <= _LEVELS:
        raise BadInput(f"optimization_level: got {level}, wanted 0 (fast build) to {_LEVELS} (fast engine)")
    for name in ("workspace_bytes", "memory_bytes"):
        size = getattr(settings, name)
        if size is not None and size <= 0:
            raise BadInput(f"{name}: got {size}, wanted a number of bytes above zero")
    if settings.builds < 1:
        raise BadInput(f"builds: got {settings.builds}, wanted 1 or more")
    if settings.hardware not in HARDWARE:
        raise BadInput(f"hardware: got {settings.hardware!r}, choose one of {', '.join(HARDWARE)}")


def _check_shapes(settings: EngineSettings) -> None:
    for shapes in (settings.shapes, *settings.further_shapes):
        for name, bounds in shapes.items():
            if len(bounds) != 3 or len({len(shape) for shape in bounds}) != 1:
                got = ", ".join("x".join(map(str, shape)) for shape in bounds)
                raise BadInput(f"shapes of {name!r}: got {got or 'none'}, wanted a least, usual and largest shape")


def _check_rtx(settings: EngineSettings) -> None:
    wrong = [one for one in settings.compute_capabilities if one not in RTX_CAPABILITIES]
    if wrong:
        raise BadInput(
            f"compute_capabilities: got {', '.join(wrong)}, TensorRT for RTX has {', '.join(RTX_CAPABILITIES)}"
        )
    if len(set(settings.compute_capabilities)) < len(settings.compute_capabilities):
        raise BadInput(f"compute_capabilities: got {', '.join(settings.compute_capabilities)}, name each once")
    unknown = {
        "version_compatible": (settings.version_compatible, "its engines run on the version that built them alone"),
        "hardware": (settings.hardware != "none", "name the GPUs with compute_capabilities"),
        "timing_cache": (settings.timing_cache is not None, "it times nothing while it builds"),
    }
    for name, (given, why) in unknown.items():
        if given:
            raise BadInput(f"{name}: flavour rtx has no such setting: {why}; leave it out or use flavour tensorrt")


def _plain(shapes: Mapping[str, Bounds]) -> dict[str, list[list[int]]]:
    return {name: [[int(size) for size in shape] for shape in bounds] for name, bounds in shapes.items()}


FAULTS: dict[str, type[BadInput]] = {"input": BadInput, "absent": MissingRuntime}
"""Whose fault a refusal of the building process is; what is in neither is the tool's."""
