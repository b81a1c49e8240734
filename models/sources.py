"""Where models come from: the package, torchvision, timm, transformers, a file of the user's, a saved graph."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import load_weights
from .errors import BadInput
from .model import Model, capture, load_pt2
from .resnet import SmallResNet
from .sources_hub import ONLINE, timm_module, transformers_module
from .user_code import call_user, where

ASSETS = Path(__file__).with_name("assets")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True)
class Request:
    """What the user asked for; `name` is the source without its prefix."""

    source: str
    name: str
    weights: str | Path | None
    input_shape: tuple[int, ...] | None
    classes: int | None

    def refuse(self, field: str, reason: str) -> None:
        """Raise BadInput if a field was given that this source cannot heed."""
        if getattr(self, field) is not None:
            raise BadInput(f"model source {self.source}: takes no `{field}` (got {getattr(self, field)!r}); {reason}")

    def example(self, default: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
        """Return one batch of two seeded random inputs of the shape asked for."""
        shape = self.input_shape or default
        if shape is None:
            raise BadInput(
                f"model source {self.source}: gives no example inputs; set input_shape (of one example, such as "
                "(3, 224, 224)), or return (module, example_inputs)"
            )
        if any(size < 1 for size in shape):
            raise BadInput(f"model source {self.source}: input_shape {shape} must be positive, without the batch")
        return (torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)),)


def load(
    source: str,
    *,
    weights: str | Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
) -> Model:
    """Load a model and capture it with a dynamic batch.

    Args:
        source: `reference:fashion-resnet20`, `torchvision:NAME`, `timm:NAME`, `transformers:FOLDER`,
            `path/to/file.py:factory` or `path/to/model.pt2`. A factory takes no arguments and returns a module, or a
            module and a tuple of example inputs, or those and what else varies, as `capture` takes it
            (`{"input_ids": {1: "length"}}`).
        weights: a file with a state dict. Without one the reference has its own weights, torchvision's and timm's
            models have random ones (seed 0), and a factory's and a folder's are as they come. `pretrained` for timm,
            and the name of torchvision's own, are fetched where SHIPWORTHY_ONLINE is 1.
        input_shape: of one example, without the batch: `(channels, height, width)`.
        classes: how many classes torchvision's, timm's and transformers' models tell apart; theirs by default.

    Raises:
        BadInput: no such source, weights that do not fit, or a model that cannot be captured.
    """
    prefix, _, name = source.partition(":")
    if prefix in SOURCES:
        return SOURCES[prefix](Request(source, name, weights, input_shape, classes))
    request = Request(source, source, weights, input_shape, classes)
    if source.endswith(".pt2"):
        return _saved(request)
    if re.search(r"\.py:\w*$", source):
        return _factory(request)
    near = difflib.get_close_matches(prefix, SOURCES, n=1)
    raise BadInput(
        f"model source {source!r}: unknown{f' (did you mean {near[0]}:?)' if near else ''}; "
        "give reference:fashion-resnet20, torchvision:NAME, timm:NAME, transformers:FOLDER, path/to/file.py:factory "
        "or a .pt2 file"
    )


def _reference(request: Request) -> Model:
    if request.name != "fashion-resnet20":
        raise BadInput(f"model source {request.source!r}: unknown; did you mean reference:fashion-resnet20?")
    if request.classes != 10:
        request.refuse("classes", "the reference model has 10")
    module = SmallResNet()
    load_weights(module, request.weights or ASSETS / "fashion_resnet20.safetensors")
    return _captured(module, request, request.example((1, 28, 28)))


def _torchvision(request: Request) -> Model:
    from torchvision import models

    _check_torchvision_name(request, models.list_models(module=models), models.list_models())
    settings: dict[str, Any] = {} if request.classes is None else {"num_classes": request.classes}
    if request.name in ("googlenet", "inception_v3"):
        # Their auxiliary heads serve training from scratch only; without init_weights they warn.
        settings |= {"aux_logits": False, "init_weights": True}
    hub = _hub_weights(request, models.get_model_weights(request.name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _from_hub(request, hub) if hub else models.get_model(request.name, weights=None, **settings)
    if request.weights is not None and not hub:
        load_weights(module, request.weights, ignore=_AUXILIARY if "aux_logits" in settings else ())
    edge = 299 if request.name == "inception_v3" else 224
    return _captured(module, request, request.example((3, edge, edge)))


def _check_torchvision_name(request: Request, classifiers: list[str], every: list[str]) -> None:
    if request.name in classifiers:
        return
    if request.name in every:
        raise BadInput(f"model source {request.source}: not an image classifier; build it in path/to/file.py:factory")
    near = difflib.get_close_matches(request.name, classifiers, n=3, cutoff=0.4) or classifiers[:5]
    raise BadInput(f"model source {request.source}: torchvision has no such classifier; nearest: {', '.join(near)}")


def _hub_weights(request: Request, offered: Any) -> str | None:
    """Return the name of torchvision's own weights that was given instead of a file, if it was."""
    if request.weights is None or Path(request.weights).is_file():
        return None
    name = str(request.weights).rpartition(".")[2]
    if name not in offered.__members__:
        return None
    if os.environ.get(ONLINE) != "1":
        raise BadInput(
            f"model source {request.source}: weights {request.weights} would be downloaded from "
            f"{offered[name].url}; fetch that file yourself and give its path, or set {ONLINE}=1"
        )
    return name


def _from_hub(request: Request, name: str) -> nn.Module:
    from torchvision import models

    request.refuse("classes", f"the weights {name} fix it")
    try:
        module: nn.Module = models.get_model(request.name, weights=name)
    except OSError as fault:
        raise BadInput(f"model source {request.source}: weights {name} cannot be downloaded ({fault}); give a file") from fault  # fmt: skip # noqa: E501
    return module


def _factory(request: Request) -> Model:
    request.refuse("classes", "the factory decides that")
    made = call_user(request.source)
    module, inputs, varies = (*made, {})[:3] if isinstance(made, tuple) and 2 <= len(made) <= 3 else (made, None, {})
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(inputs, tuple | None) or not all(isinstance(x, Tensor) for x in inputs or ()):
        raise BadInput(f"model source {request.source}: its example inputs must be a tensor or a tuple of tensors")
    if not isinstance(module, nn.Module):
        raise BadInput(f"model source {request.source}: returned {type(made).__name__}, wanted a torch.nn.Module or (module, example_inputs)")  # fmt: skip # noqa: E501
    if inputs is not None and request.input_shape is not None:
        request.refuse("input_shape", "the factory gives example inputs")
    if request.weights is not None:
        load_weights(module, request.weights)
    if not isinstance(varies, Mapping):
        raise BadInput(f"model source {request.source}: what varies is a {type(varies).__name__}, wanted {{input: {{dimension: name}}}}")  # fmt: skip # noqa: E501
    return _captured(module, request, request.example() if inputs is None else inputs, varies)


def _timm(request: Request) -> Model:
    module, shape = timm_module(request)
    return _captured(module, request, request.example(shape))


def _transformers(request: Request) -> Model:
    module, examples, varies = transformers_module(request)
    return _captured(module, request, examples, varies)


def _saved(request: Request) -> Model:
    for field in ("weights", "input_shape", "classes"):
        request.refuse(field, "a .pt2 file fixes it")
    return load_pt2(Path(request.source))


def _captured(
    module: nn.Module, request: Request, example_inputs: tuple[Tensor, ...],
    varies: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> Model:  # fmt: skip
    module.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module(*example_inputs)
    except Exception as fault:
        shapes = ", ".join(str(tuple(x.shape)) for x in example_inputs)
        place = (
            f" at {where(fault, Path(request.source.rpartition(':')[0]).resolve())}" if ".py:" in request.source else ""
        )
        raise BadInput(f"model source {request.source}: fails on inputs of shape {shapes}{place}: {fault}") from fault
    return capture(module, example_inputs, source=request.source, dynamic=varies)


SOURCES: dict[str, Callable[[Request], Model]] = {
    "reference": _reference,
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}

__all__ = ["load"]
