"""Read weights into a module: safetensors, and pickles that hold weights only. Nothing else is ever unpickled."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import BadInput

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
SHOWN = 10


def load_weights(module: nn.Module, path: str | Path, ignore: tuple[str, ...] = ()) -> None:
    """Read a state dict into a module; its training or evaluation mode stays.

    Training scripts wrap state dicts (`{"state_dict": ...}`, `{"model": ...}`) and their names (`module.`,
    `_orig_mod.`): both are undone.

    Args:
        module: takes the weights.
        path: a .safetensors file, or what `torch.save(module.state_dict(), path)` wrote.
        ignore: beginnings of names in the file that the module need not have.

    Raises:
        BadInput: the file is missing, cut off, holds more than weights, or fits another architecture; names and
            shapes that differ are listed. The module is then unchanged.
    """
    path = Path(path)
    wanted = module.state_dict()
    found = {name: value for name, value in _unprefixed(read_weights(path), wanted).items() if not name.startswith(ignore or ("\0",))}  # fmt: skip # noqa: E501
    faults = _differences(wanted, found)
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise BadInput(
            f"{path}: does not fit {type(module).__name__}, {len(faults)} differences: "
            f"{'; '.join(faults[:SHOWN])}{more}; give the weights of this architecture"
        )
    module.load_state_dict(found, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name.

    Raises:
        BadInput: the file is missing, cut off, or holds more than weights.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such weights file")
    held: Any = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    while isinstance(held, Mapping):
        inner = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            break
        held = inner
    weights = {str(k): v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, Mapping) else {}
    if not weights:
        raise BadInput(f"{path}: holds no weights by name ({type(held).__name__}); save it with torch.save(model.state_dict(), path)")  # fmt: skip # noqa: E501
    return weights


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as fault:
        raise BadInput(f"{path}: cut off or no safetensors file ({fault}); copy it anew") from fault


def _pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        named = re.search(r"GLOBAL ([\w.]+)", str(fault))
        held = f"holds more than weights ({named[1]})" if named else "damaged, or holds more than weights"
        raise BadInput(
            f"{path}: {held}, and is not unpickled, because that can run any code; where you trust the file, "
            "save only its weights: torch.save(model.state_dict(), path)"
        ) from fault
    except Exception as fault:
        # torch.load lets through whatever a damaged file makes its readers raise: KeyError, EOFError, RuntimeError ...
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise BadInput(f"{path}: cut off or no PyTorch checkpoint ({reason}); copy it anew") from fault


def _unprefixed(found: dict[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found) and not any(name in wanted for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Tensor]) -> list[str]:
    shapes = {name: tuple(value.shape) for name, value in wanted.items() if isinstance(value, Tensor)}
    missing = [f"missing {name}" for name in shapes if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [f"unexpected {name}" for name in found if name not in wanted]
    unequal = [
        f"{name} is {tuple(found[name].shape)}, wanted {shape}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    return unequal + missing + unexpected
