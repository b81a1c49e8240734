"""Fake quantization in captured graphs: ATen's operators, and what `torch.export` needs to know of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

PER_TENSOR = torch.ops.aten.fake_quantize_per_tensor_affine.default
"""Of an activation: `(x, scale, zero_point, least, most)`, the scale a number of the graph."""

PER_CHANNEL = torch.ops.aten.fake_quantize_per_channel_affine.default
"""Of a weight: `(weight, scales, zero_points, axis, least, most)`, the scales a buffer."""

# Kept for as long as the process lives: the registrations go with it.
_LIBRARY = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]  # torch leaves it untyped


def bare(node: Node) -> Node:
    """Return what a node rounds, if it is the fake quantization of a weight; else the node itself."""
    source = node.args[0] if node.target == PER_CHANNEL else node
    return source if isinstance(source, Node) else node


def _masked(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


def _register() -> None:
    """Tell torch the shapes of what fake quantization gives, where it does not know them (2.14 does not).

    Without them a graph with fake quantization cannot be captured again with a batch that varies.
    """
    for kind in ("tensor", "channel"):
        name = f"fake_quantize_per_{kind}_affine_cachemask"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            _LIBRARY.impl(name, _masked)  # type: ignore[no-untyped-call]  # as above


_register()
