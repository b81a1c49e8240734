"""Random weights that show what a model does: every path carries signal, and different inputs give different outputs.

Weights as the libraries draw them do not: residual branches end in zeros, layer scales start at 1e-6, statistics are
trivial, and many outputs are 1e-14. A comparison of two such models passes whatever was done to them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Called by place rather than by kind: what is multiplied with is near one, what is added is near zero.
_SCALE = re.compile(r"gamma|scale|alpha|gain|temperature|lambda|^ls|^layer_scale|^eta|^tau")


def initialise(module: nn.Module, seed: int, inputs: tuple[Tensor, ...] | None = None) -> None:
    """Draw all weights and statistics anew, in place; the same seed gives the same values.

    Matrices and kernels are normal with variance 2 / fan-in, norms' weights uniform in 0.5 to 1.5, layer scales in 0.5
    to 1, biases and tables small. Frozen parameters and buffers that are no statistics (positions, frequencies, masks)
    stay.

    Args:
        module: put into evaluation mode.
        seed: of the values.
        inputs: run once, so that each batch norm's statistics are near what it sees: deep models then neither grow nor
            fade. Without them the statistics are drawn near zero and one.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point() and ".parametrizations." not in f".{name}":
                path, _, leaf = name.rpartition(".")
                _draw(parameter, leaf, module.get_submodule(path), generator)
        norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_var is not None]
        for norm in norms:
            _statistics(norm, torch.zeros(norm.num_features), torch.ones(norm.num_features), generator)
        if inputs is not None and norms:
            with _before(norms, lambda norm, x: _statistics(norm, *_moments(x), generator)):
                module(*inputs)


def difference(outputs: Tensor) -> float:
    """Return how far the first two outputs `(batch, ...)` are apart, relative to their size: 0 is degenerate."""
    first, second = outputs[0].double(), outputs[1].double()
    size = float(first.norm() + second.norm()) / 2
    return float((first - second).norm()) / size if size and math.isfinite(size) else 0.0


def _draw(parameter: Tensor, leaf: str, owner: nn.Module, generator: torch.Generator) -> None:
    flat = parameter.numel() == max(parameter.shape, default=1)
    if parameter.ndim > 1 and "weight" in leaf:
        parameter.normal_(0, math.sqrt(2 / _fan_in(parameter, owner)), generator=generator)
    elif flat and "weight" in leaf and not isinstance(owner, nn.PReLU):
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif flat and _SCALE.search(leaf):
        parameter.uniform_(0.5, 1, generator=generator)
    elif not isinstance(owner, nn.PReLU):
        parameter.normal_(0, 0.1 if flat else 0.2, generator=generator)


def _fan_in(weight: Tensor, owner: nn.Module) -> int:
    """Return how many inputs are summed into one output."""
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return weight[:, 0].numel() // owner.groups
    if type(owner).__name__ == "Conv1D":  # GPT-2's linear layer holds its weight as (in, out)
        return weight.shape[0]
    return weight[0].numel()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel; half of the variance is that of all, as few positions tell little."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    mean, variance = x.mean(axes), x.var(axes, correction=0)
    return mean, variance / 2 + variance.mean() / 2 + 1e-6


def _statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, generator: torch.Generator) -> None:
    """Set a batch norm's statistics near the given ones, so that none of them is trivial."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    noise = torch.empty(norm.num_features).normal_(0, 0.1, generator=generator)
    norm.running_mean.copy_(mean + noise * variance.sqrt())
    norm.running_var.copy_(variance * torch.empty(norm.num_features).uniform_(0.5, 1.5, generator=generator))


@contextmanager
def _before(norms: list[_BatchNorm], act: Callable[[_BatchNorm, Tensor], None]) -> Iterator[None]:
    def hook(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        act(norm, given[0])

    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["difference", "initialise"]
