"""How each ATen operator carries channels from its inputs to its output: the one list of what is known.

A rule takes the tracker and a node and returns the dimensions of the node's output. Every operator that is not in
`RULES` freezes what reaches it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..models.graph import aten, shape_of
from . import rules_layers as layers
from . import rules_parts as parts
from . import rules_pointwise as pointwise
from . import rules_products as products
from . import rules_shapes as shapes
from .channels import Dims, Tracker

Rule = Callable[[Tracker, Node], Dims]


def follow(tracker: Tracker, node: Node) -> None:
    """Apply the rule of one node and remember the dimensions of its output."""
    if node.op == "get_attr":
        tracker.values[node] = _attribute(tracker, str(node.target))
    elif node.op == "placeholder":
        tracker.values[node] = untracked(node)
    elif node.op == "output":
        tracker.freeze_all(node, "an output of the model")
    elif node.op == "call_function":
        rule = RULES.get(node.target)
        found = rule(tracker, node) if rule and _is_followed(tracker, node) else None
        tracker.values[node] = _unknown(tracker, node) if found is None else found


def _attribute(tracker: Tracker, name: str) -> Dims:
    """Return the dimensions of a tensor; a graph (the body of `torch.cond` or of a `no_grad` block) has none."""
    value = operator.attrgetter(name)(tracker.model.module)
    return tracker.tensor(name, value) if isinstance(value, Tensor) else ()


def untracked(node: Node) -> Dims:
    """Return dimensions of which nothing can be removed."""
    return (None,) * len(shape_of(node) or ())


def _is_followed(tracker: Tracker, node: Node) -> bool:
    """Whether the node can be followed at all: a rule may rely on shapes that capture recorded."""
    return "val" in node.meta or node.target in _WITHOUT_SHAPE


def _unknown(tracker: Tracker, node: Node) -> Dims:
    if any(atoms is not None for source in node.all_input_nodes for atoms in tracker.dims(source)):
        tracker.unknown.add(str(node.target))
    tracker.freeze_all(node, f"reaches {node.target}, which has no rule")
    return untracked(node)


def _words(text: str) -> list[str]:
    return text.split()


def _overloads(names: Iterable[str], rule: Any) -> dict[Any, Rule]:
    """Give one rule to all overloads of these operators and of their in-place forms (`relu_`)."""
    spellings = [spelling for name in names for spelling in (name, f"{name}_") if hasattr(aten, spelling)]
    packets = [getattr(aten, spelling) for spelling in spellings]
    return {getattr(packet, overload): rule for packet in packets for overload in packet.overloads()}


_UNARY = _words("""
    relu relu6 leaky_relu rrelu elu celu selu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus
    softsign log_sigmoid hardshrink softshrink threshold dropout feature_dropout alpha_dropout neg abs sign exp exp2
    expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan atan erf erfc floor ceil round trunc
    logical_not bitwise_not isnan isinf isfinite nan_to_num contiguous clone alias detach detach_ to _to_copy
    type_as lift_fresh_copy lift_fresh zeros_like ones_like full_like empty_like rand_like randn_like zero bernoulli
    positive negative logit frac sinh cosh asin acos asinh acosh atanh float_power
""")
_BINARY = _words("""
    add sub mul div rsub true_divide floor_divide remainder fmod pow maximum minimum fmax fmin atan2 eq ne lt le gt
    ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor where masked_fill lerp addcmul addcdiv
    subtract multiply divide xlogy hypot copy fill clamp clamp_min clamp_max __and__ __or__
""")
_POOLS = ["max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool"]
_ALONG = _words("""
    softmax log_softmax _softmax _log_softmax _safe_softmax  cumsum cumprod
""")
_SCALARS = [
    aten.sym_size.int, aten.sym_numel.default, torch.sym_float, torch.sym_int, torch.sym_max, torch.sym_min,
    torch.sym_not,
    operator.mul, operator.add, operator.sub, operator.floordiv, operator.truediv, operator.mod, operator.neg,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.pow,
    aten._assert_scalar.default, aten._assert_tensor_metadata.default,
]  # fmt: skip
_WITHOUT_SHAPE = {*_SCALARS, operator.getitem}

RULES: dict[Any, Rule] = {
    **_overloads(_UNARY, pointwise.same),
    **_overloads(_BINARY, pointwise.broadcast),
    **_overloads(_ALONG, pointwise.staying_along),
    **_overloads(["sum", "nansum"], pointwise.sums),
    **_overloads(["mean", "var", "std", "var_mean", "std_mean"], pointwise.statistics),
    **_overloads(_words("amax amin max min argmax argmin any all prod logsumexp"), pointwise.reduced),
    **_overloads(["linalg_vector_norm", "norm"], pointwise.norms),
    **_overloads([f"{name}1d" for name in _POOLS], pointwise.pool_over(1)),
    **_overloads([f"{name}2d" for name in _POOLS], pointwise.pool_over(2)),
    **_overloads([f"{name}3d" for name in _POOLS], pointwise.pool_over(3)),
    **_overloads(["max_pool2d_with_indices"], pointwise.pool_over(2)),
    **_overloads(["upsample_nearest1d", "upsample_linear1d"], pointwise.pool_over(1)),
    **_overloads(
        [
            "upsample_nearest2d",
            "_upsample_nearest_exact2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ],
        pointwise.pool_over(2),
    ),
    **_overloads(["upsample_nearest3d", "upsample_trilinear3d"], pointwise.pool_over(3)),
    **_overloads(["glu"], pointwise.gated),
    **_overloads(["prelu"], layers.channelwise),
    **_overloads(["conv1d", "conv2d", "conv3d"], layers.convolution),
    **_overloads(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], layers.transposed_convolution),
    **_overloads(["linear"], layers.linear),
    **_overloads(["batch_norm", "instance_norm"], layers.batch_norm),
    **_overloads(["layer_norm", "rms_norm"], layers.layer_norm),
    **_overloads(["group_norm"], layers.group_norm),
    **_overloads(["matmul", "mm", "bmm", "mv", "dot"], products.matmul),
    **_overloads(["addmm", "baddbmm"], products.add_matmul),
    **_overloads(["einsum"], products.einsum),
    **_overloads(["scaled_dot_product_attention"], products.attention),
    **_overloads(["embedding"], layers.embedding),
    **_overloads(["lstm", "gru", "rnn_tanh", "rnn_relu"], layers.recurrent),
    **_overloads(["cat", "concat", "concatenate"], parts.concat),
    **_overloads(["stack"], parts.stack),
    **_overloads(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"], shapes.reshape),
    **_overloads(["unsqueeze"], shapes.unsqueeze),
    **_overloads(["squeeze"], shapes.squeeze),
    **_overloads(["expand", "expand_as", "broadcast_to"], shapes.expand),
    **_overloads(["repeat"], shapes.repeat),
    **_overloads(["repeat_interleave"], shapes.repeat_interleave),
    **_overloads(["permute"], shapes.permute),
    **_overloads(["transpose", "swapaxes", "t", "numpy_T", "mT", "adjoint"], shapes.transpose),
    **_overloads(["movedim", "moveaxis"], shapes.moved),
    **_overloads(["split", "split_with_sizes", "chunk", "tensor_split"], parts.split),
    **_overloads(["unbind"], parts.unbind),
    **_overloads(["select"], parts.select),
    **_overloads(["slice", "narrow"], parts.narrow),
    **_overloads(["index"], shapes.index),
    **_overloads(["index_select"], shapes.index_select),
    **_overloads(["roll", "flip", "tril", "triu"], shapes.moved_within),
    **_overloads(["pad", "constant_pad_nd"], shapes.pad),
    **_overloads(["pixel_shuffle"], shapes.pixel_shuffle),
    **_overloads(["pixel_unshuffle"], shapes.pixel_unshuffle),
    **_overloads(["channel_shuffle"], shapes.channel_shuffle),
    **_overloads(["unfold", "im2col"], shapes.unfold),
    **_overloads(["zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"], shapes.created),
    **_overloads(["rand", "randn", "arange", "eye", "scalar_tensor", "linspace"], shapes.constant),
    **dict.fromkeys(_SCALARS, shapes.nothing),
    operator.getitem: parts.item,
}
