"""Sparse weights: which a graph can have, which of their elements become zero, and how those are kept at zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..models.errors import BadInput, ToolFailed, first_few
from ..models.fake_quantize import bare
from ..models.graph import aten, get_tensor
from ..models.model import Model, Sparsity
from .folding import CONVOLUTIONS

if TYPE_CHECKING:
    from .sparsify import Sparsify

GROUP, LEFT = 4, 2
"""Of so many neighbours along the input, so many may be other than zero."""

# Of each operator: which argument is its weight, and which dimension of that goes along the input.
_WEIGHTS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((*CONVOLUTIONS, aten.linear.default), (1, 1)),
    **dict.fromkeys((aten.matmul.default, aten.mm.default), (1, 0)),
    aten.addmm.default: (2, 0),
}


@dataclass(frozen=True)
class Kernel:
    """A weight that an operator multiplies its input with: its name, and the dimension along the input.

    That is None where operators read one weight along different dimensions.
    """

    weight: str
    along: int | None

    @property
    def layer(self) -> str:
        """The name that patterns match and facts show."""
        return self.weight.removesuffix(".weight")


def kernels(model: Model) -> list[Kernel]:
    """Return the weights of convolutions, linear layers and matrix products with a constant, in the graph's order."""
    found: dict[str, int | None] = {}
    for node in model.module.graph.nodes:
        place, along = _WEIGHTS.get(node.target, (0, 0))
        source = node.args[place] if place and node.op == "call_function" else None
        weight = bare(source) if isinstance(source, Node) else None
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        name = str(weight.target)
        value = get_tensor(model.module, name)
        if value.is_floating_point() and (value.ndim == 2 if along == 0 else value.ndim > 1):
            found[name] = along if found.get(name, along) == along else None
    return [Kernel(name, along) for name, along in found.items()]


def sparse_model(model: Model, settings: Sparsify) -> tuple[Model, dict[str, str]]:
    """Return a model with the zeros that the settings ask for, marked as sparse, and why layers were left, by name.

    Raises:
        BadInput: a pattern to ignore matches no layer, or nothing becomes zero.
    """
    found = kernels(model)
    _check_patterns(settings.ignore, [kernel.layer for kernel in found])
    left = {kernel.layer: reason for kernel in found if (reason := _why_left(model, kernel, settings))}
    chosen = [kernel for kernel in found if kernel.layer not in left]
    values = {kernel.weight: get_tensor(model.module, kernel.weight).detach() for kernel in chosen}
    zeros = _zeros(values, chosen, settings)
    left |= {kernel.layer: "too few weights for this ratio" for kernel in chosen if not zeros[kernel.weight].any()}
    if len(left) == len(found):
        why = ", ".join(f"{layer} ({reason})" for layer, reason in list(left.items())[:4])
        raise BadInput(f"nothing to sparsify: {why or 'the model has no convolution and no linear layer'}")
    made = model.copy()
    marks = dict(model.sparsity.patterns) if model.sparsity else {}
    with torch.no_grad():
        for kernel in (kernel for kernel in chosen if kernel.layer not in left):
            get_tensor(made.module, kernel.weight).masked_fill_(zeros[kernel.weight], 0)
            # More zeros leave 2:4 what it is.
            marks[kernel.weight] = "2:4" if marks.get(kernel.weight) == "2:4" else settings.pattern
    return replace(made, sparsity=Sparsity(marks)), left


def _check_patterns(patterns: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse a pattern that matches no layer: a misspelt name would silently do nothing."""
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise BadInput(f"the pattern {pattern!r} matches no layer; there are {first_few(layers) or 'none'}")


def _why_left(model: Model, kernel: Kernel, settings: Sparsify) -> str | None:
    value = get_tensor(model.module, kernel.weight)
    if any(fnmatchcase(kernel.layer, pattern) for pattern in settings.ignore):
        return "ignored"
    if not isinstance(value, nn.Parameter):
        return "a buffer: nothing learnt it"
    if not value.any():
        return "all zero already"
    if settings.pattern == "unstructured":
        return None
    if kernel.along is None:
        return "read along two dimensions"
    width = value.shape[kernel.along]
    return f"input width {width}, no multiple of {GROUP}" if width % GROUP else None


def _zeros(values: Mapping[str, Tensor], chosen: Sequence[Kernel], settings: Sparsify) -> dict[str, Tensor]:
    """Return, for each weight, which of its elements are to be zero."""
    sizes = {name: value.abs() for name, value in values.items()}
    if settings.pattern == "2:4":
        return {k.weight: smallest_of_four(sizes[k.weight], k.along or 0) for k in chosen}
    if settings.scope == "layer":
        return {name: smallest(size, settings.ratio) for name, size in sizes.items()}
    if not sizes:
        return {}
    together = smallest(torch.cat([size.flatten() for size in sizes.values()]), settings.ratio)
    parts = torch.split(together, [size.numel() for size in sizes.values()])
    return {name: part.view(size.shape) for (name, size), part in zip(sizes.items(), parts, strict=True)}


def smallest(sizes: Tensor, ratio: float) -> Tensor:
    """Return where the `round(ratio * n)` smallest of `n` numbers are; of equal ones the first."""
    flat = sizes.flatten()
    found = torch.zeros_like(flat, dtype=torch.bool)
    found[flat.argsort(stable=True)[: round(ratio * len(flat))]] = True
    return found.view(sizes.shape)


def smallest_of_four(sizes: Tensor, along: int) -> Tensor:
    """Return where the two smallest of every four neighbours along a dimension are; of equal ones the first."""
    groups = _groups(sizes, along)
    order = groups.argsort(dim=-1, stable=True)[..., : GROUP - LEFT]
    found = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order, True)
    return found.flatten(-2).movedim(-1, along).contiguous()


def is_two_of_four(weight: Tensor, along: int | None) -> bool:
    """Whether at most two of every four neighbours along a dimension are other than zero."""
    if along is None or weight.shape[along] % GROUP:
        return False
    return bool((_groups(weight, along).count_nonzero(-1) <= LEFT).all())


def _groups(value: Tensor, along: int) -> Tensor:
    """Return a tensor with every four neighbours along a dimension in its last one."""
    moved = value.movedim(along, -1)
    return moved.reshape(*moved.shape[:-1], -1, GROUP)


# --- later passes


@contextmanager
def zeros_held(model: Model) -> Iterator[None]:
    """While it lasts, training leaves the zeros of sparse weights at zero.

    Their gradients are zero, and so is what momentum and weight decay make of them.
    """
    names = model.sparsity.patterns if model.sparsity else {}
    weights = [get_tensor(model.module, name) for name in names]
    hooks = [_without_gradient(weight, weight.detach() == 0) for weight in weights if weight.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without_gradient(weight: Tensor, zeros: Tensor) -> Any:
    return weight.register_hook(lambda gradient: gradient.masked_fill(zeros, 0))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def still_sparse(before: Model, after: Model) -> Model:
    """Check that a pass kept what was sparse; return its model, marked with those sparse weights that are left.

    Raises:
        ToolFailed: a weight of the old shape lost zeros.
        BadInput: a weight is no longer 2:4, as channels went from its groups.
    """
    if before.sparsity is None or after is before:
        return after
    along = {kernel.weight: kernel.along for kernel in kernels(after)}
    marks = after.sparsity.patterns if after.sparsity else before.sparsity.patterns
    marks = {name: pattern for name, pattern in marks.items() if name in along}
    old, new = before.module.state_dict(), after.module.state_dict()
    for name in marks.keys() & before.sparsity.patterns:
        if old[name].shape == new[name].shape and new[name][old[name] == 0].any():
            raise ToolFailed(f"{name} was sparse and lost zeros")
    torn = [name for name in marks if marks[name] == "2:4" and not is_two_of_four(new[name], along[name])]
    if torn:
        raise BadInput(
            f"groups of four lost channels, so that 2:4 holds no longer for {first_few(torn)}; "
            "sparsify after this pass, not before"
        )
    return replace(after, sparsity=Sparsity(marks) if marks else None)
