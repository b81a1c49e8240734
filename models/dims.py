"""Which dimensions of a model may vary, and how they are called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument

from .errors import BadInput

BATCH = "batch"
Dims = tuple[dict[int, str], ...]
"""For each input the names of its dimensions that may vary, by their position."""


def asked(
    module: nn.Module, examples: tuple[Tensor, ...], dynamic_batch: bool, named: Mapping[str, Mapping[int, str]]
) -> Dims:
    """Return which dimensions are to vary.

    Args:
        module: its `forward` names the inputs.
        examples: the inputs, in order.
        dynamic_batch: whether dimension 0 of every input does, as `batch`.
        named: others by input: position to name.

    Raises:
        BadInput: no such input or dimension, the batch is named anew, or one name stands for two sizes.
    """
    inputs = _input_names(module, len(examples))
    dims: list[dict[int, str]] = [{0: BATCH} if dynamic_batch and x.ndim else {} for x in examples]
    for name, entries in named.items():
        if name not in inputs:
            near = difflib.get_close_matches(name, inputs, 1, 0)
            raise BadInput(f"dynamic: no input {name!r}; the nearest of {', '.join(inputs)} is {near[0]!r}")
        place = inputs.index(name)
        for position, label in entries.items():
            _check(name, position, label, examples[place].ndim, dynamic_batch)
            dims[place][position] = label
    _check_sizes(inputs, examples, dims)
    return tuple(dims)


def _check(name: str, position: int, label: str, rank: int, dynamic_batch: bool) -> None:
    if not isinstance(position, int) or not 0 <= position < rank:
        raise BadInput(f"dynamic: input {name!r} has no dimension {position!r}; it has {rank}, counted from 0")
    if dynamic_batch and position == 0:
        raise BadInput(f"dynamic: dimension 0 of {name!r} is {BATCH!r} already; leave it out")
    if not label.isidentifier() or (dynamic_batch and label == BATCH):
        raise BadInput(f"dynamic: {label!r} cannot name dimension {position} of {name!r}; choose a word such as length")


def _check_sizes(inputs: list[str], examples: tuple[Tensor, ...], dims: list[dict[int, str]]) -> None:
    """Raise where examples give one name two sizes."""
    sizes: dict[str, tuple[str, int]] = {}
    for name, x, entries in zip(inputs, examples, dims, strict=True):
        for position, label in entries.items():
            first, size = sizes.setdefault(label, (name, x.shape[position]))
            if label != BATCH and size != x.shape[position]:
                raise BadInput(
                    f"dynamic: {label!r} is {size} in {first!r} and {x.shape[position]} in {name!r}; give examples of "
                    "one size, or two names"
                )


def _input_names(module: nn.Module, count: int) -> list[str]:
    """Return the names that `torch.export` gives to positional inputs."""
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{place}" for place in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[:count]


def check_varies(program: ExportedProgram, dims: Dims) -> None:
    """Raise unless capture left every named dimension open.

    Raises:
        BadInput: the model's code fixes one, or its example has size 1.
    """
    for (name, shape), entries in zip(_input_shapes(program), dims, strict=True):
        for position, label in entries.items():
            if label != BATCH and isinstance(shape[position], int):
                raise BadInput(
                    f"the model's code fixes dimension {position} ({label}) of {name!r} at {shape[position]}; derive "
                    "sizes from x.shape, and give an example of at least 2 there"
                )


def found(program: ExportedProgram) -> dict[str, dict[int, str]]:
    """Return the dimensions beside the batch that a captured program leaves open, with names made from their inputs."""
    labels: dict[Any, str] = {}
    named: dict[str, dict[int, str]] = {}
    for name, shape in _input_shapes(program):
        for position, size in enumerate(shape):
            if position and isinstance(size, torch.SymInt):
                label = labels.setdefault(size.node.expr, f"{name}_{position}")
                named.setdefault(name, {})[position] = label
    return named


def output_shapes(program: ExportedProgram, dims: Dims) -> list[tuple[int | str, ...]]:
    """Return the shapes of a program's outputs; dimensions that follow an input's have its name, or a term of it."""
    labels: dict[Any, str] = {}
    for (_, shape), entries in zip(_input_shapes(program), dims, strict=True):
        for position, label in entries.items():
            size = shape[position]
            if isinstance(size, torch.SymInt):
                labels.setdefault(size.node.expr, label)
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    values = [nodes[spec.arg.name] for spec in specs if isinstance(spec.arg, TensorArgument)]
    return [tuple(_label(size, labels) for size in value.shape) for value in values if isinstance(value, Tensor)]


def _label(size: int | torch.SymInt, labels: Mapping[Any, str]) -> int | str:
    size = _plain(size)
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return labels.get(expression) or str(expression.xreplace({s: type(s)(n) for s, n in labels.items() if s.is_symbol}))


def _input_shapes(program: ExportedProgram) -> list[tuple[str, tuple[int | torch.SymInt, ...]]]:
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names = [str(name) for name in program.graph_signature.user_inputs]
    return [(name, tuple(map(_plain, nodes[name].shape)) if isinstance(nodes[name], Tensor) else ()) for name in names]


def _plain(size: int | torch.SymInt) -> int | torch.SymInt:
    """Return a size that capture has fixed as a number; torch may keep it as a symbol that has a value."""
    return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size


__all__ = ["BATCH", "Dims", "asked", "check_varies", "found", "output_shapes"]
