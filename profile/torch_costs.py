"""What a torch operator costs: its ONNX counterpart, with the output's shape worked out from the inputs. Pure.

Takes events of torch's profiler, which tell the shapes of inputs and small arguments, and nothing of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from .layer_costs import Operation, Shape, Tensor

_TYPES = {
    "float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16", "long int": "int64",
    "long": "int64", "int": "int32", "short": "int16", "signed char": "int8", "unsigned char": "uint8", "bool": "bool",
    "c10::quint8": "uint8", "c10::qint8": "int8", "half": "float16", "long long": "int64",
}  # fmt: skip
_ARGUMENTS = ("", "Scalar", "ScalarList")


def tensor(kind: str, shape: Iterable[int]) -> Tensor:
    """Return a tensor by torch's name of its type, in C++ or Python."""
    return Tensor(_TYPES.get(kind, kind), tuple(map(int, shape)))


def operation(event: Any, outputs: tuple[Tensor, ...] = ()) -> Operation:
    """Return what an event did, under the name of the ONNX operator whose costs it has.

    Args:
        event: a `FunctionEvent` with shapes.
        outputs: of the module that did nothing else; empty where that is not known.

    Returns:
        An operation under torch's own name, which has no rule, where there is no counterpart.
    """
    name = str(event.name).removeprefix("aten::").removesuffix("_")
    inputs = _inputs(event)
    rule = _RULES.get(name)
    try:
        found = None if rule is None else rule(event, inputs, outputs)
    except (IndexError, TypeError, ValueError):
        found = None  # a shape or an argument that the rule needs is not in the trace
    return found or Operation(name, inputs, outputs)


def _inputs(event: Any) -> tuple[Tensor, ...]:
    """List the tensors among the arguments; torch does not tell the type of those in a list."""
    shapes = getattr(event, "structured_input_shapes", None) or event.input_shapes
    arguments: Iterator[tuple[Any, Any]] = zip_longest(shapes, event.input_dtypes or (), fillvalue="")
    return tuple(
        tensor("unknown" if kind == "TensorList" else kind, shape)
        for listed, kind in arguments
        if kind not in _ARGUMENTS
        for shape in (listed if kind == "TensorList" else [listed])
    )


def _argument(event: Any, place: int) -> Any:
    return event.concrete_inputs[place]


_Rule = Callable[[Any, tuple[Tensor, ...], tuple[Tensor, ...]], Operation | None]


def _convolution(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation | None:
    """Take strides and the like from `aten::convolution`, which every convolution ends in."""
    inner = next((one for one in _within(event) if one.name == "aten::convolution"), None)
    if inner is None:
        return None
    x, weight = _inputs(inner)[:2]
    stride, padding, dilation, transposed = (_argument(inner, place) for place in range(3, 7))
    if transposed:
        return Operation("ConvTranspose", inputs, outputs)
    kernel = weight.shape[2:]
    sizes = zip(x.shape[2:], kernel, *(_each(one, len(kernel)) for one in (stride, padding, dilation)), strict=True)
    spatial = (
        (size + 2 * pad - spread * (width - 1) - 1) // step + 1
        for size, width, step, pad, spread in sizes
    )  # fmt: skip
    return Operation("Conv", inputs, (Tensor(x.dtype, (x.shape[0], weight.shape[0], *spatial)),))


def _each(values: Sequence[int], count: int) -> list[int]:
    return list(values) * count if len(values) == 1 else list(values)


def _within(event: Any) -> Iterator[Any]:
    yield event
    for child in event.cpu_children:
        yield from _within(child)


def _linear(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    x, weight = inputs[:2]
    return Operation("MatMul", inputs, (Tensor(x.dtype, (*x.shape[:-1], weight.shape[0])),))


def _product(first: int, event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    """Multiply the inputs from `first` on; what stands before them is added."""
    a, b = inputs[first : first + 2]
    rows = a.shape[-2:-1]
    columns = b.shape[-1:] if len(b.shape) > 1 else ()
    shape = (*broadcast([a.shape[:-2], b.shape[:-2]]), *rows, *columns)
    return Operation("MatMul", (a, b, *inputs[:first]), (Tensor(a.dtype, shape),))


def _attention(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    query, key, value = inputs[:3]
    return Operation("Attention", (query, key, value), (Tensor(query.dtype, (*query.shape[:-1], value.shape[-1])),))


def _self_attention(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation | None:
    """Take the block where queries, keys and values come from inputs of one shape."""
    return Operation("SelfAttention", inputs, (inputs[0],)) if len({one.shape for one in inputs[:3]}) == 1 else None


def _elementwise(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    made = Tensor(inputs[0].dtype, broadcast([one.shape for one in inputs]))
    return Operation("Add", inputs, (made,))


def _like_input(operator: str, event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    return Operation(operator, inputs, outputs or (inputs[0],))


def _as_module(operator: str, event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    return Operation(operator, inputs, outputs)


def _pool(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    kernel = _each(_argument(event, 1), len(inputs[0].shape) - 2)
    return Operation("MaxPool", inputs, outputs, {"kernel_shape": kernel})


def _view(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    """A view costs nothing, unless it had to copy."""
    copies = any(one.name in ("aten::copy_", "aten::clone", "aten::_to_copy") for one in _within(event))
    return Operation("Transpose" if copies else "Reshape", inputs, outputs or (inputs[0],))


def _concat(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    axis = _argument(event, 1) % len(inputs[0].shape)
    shape = list(inputs[0].shape)
    shape[axis] = sum(one.shape[axis] for one in inputs)
    return Operation("Concat", inputs, (Tensor(inputs[0].dtype, tuple(shape)),))


def _embedding(event: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Operation:
    table, rows = inputs[:2]
    return Operation("Gather", inputs, (Tensor(table.dtype, (*rows.shape, table.shape[-1])),))


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that shapes broadcast to.

    Raises:
        ValueError: they do not.
    """
    columns = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    sizes = [{size for size in column if size != 1} or {1} for column in columns]
    if any(len(found) > 1 for found in sizes):
        raise ValueError(f"broadcast: got {list(shapes)}, which do not fit together")
    return tuple(found.pop() for found in reversed(sizes))


def _rules(names: str, rule: _Rule) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_CONVOLUTIONS = "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"
_VIEWS = (
    "view reshape flatten unflatten transpose permute t squeeze unsqueeze slice select expand expand_as chunk split "
    "split_with_sizes unbind detach alias dropout feature_dropout contiguous narrow movedim swapaxes view_as to clone"
)
_ELEMENTWISE = (
    "relu relu6 add mul sub rsub div sigmoid silu gelu hardtanh hardswish hardsigmoid clamp clamp_min clamp_max tanh "
    "exp log leaky_relu elu selu celu mish softplus sqrt rsqrt pow neg abs sin cos prelu maximum minimum reciprocal erf"
)

_RULES: dict[str, _Rule] = (
    _rules(_CONVOLUTIONS, _convolution)
    | _rules("mm bmm matmul mv dot", partial(_product, 0))
    | _rules("addmm baddbmm", partial(_product, 1))
    | _rules(_ELEMENTWISE, _elementwise)
    | _rules(_VIEWS, _view)
    | _rules("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", _pool)
    | _rules("lstm gru rnn_tanh rnn_relu", partial(_as_module, "RecurrentStack"))
    | _rules("zeros ones full empty arange", partial(_as_module, "Constant"))
    | _rules("mean sum amax amin", partial(_as_module, "ReduceMean"))
    | _rules("adaptive_avg_pool1d adaptive_avg_pool2d", partial(_as_module, "GlobalAveragePool"))
    | _rules("softmax log_softmax layer_norm group_norm", partial(_like_input, "Softmax"))
    | {
        "linear": _linear,
        "scaled_dot_product_attention": _attention,
        "_native_multi_head_attention": _self_attention,
        "batch_norm": partial(_like_input, "BatchNormalization"),
        "cat": _concat,
        "embedding": _embedding,
    }
)
