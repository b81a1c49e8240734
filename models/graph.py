"""Small tools on captured graphs: `torch.fx` modules of ATen operators, as `torch.export` makes them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

SUMS = (aten.add.Tensor, aten.add_.Tensor)

# Operators that behave differently in training, with the position of the flag that says so.
TRAINING_FLAG = {
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
        if place is not None and len(node.args) > place:
            node.update_arg(place, training)
    module.recompile()


def copy_graph(module: GraphModule) -> GraphModule:
    """Return a deep copy: its own graph, parameters and buffers."""
    return copy.deepcopy(module)


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


def shape_of(node: Node) -> tuple[int | torch.SymInt, ...] | None:
    """Return the shape that capture recorded for a node's single tensor, or None."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def changes(user: Node, node: Node) -> bool:
    """Whether an operator changes another's result in place."""
    schema = getattr(user.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable and user.args and user.args[0] is node)
