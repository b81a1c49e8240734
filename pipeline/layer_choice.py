"""What a search for layers that stay in fp32 found, as plain values, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerChoice:
    """One layer.

    Attributes:
        layer: the node's name.
        module: the path of the user's module, empty where the file does not tell.
        sensitivity: what it costs alone in integers, see `quant_layers.sensitivities`.
        gain_us: microseconds that its integers spare in the file that is otherwise all integers; None: not measured.
        gain_low_us: lower end of the 95 % interval; None where the rounds were too few.
        gain_high_us: upper end.
        kept: it stays in fp32.
    """

    layer: str
    module: str
    sensitivity: float
    gain_us: float | None
    kept: bool
    gain_low_us: float | None = None
    gain_high_us: float | None = None

    @property
    def gains(self) -> bool | None:
        """Whether its integers spare time: None where the interval contains zero, or nothing was measured."""
        low, high = self.gain_low_us, self.gain_high_us
        if low is None or high is None or low <= 0 <= high:
            return None
        return low > 0

    @property
    def title(self) -> str:
        """What a reader knows it by."""
        return self.module or self.layer


@dataclass(frozen=True)
class MixedPrecision:
    """What a search found.

    Attributes:
        layers: every layer, in the graph's order.
        keep: names of those that stay in fp32.
        drop: points of the metric that the file loses on the examples that were searched on.
        drop_all: the same with every layer in integers.
        max_drop: what was asked for.
        metric: `accuracy`, or `agreement` with fp32 where there are no labels.
        examples: that `drop` and `drop_all` were judged on.
        compared: examples that sensitivities were taken on.
        files: how many choices were tried.
        met: whether `drop` is within `max_drop`.
    """

    layers: tuple[LayerChoice, ...]
    keep: tuple[str, ...]
    drop: float
    drop_all: float
    max_drop: float
    metric: str
    examples: int
    compared: int
    files: int
    met: bool

    @property
    def line(self) -> str:
        """All that in one line."""
        count, kept = len(self.layers), len(self.keep)
        head = f"{kept} of {count} layers stay in fp32" if kept else f"all {count} layers are integers"
        more = f", {self.drop_all:.2f} lost with all in integers" if kept else ""
        points = f"{abs(self.drop):.2f} points of {self.metric} {'gained' if self.drop < 0 else 'lost'}"
        lost = f"{points} on {self.examples:,} examples{more}"
        missed = f"; MISSED: found no choice with integers that holds {self.max_drop:g}"
        return f"{head}: {lost}{f' (wanted at most {self.max_drop:g})' if self.met else missed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MixedPrecision:
        """Read what `to_dict` wrote; other entries beside them are left out."""
        held = {name: plain[name] for name in cls.__dataclass_fields__}
        layers = tuple(LayerChoice(**row) for row in held["layers"])
        return cls(**held | {"layers": layers, "keep": tuple(held["keep"])})


def foremost(found: MixedPrecision, most: int) -> list[LayerChoice]:
    """Return up to so many layers, those that cost most first, all that stay in fp32 before any other is left out."""
    ordered = sorted(found.layers, key=lambda one: -one.sensitivity)
    chosen = sorted(ordered, key=lambda one: not one.kept)[:most]
    return [one for one in ordered if one in chosen]
