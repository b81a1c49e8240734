"""What a model costs when some of its channels are gone, from the sizes alone: parameters and multiply-accumulates."""

from __future__ import annotations

from typing import Any

from ..models.graph import shape_of
from ..models.model import Model
from ..models.operator_macs import Sizes, macs_of, product
from .atoms import Lost, kept
from .channels import Channels, Dims
from .rules_shapes import period


def costs(model: Model, channels: Channels, lost: Lost) -> dict[str, int]:
    """Return `params` and `macs` (per example) without the atoms `lost`. MACs are those of layers and products."""
    sizes = sizes_without(channels, lost)
    parameters = dict(model.module.named_parameters())
    params = sum(
        product(left(list(parameters[name].shape), dims, lost))
        for name, dims in channels.tensors.items()
        if name in parameters
    )
    return {"params": params, "macs": sum(macs_of(node, sizes) for node in model.module.graph.nodes)}


def sizes_without(channels: Channels, lost: Lost) -> Sizes:
    """Return the function that gives a node's sizes without the atoms `lost`."""

    def sizes(node: Any) -> list[int]:
        shape = shape_of(node) or ()
        return left([period(size) for size in shape], channels.nodes[node.name], lost)

    return sizes


def left(sizes: list[int], dims: Dims, lost: Lost) -> list[int]:
    """Return the sizes of a tensor's dimensions without the atoms `lost`."""
    return [
        size if atoms is None else size // len(atoms) * int(kept(atoms, lost).sum())
        for size, atoms in zip(sizes, dims, strict=True)
    ]
