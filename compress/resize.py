"""Recompute the sizes that operators carry as plain numbers, after channels were removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from ..models.graph import argument, aten, put_argument, shape_of, sizes_of
from .atoms import Atoms, Lost, kept
from .channels import Channels, Dims


class _Sizes:
    """The dimensions of nodes before and after some atoms are gone."""

    def __init__(self, channels: Channels, lost: Lost) -> None:
        self._channels, self._lost = channels, lost

    def dims(self, node: Any) -> Dims:
        return self._channels.nodes.get(node.name, ()) if isinstance(node, Node) else ()

    def left(self, atoms: Atoms) -> int:
        """Return how many positions are left."""
        return int(kept(atoms, self._lost).sum())

    def after(self, node: Any, dim: int) -> int | None:
        """Return the new size of a dimension that lost something; None of others."""
        atoms = self.dims(node)[dim]
        left = None if atoms is None else self.left(atoms)
        return None if atoms is None or left == len(atoms) else left


def resize(node: Node, channels: Channels, lost: Lost) -> None:
    """Write the new sizes into one operator's arguments, where its dimensions lost something."""
    writer = _WRITERS.get(node.target)
    if writer is not None:
        writer(node, _Sizes(channels, lost))


def _groups(node: Node, sizes: _Sizes) -> None:
    """The groups that are left: channels by channels in each."""
    if int(argument(node, "groups")) == 1:
        return
    each = sizes.dims(node.args[1])[1]
    in_each = (sizes_of(node.args[1])[1] or 1) if each is None else sizes.left(each)
    channels = sizes.dims(node if "transpose" in str(node.target) else node.args[0])[1]
    if channels is not None:
        put_argument(node, "groups", sizes.left(channels) // in_each)


def _view(node: Node, sizes: _Sizes) -> None:
    """Write the new width where a view names the old one; a batch times heads is left to be found."""
    name = "sizes" if "unflatten" in str(node.target) else "size" if argument(node, "size") is not None else "shape"
    first = int(argument(node, "dim")) % len(shape_of(node.args[0]) or ()) if name == "sizes" else 0  # type: ignore[arg-type]  # a node
    written: list[Any] = list(argument(node, name))
    for place in range(len(written)):
        left = sizes.after(node, first + place)
        if left is None:
            continue
        if sizes_of(node)[first + place] is not None:
            if written[place] != -1:
                written[place] = left
            continue
        for other, size in enumerate(sizes_of(node)[first : first + len(written)]):
            if size is not None and written[other] == -1:
                atoms = sizes.dims(node)[first + other]
                written[other] = size if atoms is None else sizes.left(atoms)
        written[place] = -1
    put_argument(node, name, written)


def _flat_sizes(node: Node, sizes: _Sizes) -> None:
    """Write the sizes of a tensor that is made or expanded."""
    written: list[Any] = list(argument(node, "size"))
    for place in range(len(written)):
        left = sizes.after(node, place)
        if left is not None and written[place] != -1:
            written[place] = left
    put_argument(node, "size", written)


def _split(node: Node, sizes: _Sizes) -> None:
    """Every part has the width that is left of it: parts are split by their own sizes from now on."""
    source = node.args[0]
    dim = int(argument(node, "dim")) % len(sizes.dims(source))
    atoms = sizes.dims(source)[dim]
    if atoms is None or sizes.after(source, dim) is None:
        return
    widths, start = [], 0
    for part in node.meta["val"]:
        widths.append(sizes.left(atoms[start : start + part.shape[dim]]))
        start += part.shape[dim]
    node.target = aten.split_with_sizes.default
    node.args, node.kwargs = (source, widths, dim), {}


def _slice(node: Node, sizes: _Sizes) -> None:
    source = node.args[0]
    dim = int(argument(node, "dim")) % len(sizes.dims(source))
    atoms = sizes.dims(source)[dim]
    if atoms is None or sizes.after(source, dim) is None:
        return
    step, start = int(argument(node, "step", 1)), int(argument(node, "start") or 0)
    start = start + len(atoms) if start < 0 else start
    width = sizes_of(node)[dim] or 0
    before = sizes.left(atoms[:start]) if step == 1 else start
    end = before + sizes.left(atoms[start : start + width]) if step == 1 else 2**63 - 1
    node.target = aten.slice.Tensor
    node.args, node.kwargs = (source, dim, before, end, step), {}


def _select(node: Node, sizes: _Sizes) -> None:
    source = node.args[0]
    dim = int(argument(node, "dim")) % len(sizes.dims(source))
    atoms = sizes.dims(source)[dim]
    if atoms is not None:
        index = int(argument(node, "index")) % len(atoms)
        put_argument(node, "index", sizes.left(atoms[:index]))


def _normalized(node: Node, sizes: _Sizes) -> None:
    shape = list(argument(node, "normalized_shape"))
    for place in range(-len(shape), 0):
        shape[place] = sizes.after(node, place) or shape[place]
    put_argument(node, "normalized_shape", shape)


def _norm_groups(node: Node, sizes: _Sizes) -> None:
    """Of groups that lost channels as many are left; whole groups may have gone."""
    atoms, groups = sizes.dims(node)[1], int(argument(node, "num_groups"))
    if atoms is not None:
        each = len(atoms) // groups
        put_argument(node, "num_groups", sum(sizes.left(atoms[i : i + each]) > 0 for i in range(0, len(atoms), each)))


def _attention_scale(node: Node, sizes: _Sizes) -> None:
    """Scores keep their scale, which is by default that of the head size."""
    if argument(node, "scale") is None and sizes.after(node.args[0], -1) is not None:
        atoms = sizes.dims(node.args[0])[-1]
        node.update_kwarg("scale", (1 if atoms is None else len(atoms)) ** -0.5)


_Writer = Callable[[Node, _Sizes], None]


def _all(names: str, writer: _Writer) -> dict[Any, _Writer]:
    packets = [getattr(aten, name) for name in names.split()]
    return {getattr(packet, overload): writer for packet in packets for overload in packet.overloads()}


_WRITERS: dict[Any, _Writer] = {
    **_all("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", _groups),
    **_all("view reshape _unsafe_view unflatten", _view),
    **_all("expand broadcast_to zeros ones full empty new_zeros new_ones new_full new_empty", _flat_sizes),
    **_all("split split_with_sizes chunk tensor_split", _split),
    **_all("slice narrow", _slice),
    **_all("select", _select),
    **_all("layer_norm rms_norm", _normalized),
    **_all("group_norm", _norm_groups),
    **_all("scaled_dot_product_attention", _attention_scale),
}
