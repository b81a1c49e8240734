"""The moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a module's weights and statistics (Polyak and Juditsky 1992).

    Early on it follows faster, `decay = min(decay, (1 + steps) / (10 + steps))`, as it would hold the first weights
    for long otherwise.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self._module = module
        self._kept = {name: value.detach().clone() for name, value in _moving(module)}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        kept, now = list(self._kept.values()), [value.detach() for _, value in _moving(self._module)]
        torch._foreach_lerp_(kept, now, 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While it lasts, the module has the averaged weights."""
        own = {name: value.detach().clone() for name, value in _moving(self._module)}
        self.apply()
        try:
            yield
        finally:
            _put(self._module, own)

    def apply(self) -> None:
        """Give the module the averaged weights for good."""
        _put(self._module, self._kept)

    def state(self) -> dict[str, object]:
        """Return what `load` takes."""
        return {"steps": self._steps, "kept": self._kept}

    def load(self, state: Mapping[str, object]) -> None:
        """Go on from a state."""
        steps, kept = state["steps"], state["kept"]
        assert isinstance(steps, int)
        assert isinstance(kept, dict)
        self._steps = steps
        for name, value in kept.items():
            self._kept[name].copy_(value)


def _moving(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers of floating point, by name; tied ones once."""
    yield from module.named_parameters()
    yield from ((name, value) for name, value in module.named_buffers() if value.is_floating_point())


@torch.no_grad()
def _put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in _moving(module):
        value.copy_(values[name])
