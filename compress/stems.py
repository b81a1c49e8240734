"""The first convolution of a network, fitted to images of another number of colours."""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from ..models.errors import BadInput
from ..models.graph import argument, aten, get_tensor


def find_stem(module: GraphModule) -> str:
    """Return the name of the weight `(out, colours, height, width)` of the only convolution that reads the input.

    Raises:
        BadInput: something else reads the images, so that their colours cannot be changed.
    """
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    readers = [node for node in images.users if _reads(node)]
    while len(readers) == 1 and _frames(readers[0]):
        readers = [node for node in readers[0].users if _reads(node)]
    if len(readers) == 1 and readers[0].target == aten.conv2d.default and argument(readers[0], "groups") == 1:
        weight = argument(readers[0], "weight")
        if isinstance(weight, Node) and weight.op == "get_attr":
            get_tensor(module, str(weight.target))
            return str(weight.target)
    named = ", ".join(str(node.target) for node in readers) or "nothing"
    raise BadInput(f"the images are read by {named}, wanted one convolution; give data of the model's colours")


def _frames(node: Node) -> bool:
    """Whether an operator puts a border around images, in height and width alone."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return False
    widths = node.args[1]
    return isinstance(widths, list | tuple) and len(widths) <= 4


def _reads(node: Node) -> bool:
    """Whether an operator reads values, and not a size alone."""
    return "sym_size" not in str(node.target)


def other_colours(weight: Tensor, colours: int) -> Tensor:
    """Return a first kernel `(out, colours, h, w)` for another number of colours.

    For grey images the kernel is summed over colours, which is exact where all colours were alike; a grey kernel is
    repeated and divided by their number, so that alike colours give what grey gave.

    Raises:
        BadInput: neither side is grey.
    """
    held = weight.shape[1]
    if colours == held:
        return weight
    if colours == 1:
        return weight.sum(1, keepdim=True)
    if held == 1:
        return weight.repeat(1, colours, 1, 1) / colours
    raise BadInput(f"the first convolution reads {held} colours, the data have {colours}; wanted grey on one side")


__all__ = ["find_stem", "other_colours"]
