"""`engine`: a TensorRT engine of an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.errors import BadInput
from .cli_models import OnnxFile, Output, written
from .cli_output import Answer, Debug, Json, check_file, command, numbers

if TYPE_CHECKING:
    from ..export.artifact import EngineArtifact
    from ..export.engine_settings import EngineSettings
    from .build_spread import BuildSpread
    from .progress import Progress

_SHAPE = "1x3x224x224:8x3x224x224:32x3x224x224"


class Flavour(StrEnum):
    """The two kinds of TensorRT."""

    RTX = "rtx"
    TENSORRT = "tensorrt"


class Hardware(StrEnum):
    """GPUs beside the one that builds on which an engine of classic TensorRT runs."""

    NONE = "none"
    AMPERE = "ampere+"
    SAME = "same_compute_capability"


Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar=f"NAME={_SHAPE}", help="Smallest, usual and largest shape; again: a next profile."),
]
Capabilities = Annotated[
    list[str] | None, typer.Option("--compute-capability", help="GPU it is for, such as 8.6; all from 8.0 on (rtx).")
]
Level = Annotated[int | None, typer.Option(min=0, max=5, help="0: fast build; 5: fast engine.")]
Strip = Annotated[bool, typer.Option("--strip", help="Leave the weights out; needs a GPU.")]
Refittable = Annotated[bool, typer.Option("--refittable", help="Keep it open to other weights; needs a GPU.")]
Refit = Annotated[Path | None, typer.Option(help="Do not build: put the weights into this engine.")]
Compatible = Annotated[bool, typer.Option("--version-compatible", help="Runs on later versions too (tensorrt).")]
Timings = Annotated[Path | None, typer.Option(help="File of timings (tensorrt); beside the engine by default.")]
Log = Annotated[Path | None, typer.Option(help="File for all that TensorRT says.")]
Gigabytes = Annotated[float | None, typer.Option(min=0.001, help="Memory at which the build is ended.")]
Workspace = Annotated[float | None, typer.Option(min=0.001, help="GPU memory an operator may use beside its tensors.")]


@command
def engine(  # noqa: PLR0913 (the parameters of a command are its options)
    onnx: OnnxFile,
    output: Output,
    flavour: Annotated[Flavour, typer.Option(help="TensorRT for RTX, or TensorRT.")] = Flavour.RTX,
    batches: Annotated[str, typer.Option(help="Smallest, usual and largest batch.")] = "1,1,32",
    shape: Shapes = None,
    compute_capability: Capabilities = None,
    optimization_level: Level = None,
    tf32: Annotated[bool, typer.Option(help="Let fp32 products round to TF32.")] = True,
    strip: Strip = False,
    refittable: Refittable = False,
    refit: Refit = None,
    version_compatible: Compatible = False,
    hardware: Annotated[Hardware, typer.Option(help="Other GPUs it runs on (tensorrt).")] = Hardware.NONE,
    timing_cache: Timings = None,
    builds: Annotated[int, typer.Option(min=1, max=20, help="Build so often and compare; keep the first.")] = 1,
    workspace_gb: Workspace = None,
    memory_gb: Gigabytes = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which the build is ended.")] = 900.0,
    log: Log = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Build a TensorRT engine of an ONNX file."""
    sizes = numbers(batches, "--batches", "1,1,32") or ()
    if len(sizes) != 3 or list(sizes) != sorted(sizes):
        raise BadInput(f"--batches: got {batches}, wanted three numbers that do not fall, such as 1,1,32")
    profiles = read_shapes(shape or [])
    check_file(onnx, "an ONNX file")
    from ..export.engine import refit_engine, to_engine
    from ..export.engine_settings import EngineSettings
    from .cli_progress import showing

    settings = EngineSettings(
        shapes=profiles[0],
        further_shapes=tuple(profiles[1:]),
        compute_capabilities=tuple(compute_capability or ()),
        strip=strip,
        refittable=refittable,
        version_compatible=version_compatible,
        hardware=hardware.value,
        optimization_level=optimization_level,
        tf32=tf32,
        workspace_bytes=_bytes(workspace_gb),
        memory_bytes=_bytes(memory_gb),
        timing_cache=timing_cache,
        log=log,
        builds=builds,
        keep_builds=builds > 1,
    )
    with showing() as progress:
        progress.stage("refit engine" if refit else "build engine")
        if refit:
            made = refit_engine(refit, onnx, output, timeout, progress.advance)
            return Answer(_text(made, log), made)
        made = to_engine(onnx, output, flavour.value, (sizes[0], sizes[1], sizes[2]), timeout, settings, progress.advance)  # fmt: skip # noqa: E501
        spread, why = _spread(made, settings, progress) if builds > 1 else (None, "")
    return Answer(_text(made, log, spread, why), {**made.to_dict(), "spread": spread and spread.to_dict()})


def read_shapes(texts: Sequence[str]) -> list[dict[str, list[list[int]]]]:
    """Read `NAME=least:usual:largest`; a name that comes again is of the next optimization profile.

    Raises:
        BadInput: a text has another form.
    """
    profiles: list[dict[str, list[list[int]]]] = [{}]
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        bounds = [[int(size) if size.isascii() and size.isdigit() else 0 for size in one.split("x")] for one in sizes.split(":")]  # fmt: skip # noqa: E501
        if not equals or not name or len(bounds) not in (1, 3) or min(map(min, bounds)) < 1:
            raise BadInput(
                f"--shape: got {text!r}, wanted a name and its smallest, usual and largest shape (NAME={_SHAPE}), "
                "or one shape for all three"
            )
        place = next((one for one in profiles if name not in one), None)
        if place is None:
            profiles.append(place := {})
        place[name] = bounds * 3 if len(bounds) == 1 else bounds
    return profiles


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)


def _spread(made: EngineArtifact, settings: EngineSettings, progress: Progress) -> tuple[BuildSpread | None, str]:
    """Compare the latency of builds where a device can run them, and keep the first alone; without one, say why."""
    from ..profile.errors import ProfileError
    from .build_spread import spread_of_builds

    others = [made.path.with_name(f"{made.path.stem}.build{i}{made.path.suffix}") for i in range(2, settings.builds + 1)]  # fmt: skip # noqa: E501
    progress.stage("compare builds")
    try:
        return spread_of_builds([made.path, *others], made.manifest["flavour"]), ""
    except ProfileError as fault:
        return None, str(fault)
    finally:
        for other in others:
            other.unlink(missing_ok=True)
            other.with_name(f"{other.name}.json").unlink(missing_ok=True)


def _text(made: EngineArtifact, log: Path | None, spread: BuildSpread | None = None, why: str = "") -> str:
    """Say what was built, for what, and of which layers."""
    from .engine_text import manifest_lines

    told = made.manifest
    lines = [
        written(made),
        *manifest_lines(told),
        *_builds(told, spread, why),
        f"took    {told['seconds']:.1f} s{_memory(told)}",
        f"log     {log or made.path.with_name(made.path.name + '.log')}",
    ]
    return "\n".join(lines)


def _builds(told: Mapping[str, Any], spread: BuildSpread | None, why: str) -> list[str]:
    if "builds" not in told:
        return []
    found = told["builds"]
    equal = "equal byte by byte" if found["identical"] else f"not equal ({len(set(found['sha256']))} different)"
    sizes = sorted(set(found["bytes"]))
    one = f"of {sizes[0]} bytes" if len(sizes) == 1 else f"of {sizes[0]} to {sizes[-1]} bytes"
    latency = spread.line() if spread else f"not compared: {why}"
    return [f"builds  {len(found['sha256'])} {one}, {equal}", f"latency {latency}"]


def _memory(told: Mapping[str, Any]) -> str:
    return f", {told['peak_bytes'] / 1e6:.0f} MB of memory" if told.get("peak_bytes") else ""
