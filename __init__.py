"""Compress a trained PyTorch model, export it, measure it on the device, and get one verdict.

The names below are imported when they are first used: `import shipworthy` alone imports neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compress.distill import Distill
    from .compress.passes import Pass, PassResult
    from .compress.prune import Prune
    from .compress.quantize import Quantize
    from .compress.sparsify import Sparsify
    from .compress.transfer import Transfer
    from .compress.trim import Trim
    from .export.artifact import EngineArtifact, OnnxArtifact
    from .export.engine import refit_engine, to_engine
    from .export.engine_settings import EngineSettings
    from .export.int8 import Int8Settings
    from .export.onnx_file import to_onnx
    from .export.parity import Parity, parity
    from .export.quantize_file import quantize_onnx
    from .export.score import score
    from .models.data import Dataset, open_data
    from .models.errors import BadInput, MissingRuntime, ShipworthyError, ToolFailed
    from .models.log_mel import LogMel
    from .models.model import Model, TensorSpec, capture
    from .models.sources import load
    from .models.summary import summarize
    from .pipeline.build import build
    from .pipeline.recipe import Recipe, RecipeFaults, read_recipe
    from .pipeline.record import RunRecord
    from .profile.cold import cold_start
    from .profile.compare import Comparison, compare, compare_all, compare_with_stored
    from .profile.concurrency import concurrency
    from .profile.energy import energy_per_inference
    from .profile.gaps import gap_latency
    from .profile.goals import Goal, Outcome, Reading, Verdict, judge
    from .profile.layers import profile_layers
    from .profile.measure import Measurement, measure
    from .profile.memory import peak_memory
    from .profile.plan import Plan
    from .profile.remote import compare_on, measure_on
    from .profile.roofline import measure_roofline
    from .profile.runners import open_runner
    from .profile.throughput import throughput

    __version__: str

_HOMES = {
    "compress.distill": ("Distill",),
    "compress.passes": ("Pass", "PassResult"),
    "compress.prune": ("Prune",),
    "compress.quantize": ("Quantize",),
    "compress.sparsify": ("Sparsify",),
    "compress.transfer": ("Transfer",),
    "compress.trim": ("Trim",),
    "export.artifact": ("EngineArtifact", "OnnxArtifact"),
    "export.engine": ("refit_engine", "to_engine"),
    "export.engine_settings": ("EngineSettings",),
    "export.int8": ("Int8Settings",),
    "export.onnx_file": ("to_onnx",),
    "export.parity": ("Parity", "parity"),
    "export.quantize_file": ("quantize_onnx",),
    "export.score": ("score",),
    "models.data": ("Dataset", "open_data"),
    "models.errors": ("BadInput", "MissingRuntime", "ShipworthyError", "ToolFailed"),
    "models.log_mel": ("LogMel",),
    "models.model": ("Model", "TensorSpec", "capture"),
    "models.sources": ("load",),
    "models.summary": ("summarize",),
    "pipeline.build": ("build",),
    "pipeline.recipe": ("Recipe", "RecipeFaults", "read_recipe"),
    "pipeline.record": ("RunRecord",),
    "profile.cold": ("cold_start",),
    "profile.compare": (
        "Comparison",
        "compare",
        "compare_all",
        "compare_with_stored",
    ),
    "profile.concurrency": ("concurrency",),
    "profile.energy": ("energy_per_inference",),
    "profile.gaps": ("gap_latency",),
    "profile.goals": (
        "Goal",
        "Outcome",
        "Reading",
        "Verdict",
        "judge",
    ),
    "profile.layers": ("profile_layers",),
    "profile.measure": (
        "Measurement",
        "measure",
    ),
    "profile.memory": ("peak_memory",),
    "profile.plan": ("Plan",),
    "profile.remote": (
        "compare_on",
        "measure_on",
    ),
    "profile.roofline": ("measure_roofline",),
    "profile.runners": ("open_runner",),
    "profile.throughput": ("throughput",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BadInput",
    "Comparison",
    "Dataset",
    "Distill",
    "EngineArtifact",
    "EngineSettings",
    "Goal",
    "Int8Settings",
    "LogMel",
    "Measurement",
    "MissingRuntime",
    "Model",
    "OnnxArtifact",
    "Outcome",
    "Parity",
    "Pass",
    "PassResult",
    "Plan",
    "Prune",
    "Quantize",
    "Reading",
    "Recipe",
    "RecipeFaults",
    "RunRecord",
    "ShipworthyError",
    "Sparsify",
    "TensorSpec",
    "ToolFailed",
    "Transfer",
    "Trim",
    "Verdict",
    "__version__",
    "build",
    "capture",
    "cold_start",
    "compare",
    "compare_all",
    "compare_on",
    "compare_with_stored",
    "concurrency",
    "energy_per_inference",
    "gap_latency",
    "judge",
    "load",
    "measure",
    "measure_on",
    "measure_roofline",
    "open_data",
    "open_runner",
    "parity",
    "peak_memory",
    "profile_layers",
    "quantize_onnx",
    "read_recipe",
    "refit_engine",
    "score",
    "summarize",
    "throughput",
    "to_engine",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("shipworthy")
    elif name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
