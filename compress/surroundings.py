"""Where and with whom a pass trains: the device, low precision, several processes, and who is told of each step."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Autocast = Literal["off", "bf16", "fp16"]


@dataclass(frozen=True)
class Crew:
    """The processes that train one model together, through `torch.distributed`, which is set up already.

    Each computes its part of every batch. Losses are means over the whole batch and gradients are summed, so that the
    crew takes the steps that one process would take.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def part(self, count: int) -> slice:
        """Return which of so many examples are this process's."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add_up(self, values: Sequence[Tensor]) -> None:
        """Replace values by their sums over all processes."""
        import torch

        if self.alone or not values:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        torch.distributed.all_reduce(flat)
        parts = flat.split([value.numel() for value in values])  # type: ignore[no-untyped-call]  # torch's own
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view_as(value))

    def from_first(self, made: Callable[[], Any]) -> Any:
        """Return to all what the first process makes: plain values and tensors."""
        import torch

        if self.alone:
            return made()
        held = io.BytesIO()
        if self.rank == 0:
            torch.save(made(), held)
        box = [held.getvalue()]
        torch.distributed.broadcast_object_list(box, src=0)
        return torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Surroundings:
    """Where a pass trains.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`; models come from the CPU and go back there.
        autocast: operators that bear it compute in this format; weights stay 32 bits wide.
        log: called as `log(step, values)` with `loss`, `learning_rate` and, where it was judged, `score`.
        crew: the processes that take part.
    """

    device: str = "cpu"
    autocast: Autocast = "off"
    log: Callable[[int, dict[str, float]], object] | None = field(default=None, compare=False)
    crew: Crew = Crew()

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which a model computes."""
        import torch

        if self.autocast == "off":
            return nullcontext()
        kind = torch.bfloat16 if self.autocast == "bf16" else torch.float16
        return torch.autocast(self.device.partition(":")[0], kind)


HERE = Surroundings()
"""The CPU, 32 bits, one process."""

__all__ = ["HERE", "Autocast", "Crew", "Surroundings"]
