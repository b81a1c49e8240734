"""What sparsity came to, in numbers: zeros, and what a compressor makes of the weights."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..models.graph import get_tensor
from ..models.model import Model
from .sparsity import kernels

LEVEL = 6
"""How hard zlib tries: what zip and gzip do unless told otherwise."""


def sparsity_facts(before: Model, after: Model) -> dict[str, Any]:
    """Return how many weights are zero, and the compressed size of all tensors.

    `weights`, `zeros` and their share `sparsity` are over the weights of all convolutions and linear layers, those
    left too; `sparsity_by_pattern` and `sparsity_by_layer` are shares in the sparse ones.
    `compressed_bytes_before/after` is what all tensors' bytes are in a zip or gzip file.
    """
    values = {kernel.weight: get_tensor(after.module, kernel.weight) for kernel in kernels(after)}
    layers = {kernel.weight: kernel.layer for kernel in kernels(after)}
    marks = after.sparsity.patterns if after.sparsity else {}
    return {
        "sparsity": _share(values.values()),
        "zeros": sum(map(_zeros, values.values())),
        "weights": sum(value.numel() for value in values.values()),
        "compressed_bytes_before": compressed_bytes(before),
        "compressed_bytes_after": compressed_bytes(after),
        "sparsity_by_pattern": {
            pattern: _share(values[name] for name in marks if marks[name] == pattern)
            for pattern in sorted(set(marks.values()))
        },
        "sparsity_by_layer": {layers[name]: _share([values[name]]) for name in marks},
    }


def compressed_bytes(model: Model) -> int:
    """Return how many bytes all tensors of a model are together when zlib has compressed them."""
    compressor = zlib.compressobj(LEVEL)
    sizes = [
        len(compressor.compress(value.detach().contiguous().flatten().view(torch.uint8).numpy()))
        for value in model.module.state_dict().values()
    ]
    return sum(sizes) + len(compressor.flush())


def _zeros(value: Tensor) -> int:
    return value.numel() - int(value.count_nonzero())


def _share(values: Iterable[Tensor]) -> float:
    counts = [(_zeros(value), value.numel()) for value in values]
    return round(sum(zeros for zeros, _ in counts) / sum(number for _, number in counts), 4)
