"""Small tools on captured graphs: `torch.fx` modules of ATen operators, as `torch.export` makes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from . import fake_quantize as fake_quantize  # graphs with fake quantization are captured only once torch knows it

aten = torch.ops.aten

SUMS = (aten.add.Tensor, aten.add_.Tensor)

# Operators that behave differently in training, with the position of the flag that says so.
TRAINING_FLAG: dict[Any, int] = {
    aten.batch_norm.default: 5,
    aten.instance_norm.default: 5,
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
}


def set_training(module: GraphModule, training: bool) -> None:
    """Switch batch norm and dropout of a captured graph, in place (`train()` and `eval()` raise on such graphs)."""
    for node in module.graph.nodes:
        place = TRAINING_FLAG.get(node.target) if node.op == "call_function" else None
        if place is not None and len(node.args) > place and not _has_no_statistics(node):
            node.update_arg(place, training)
    module.recompile()


def _has_no_statistics(node: Node) -> bool:
    """Whether a norm has none to fall back on: it takes those of what it sees, in training or not."""
    return node.target in (aten.batch_norm.default, aten.instance_norm.default) and node.args[3] is None


def copy_graph(module: GraphModule, instead: Mapping[str, Tensor] = MappingProxyType({})) -> GraphModule:
    """Return a deep copy: its own graph, parameters and buffers.

    Parameters and buffers named in `instead` become those tensors, and are not copied; tied ones stay tied.
    """
    known: dict[int, Any] = {}
    made: dict[object, Tensor] = {}
    for name, value in instead.items():
        old = get_tensor(module, name)
        if same_memory(old) not in made:
            same_kind = isinstance(old, torch.nn.Parameter)
            made[same_memory(old)] = torch.nn.Parameter(value, old.requires_grad) if same_kind else value
        known[id(old)] = made[same_memory(old)]
    return copy.deepcopy(module, known)


def module_path(node: Node) -> str:
    """Return the path of the user's module that made this node (`layer1.0.conv1`); empty for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    return paths[-1] if paths else ""


def get_tensor(module: GraphModule, name: str) -> Tensor:
    """Return the parameter or buffer of that dotted name."""
    owner, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(owner), leaf)
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} is no tensor")
    return found


def put_tensor(module: GraphModule, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by another tensor, of any shape, keeping its kind."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, leaf)
    if isinstance(old, torch.nn.Parameter):
        setattr(owner, leaf, torch.nn.Parameter(value.contiguous(), requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, value.contiguous())


def same_memory(value: Tensor) -> object:
    """Return what is equal for tied tensors, and only for those: parameters of several names."""
    return (value.data_ptr(), value.shape, value.stride()) if value.numel() else id(value)


def shape_of(node: Node) -> tuple[int | torch.SymInt, ...] | None:
    """Return the shape that capture recorded for a node's single tensor, or None."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def sizes_of(node: Any) -> list[Any]:
    """Return a tensor's sizes, None where they are unknown: comparing a symbol would add a guard on it."""
    shape = shape_of(node) if isinstance(node, Node) else None
    return [size if isinstance(size, int) else None for size in shape or ()]


def changes(user: Node, node: Node) -> bool:
    """Whether an operator changes another's result in place."""
    schema = getattr(user.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable and user.args and user.args[0] is node)


def argument(node: Node, name: str, default: Any = None) -> Any:
    """Return an operator's argument by the name that its schema gives it; `default` where it has no such argument."""
    for place, entry in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]  # ATen operators have it
        if entry.name == name:
            if place < len(node.args):
                return node.args[place]
            return node.kwargs.get(name, entry.default_value)
    return default


def put_argument(node: Node, name: str, value: Any) -> None:
    """Set an operator's argument by the name that its schema gives it."""
    for place, entry in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]  # as above
        if entry.name == name and place < len(node.args):
            node.update_arg(place, value)
            return
    node.update_kwarg(name, value)
