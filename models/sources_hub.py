"""Models of the libraries timm and transformers; nothing is fetched unless SHIPWORTHY_ONLINE is 1."""

from __future__ import annotations

import difflib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints import load_weights
from .errors import BadInput

if TYPE_CHECKING:
    from .sources import Request

ONLINE = "SHIPWORTHY_ONLINE"
PRETRAINED = "pretrained"
LENGTH = "length"
_TOKENS = ("input_ids", "attention_mask")
_EXAMPLE_TOKENS = 16


def timm_module(request: Request) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model of timm, in evaluation mode with weights drawn by seed 0 or read, and the shape of its images.

    Raises:
        BadInput: timm is not installed or has no such model, or weights do not fit or would be fetched.
    """
    timm = _library(request, "timm")
    if not timm.is_model(request.name):
        near = difflib.get_close_matches(request.name, timm.list_models(), n=3, cutoff=0.4)
        raise BadInput(f"model source {request.source}: timm has no such model; nearest: {', '.join(near) or 'none'}")
    fetched = request.weights is not None and str(request.weights) == PRETRAINED
    _refuse_fetching(request, fetched)
    settings: dict[str, Any] = {} if request.classes is None else {"num_classes": request.classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = timm.create_model(request.name, pretrained=fetched, **settings)
    if request.weights is not None and not fetched:
        load_weights(module, request.weights)
    card: Mapping[str, Any] = getattr(module, "pretrained_cfg", {})
    return module.eval(), tuple(card.get("input_size", (3, 224, 224)))


def transformers_module(request: Request) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, dict[int, str]]]:
    """Return a text classifier of a folder with `config.json` and weights, example tokens, and what of them varies.

    An encoder without a head gets one: the mean of its last hidden states over the tokens there are (Reimers and
    Gurevych 2019), and a linear layer drawn by seed 0.

    Raises:
        BadInput: transformers is not installed, or there is no such folder, and fetching was not allowed.
    """
    transformers = _library(request, "transformers")
    folder = Path(request.name).expanduser()
    here = (folder / "config.json").is_file()
    _refuse_fetching(request, not here)
    for field in ("weights", "input_shape"):
        request.refuse(field, "the folder has its own")
    with torch.random.fork_rng(devices=[]), _quiet(transformers):
        torch.manual_seed(0)
        module = _classifier(transformers, request, folder if here else None)
    ids = torch.ones(2, _EXAMPLE_TOKENS, dtype=torch.int64)
    mask = ids.clone()
    mask[1, _EXAMPLE_TOKENS // 2 :] = 0
    return module.eval(), (ids, mask), {name: {1: LENGTH} for name in _TOKENS}


class MeanClassifier(nn.Module):
    """An encoder of tokens, the mean of its last states where there are tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map tokens and their mask, `(batch, length)` both, to scores `(batch, classes)`."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        there = attention_mask.unsqueeze(-1).to(states.dtype)
        scores: Tensor = self.head((states * there).sum(1) / there.sum(1).clamp_min(1))
        return scores


class _Scores(nn.Module):
    """A classifier of transformers that gives scores, not a record."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map tokens and their mask, `(batch, length)` both, to scores `(batch, classes)`."""
        scores: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits
        return scores


def _classifier(transformers: Any, request: Request, folder: Path | None) -> nn.Module:
    place, here = str(folder or request.name), {"local_files_only": folder is not None}
    settings: dict[str, Any] = {"attn_implementation": "eager", **here}
    try:
        config = transformers.AutoConfig.from_pretrained(place, **here)
        heads = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
        if heads:
            labels = {} if request.classes is None else {"num_labels": request.classes}
            mend = {"ignore_mismatched_sizes": True} if labels else {}
            made = transformers.AutoModelForSequenceClassification.from_pretrained(place, **settings, **labels, **mend)
            return _Scores(made)
        encoder = transformers.AutoModel.from_pretrained(place, **settings)
    except (OSError, ValueError, json.JSONDecodeError) as fault:
        first = next(iter(str(fault).splitlines()), type(fault).__name__)
        raise BadInput(f"model source {request.source}: transformers cannot load it: {first}") from fault
    if request.classes is None:
        raise BadInput(f"model source {request.source}: an encoder without a classifier; say how many `classes` it is to have")  # fmt: skip # noqa: E501
    return MeanClassifier(encoder, config.hidden_size, request.classes)


def _library(request: Request, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise BadInput(
            f"model source {request.source}: needs {name}, which is not installed: pip install 'shipworthy[{name}]', "
            "or save the model as .pt2 where it is (sw.capture, sw.save_pt2)"
        ) from fault


def _refuse_fetching(request: Request, wanted: bool) -> None:
    if wanted and os.environ.get(ONLINE) != "1":
        offline = (
            "a weights file" if request.source.startswith("timm:") else "a folder with config.json and its weights"
        )
        raise BadInput(
            f"model source {request.source}: would be fetched from a model hub; give {offline}, or set {ONLINE}=1"
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the library from drawing bars."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


__all__ = ["MeanClassifier", "timm_module", "transformers_module"]
