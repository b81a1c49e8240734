"""First convolutions in integers: they read an image in blocks of two by two pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .onnx_shapes import attributes_of

Array = NDArray[Any]

_MOST_CHANNELS = 4
"""With more, the pieces that a kernel gathers are long enough as they are."""

_PLAIN = {"dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET"}


def stems_in_blocks(proto: ModelProto) -> ModelProto:
    """Let convolutions of few channels that go in steps of two read blocks of pixels, in place; results are the same.

    ONNX Runtime's integer kernel gathers an image in pieces of its channels, three bytes for colours, which takes most
    of a first convolution's time. SpaceToDepth makes one pixel of each two by two, four times as deep; the convolution
    goes over them in steps of one, with zeros in its weights where a block reaches beyond the kernel.

    Args:
        proto: with Q/DQ pairs for CPUs, each DequantizeLinear with one reader. An image whose height or width is odd or
            not known is read as it is.
    """
    graph = proto.graph
    held = {one.name: one for one in graph.initializer}
    stems = [*_stems(proto, held)]
    sizes = _image_sizes(proto) if stems else {}
    for stem in stems:
        pads = stem.pads_around(sizes.get(stem.image.output[0], (1, 1)))
        if pads is None:
            continue
        name = f"{stem.whole.name}/blocks"
        if name not in held:
            held[name] = numpy_helper.from_array(stem.weight_in_blocks(), name)
            graph.initializer.append(held[name])
        blocks = f"{stem.image.output[0]}/blocks"
        shuffle = helper.make_node("SpaceToDepth", [stem.image.input[0]], [blocks], blocks, blocksize=2)
        graph.node.insert([*graph.node].index(stem.image), shuffle)
        stem.image.input[0], stem.weight.input[0] = blocks, name
        _set(stem.node, kernel_shape=[*held[name].dims[2:]], strides=[1, 1], pads=pads)
    read = {name for node in graph.node for name in node.input}
    for stem in stems:
        if stem.whole.name not in read and stem.whole in graph.initializer:
            graph.initializer.remove(stem.whole)
    return proto


@dataclass(frozen=True, eq=False)
class _Stem:
    """A convolution in steps of two, what dequantizes its image and its weight, and that weight's integers."""

    node: NodeProto
    image: NodeProto
    weight: NodeProto
    whole: TensorProto

    @property
    def _pads(self) -> list[int]:
        return [*attributes_of(self.node).get("pads", [0, 0, 0, 0])]

    def pads_around(self, size: tuple[int, int]) -> list[int] | None:
        """Return the padding in blocks; None where height or width cannot be read in pairs."""
        begin, end = self._pads[:2], self._pads[2:]
        made: list[tuple[int, int]] = []
        for pixels, kernel, before, after in zip(size, self.whole.dims[2:], begin, end, strict=True):
            first, last = _reach(kernel, before)
            steps = (pixels + before + after - kernel) // 2
            beyond = steps + last - (pixels // 2 - 1)
            if pixels % 2 or beyond < 0:
                return None
            made.append((-first, beyond))
        return [before for before, _ in made] + [beyond for _, beyond in made]

    def weight_in_blocks(self) -> Array:
        """Return `(outputs, 4 channels, blocks, blocks)` with each weight where SpaceToDepth puts its pixel."""
        values = numpy_helper.to_array(self.whole)
        outputs, channels, height, width = values.shape
        (top, bottom), (left, right) = _reach(height, self._pads[0]), _reach(width, self._pads[1])
        made = np.zeros((outputs, 2, 2, channels, bottom - top + 1, right - left + 1), values.dtype)
        for row in range(height):
            for column in range(width):
                (down, y), (along, x) = divmod(row - self._pads[0], 2), divmod(column - self._pads[1], 2)
                made[:, y, x, :, down - top, along - left] = values[:, :, row, column]
        return made.reshape(outputs, 4 * channels, *made.shape[4:])


def _reach(kernel: int, before: int) -> tuple[int, int]:
    """Return the first and the last block that a kernel reads, counted from where it stands."""
    return -before // 2, (kernel - 1 - before) // 2


def _stems(proto: ModelProto, held: Mapping[str, TensorProto]) -> Iterator[_Stem]:
    """Yield the convolutions that may be written anew."""
    pairs = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    for node in proto.graph.node:
        image, weight = (pairs.get(name) for name in (*node.input, "", "")[:2])
        if node.op_type != "Conv" or image is None or weight is None or weight.input[0] not in held:
            continue
        whole = held[weight.input[0]]
        few = len(whole.dims) == 4 and whole.dims[1] <= _MOST_CHANNELS and min(whole.dims[2:]) > 2
        told = attributes_of(node)
        plain = all(told.get(name, usual) == usual for name, usual in _PLAIN.items())
        if few and plain and told.get("strides") == [2, 2]:
            yield _Stem(node, image, weight, whole)


def _image_sizes(proto: ModelProto) -> dict[str, tuple[int, int]]:
    """Return height and width of every value whose two are known."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    found: dict[str, tuple[int, int]] = {}
    for value in (*graph.value_info, *graph.input):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) == 4 and min(dims[2:]) > 0:
            found[value.name] = dims[2], dims[3]
    return found


def _set(node: NodeProto, **values: list[int]) -> None:
    """Replace attributes."""
    kept = [one for one in node.attribute if one.name not in values]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])
