"""Two tools that prune the reference model to a share of its multiply-accumulates: this package and Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shipworthy.benchmarks.common import pruning_tool

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shipworthy.models.data import Dataset
    from shipworthy.models.model import Model

Tool = Literal["shipworthy", "Torch-Pruning"]
OURS: Tool = "shipworthy"
THEIRS: Tool = "Torch-Pruning"
Scope = Literal["uniform", "global", "isomorphic"]

HALVINGS = 12
SAMPLES = 512
"""Training examples for gradients: as many as `Prune.samples`, and the same ones."""


@dataclass(frozen=True)
class Setting:
    """How a tool prunes.

    Attributes:
        tool: which one.
        score: a name of its own for what ranks channels; see `Prune.score` and `their_importance`.
        scope: what is ranked together: channels of one group, all, or (Torch-Pruning) groups of the same form.
        round_to: widths left are multiples of this.
        rounds: how many times channels are scored and removed, without training between.
    """

    tool: Tool
    score: str
    scope: Scope
    round_to: int
    rounds: int = 1

    def __str__(self) -> str:
        """Return the setting in words."""
        rounds = f", {self.rounds} rounds" if self.rounds > 1 else ""
        return f"{self.score}, {self.scope}, widths by {self.round_to}{rounds}"


def _settings(tool: Tool, *parts: tuple[str, Scope, tuple[int, ...], int]) -> tuple[Setting, ...]:
    return tuple(Setting(tool, score, scope, step, rounds) for score, scope, steps, rounds in parts for step in steps)


CANDIDATES = (
    *_settings(
        OURS,
        ("reconstruction", "uniform", (4, 8, 16), 1), ("l2", "uniform", (8,), 1), ("taylor", "uniform", (8,), 1),
        ("l2", "global", (8, 16), 1), ("taylor", "global", (4, 8, 16), 1), ("activation", "global", (8,), 1),
        ("reconstruction", "uniform", (8,), 3),
    ),
    # Within one group LAMP ranks as plain norms do. With widths by 16 little can be reached: they are rounded down, and
    # a group without any left keeps all.
    *_settings(
        THEIRS,
        ("l2", "uniform", (4, 8, 16), 1), ("taylor", "uniform", (4, 8), 1), ("bn", "uniform", (8,), 1),
        ("l2", "global", (4, 8, 16), 1), ("taylor", "global", (4, 8, 16), 1), ("bn", "global", (8,), 1),
        ("lamp", "global", (8,), 1), ("l2", "isomorphic", (8,), 1), ("taylor", "isomorphic", (8,), 1),
        ("l2", "global", (8,), 5), ("taylor", "global", (8,), 5),
    ),
)  # fmt: skip
"""What `--choose` compares."""


def prune(setting: Setting, share: float, model: Model, data: Dataset, seed: int) -> Model:
    """Prune the reference model so that at most a share of its MACs is left.

    Raises:
        BadInput: this setting cannot leave so few.
    """
    from shipworthy.compress.prune import Prune

    if setting.tool == THEIRS:
        return prune_with_theirs(setting, share, data, seed)
    settings: dict[str, Any] = {"score": setting.score, "scope": setting.scope}
    step = Prune(macs=share, round_to=setting.round_to, rounds=setting.rounds, seed=seed, **settings)
    return step(model, data=data).model


def prune_with_theirs(setting: Setting, share: float, data: Dataset, seed: int) -> Model:
    """Prune the reference model with Torch-Pruning, by the smallest ratio that reaches the share, and capture it."""
    import torch

    from shipworthy.benchmarks.glue import WEIGHTS
    from shipworthy.models.checkpoints import load_weights
    from shipworthy.models.model import capture
    from shipworthy.models.resnet import SmallResNet

    whole, example = SmallResNet().eval(), torch.zeros(1, *data.input_shape)
    load_weights(whole, WEIGHTS)
    if setting.score == "taylor":
        add_gradients(whole, data, seed)
    made: dict[float, nn.Module] = {}

    def macs_left(ratio: float) -> int:
        made[ratio] = their_attempt(setting, ratio, whole, example)
        return macs_of(made[ratio], example)

    ratio = ratio_reaching(macs_left, int(share * macs_of(whole, example)))
    return capture(made[ratio], (example,), source=f"{THEIRS}: {setting}")


def their_attempt(setting: Setting, ratio: float, whole: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy that has lost a share of its channels, but no scores."""
    from torch import nn

    tools, student = pruning_tool(), copy.deepcopy(whole)
    for mine, theirs in zip(student.parameters(), whole.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()  # a copy of a parameter has none
    pruner = tools.pruner.BasePruner(
        student, example, importance=their_importance(tools, setting.score), pruning_ratio=ratio,
        global_pruning=setting.scope != "uniform", isomorphic=setting.scope == "isomorphic",
        iterative_steps=setting.rounds, round_to=setting.round_to,
        ignored_layers=[m for m in student.modules() if isinstance(m, nn.Linear)],
    )  # fmt: skip
    for _ in range(setting.rounds):
        pruner.step()
    student.zero_grad(set_to_none=True)
    return student


def their_importance(tools: Any, score: str) -> Any:
    """Return Torch-Pruning's score: over whole groups and divided by the group's mean, unless its paper says else."""
    known: dict[str, Callable[[], Any]] = {
        "l2": lambda: tools.importance.GroupMagnitudeImportance(p=2),  # `MagnitudeImportance` is another name of it
        "lamp": tools.importance.LAMPImportance,
        "bn": tools.importance.BNScaleImportance,
        "taylor": tools.importance.GroupTaylorImportance,
    }
    return known[score]()


def add_gradients(module: nn.Module, data: Dataset, seed: int) -> None:
    """Leave the gradient of the mean cross-entropy over training examples in the parameters."""
    import torch
    import torch.nn.functional as F

    indices = data.sample(SAMPLES, seed)
    for part in torch.split(indices, 128):
        x, labels = data.batch(data.train, part)
        loss = F.cross_entropy(module(x), labels, reduction="sum") / len(indices)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def macs_of(module: nn.Module, example: Tensor) -> int:
    """Count the MACs of one example as `summarize` does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return int(counter.get_total_flops()) // 2


def ratio_reaching(cost: Callable[[float], int], target: int, halvings: int = HALVINGS) -> float:
    """Return the ratio whose cost comes closest to a target without exceeding it, of those that halving tries.

    The cost need not fall steadily: a group that would lose everything may keep everything.

    Raises:
        BadInput: no cost was as low; the message names the lowest.
    """
    from shipworthy.models.errors import BadInput

    low, high, tried = 0.0, 1.0, dict[float, int]()
    for _ in range(halvings):
        middle = (low + high) / 2
        tried[middle] = cost(middle)
        low, high = (low, middle) if tried[middle] <= target else (middle, high)
    reached = {ratio: found for ratio, found in tried.items() if found <= target}
    if not reached:
        raise BadInput(
            f"no ratio of channels leaves {target:,} MACs or fewer; the fewest found: {min(tried.values()):,}"
        )
    return max(reached, key=lambda ratio: (reached[ratio], -ratio))
