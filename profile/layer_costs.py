"""What one operator costs by its shapes: floating-point operations and bytes. Pure; what is not known is None.

An operation counts as in the roofline literature: a multiply-accumulate is two, and so it is in int8. Biases and fused
activations are left out, as in the MACs of every paper; a causal mask saves nothing. Shapes are those that the runtime
ran with: where its layout pads channels to a block, the padding is computed too and counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Shape = tuple[int, ...]

_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "bool": 8, "float8": 8, "int16": 16, "uint16": 16} | {
    "float16": 16, "bfloat16": 16, "int32": 32, "uint32": 32, "float32": 32, "int64": 64, "uint64": 64, "float64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One input or output of an operator; `constant` for weights."""

    dtype: str
    shape: Shape
    constant: bool = False

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int | None:
        """How many bytes it takes; None for a type without a fixed width, such as text."""
        bits = _BITS.get(self.dtype)
        return None if bits is None else -(-self.size * bits // 8)


@dataclass(frozen=True)
class Operation:
    """One operator with the shapes it ran with.

    Attributes:
        operator: its ONNX name.
        inputs: in the operator's own order; None for an optional one that is left out.
        outputs: empty where they are not known.
        attributes: those of the node that matter here, such as `kernel_shape`.
        complete: False where inputs may be missing from the list, so that their places mean nothing.
    """

    operator: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True


def flops(operation: Operation) -> int | None:
    """Count floating-point operations: twice the multiply-accumulates, or one per element of elementwise work.

    Returns:
        None for an operator that has no rule here, and where a shape that the rule needs is not known.
    """
    rule = _RULES.get(operation.operator)
    if rule is None or not (operation.complete or operation.operator in _BY_OUTPUT):
        return None
    try:
        return rule(operation)
    except (IndexError, AttributeError, KeyError, ValueError, ZeroDivisionError):
        return None  # a shape or an attribute that the rule needs is not there


def bytes_moved(operation: Operation) -> int | None:
    """Count the bytes that must move at the least: each input, weight and output once.

    Views and control flow move none: a runtime hands buffers on. Operators that pick rows read only what they pick.
    """
    if operation.operator in VIEWS:
        return 0
    if not operation.complete or not operation.outputs:
        return None
    inputs = [tensor for tensor in operation.inputs if tensor is not None]
    if operation.operator in _PICKS:
        inputs = [*operation.outputs, *inputs[1:]]
    sizes = [tensor.bytes for tensor in (*inputs, *operation.outputs)]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def compute_dtype(operation: Operation) -> str:
    """Return the type in which an operator computes: `int8` for quantized ones, else that of its first known tensor."""
    if operation.operator in _INT8 or operation.operator.startswith(("QLinear", "DynamicQuantizeMatMul")):
        return "int8"
    tensors = [tensor for tensor in (*operation.inputs, *operation.outputs) if tensor is not None]
    return tensors[0].dtype if tensors else "unknown"


def einsum_macs(equation: str, shapes: list[Shape]) -> int | None:
    """Count the multiply-accumulates of a product of two operands: the product of the sizes of all letters."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or len(shapes) != 2 or "." in equation:
        return None
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


def _conv(weight: int, operation: Operation) -> int:
    return 2 * operation.outputs[0].size * math.prod(_input(operation, weight).shape[1:])


def _conv_transpose(weight: int, operation: Operation) -> int:
    return 2 * _input(operation, 0).size * math.prod(_input(operation, weight).shape[1:])


def _gemm(operation: Operation) -> int:
    """Count a product of two matrices: A holds rows x inner elements, transposed or not."""
    a, out = _input(operation, 0), operation.outputs[0]
    return 2 * out.size * (a.size // out.shape[0])


def _matmul(operation: Operation) -> int:
    """Count a product. A fused one may read A transposed, or with its rows before the batch (`transBatchA`)."""
    a, out = _input(operation, 0), operation.outputs[0]
    rows = 0 if operation.attributes.get("transBatchA") else -2
    inner = a.shape[rows] if operation.attributes.get("transA") else a.shape[-1]
    return 2 * out.size * inner


def _recurrent(operation: Operation) -> int:
    """Count steps x batch x weights, as every step of every row meets every weight once."""
    steps, batch = _input(operation, 0).shape[:2]
    return 2 * steps * batch * (_input(operation, 1).size + _input(operation, 2).size)


def _recurrent_stack(operation: Operation) -> int:
    """Count torch's list of the matrices of all layers and directions, among states and biases of other ranks."""
    steps, batch, _ = _input(operation, 0).shape
    weights = [tensor.size for tensor in operation.inputs[1:] if tensor is not None and len(tensor.shape) == 2]
    return 2 * steps * batch * sum(weights)


def _attention(operation: Operation) -> int:
    """Count ONNX's Attention on ready queries, keys and values, or ONNX Runtime's, which projects them first."""
    if len(_input(operation, 1).shape) == 2:
        return _attention_with_projection(4, operation)
    return _scores(4, operation)


def _scores(past: int, operation: Operation) -> int:
    """Count queries x keys and weights x values: each element of Q and of the result meets every key position."""
    query, key = _input(operation, 0), _input(operation, 1)
    length = key.shape[1 if len(key.shape) == 3 else 2] + _past(operation, past)
    return 2 * length * (query.size + operation.outputs[0].size)


def _attention_with_projection(past: int, operation: Operation) -> int:
    x, weights, out = _input(operation, 0), _input(operation, 1), operation.outputs[0]
    length = x.shape[1] + _past(operation, past)
    query_width = int((operation.attributes.get("qkv_hidden_sizes") or [weights.shape[1] // 3])[0])
    rows = x.shape[0] * x.shape[1]
    return 2 * (rows * weights.size + length * (rows * query_width + out.size))


def _self_attention(operation: Operation) -> int:
    """Count torch's whole block: queries, keys and values of one input, their products, and the last projection."""
    x, _, _, weights, _, last = (_input(operation, place) for place in range(6))
    rows, length = x.size // x.shape[-1], x.shape[1]
    return 2 * (rows * (weights.size + last.size) + 2 * length * x.size)


def _past(operation: Operation, place: int) -> int:
    found = operation.inputs[place] if place < len(operation.inputs) else None
    return 0 if found is None else found.shape[-2]


def _einsum(operation: Operation) -> int | None:
    equation = operation.attributes["equation"]
    shapes = [tensor.shape for tensor in operation.inputs if tensor is not None]
    macs = einsum_macs(equation, shapes)
    return None if macs is None else 2 * macs


def _pool(operation: Operation) -> int:
    return operation.outputs[0].size * math.prod(map(int, operation.attributes["kernel_shape"]))


def _per_output(times: int, operation: Operation) -> int:
    return times * operation.outputs[0].size


def _per_input(operation: Operation) -> int:
    return _input(operation, 0).size


def _none(operation: Operation) -> int:
    return 0


def _input(operation: Operation, place: int) -> Tensor:
    found = operation.inputs[place]
    if found is None:
        raise IndexError(place)
    return found


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _names("Dropout Flatten Identity If Loop Reshape Scan Shape Size Squeeze Unsqueeze")

_PICKS = _names("Gather GatherElements GatherND Slice")
_MOVES = _names(
    "Cast Concat Constant ConstantOfShape DepthToSpace Expand MemcpyFromHost MemcpyToHost Pad QLinearConcat "
    "ReorderInput ReorderOutput SpaceToDepth Split Tile Transpose Where"
)
_ELEMENTWISE = _names(
    "Abs Acos Add And Asin Atan BiasGelu BitShift Ceil Celu Clip Cos DequantizeLinear Div Elu Equal Erf Exp FastGelu "
    "Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul "
    "Neg Not Or PRelu Pow QLinearAdd QLinearLeakyRelu QLinearMul QLinearSigmoid QuantizeLinear QuickGelu Reciprocal "
    "Relu Round Selu Sigmoid Sign Silu Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Xor"
)
_REDUCTIONS = _names(
    "ArgMax ArgMin CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool QLinearGlobalAveragePool QLinearReduceMean "
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
)
_BY_OUTPUT = VIEWS | _PICKS | _MOVES | _ELEMENTWISE
_INT8 = _names("ConvInteger MatMulInteger MatMulIntegerToFloat MatMulInteger16 QGemm QAttention")

_Rule = Callable[[Operation], int | None]


def _rules(names: Iterable[str], rule: _Rule) -> dict[str, _Rule]:
    return dict.fromkeys(names, rule)


_RULES: dict[str, _Rule] = (
    _rules(VIEWS | _PICKS | _MOVES, _none)
    | _rules(_ELEMENTWISE, partial(_per_output, 1))
    | _rules(_REDUCTIONS, _per_input)
    | _rules(("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger"), partial(_conv, 1))
    | _rules(("ConvTranspose", "FusedConvTranspose"), partial(_conv_transpose, 1))
    | _rules(("Gemm", "FusedGemm", "GemmFastGelu", "QGemm"), _gemm)
    | _rules(("MatMul", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "MatMulNBits"), _matmul)
    | _rules(("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _matmul)
    | _rules(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent)
    | _rules(("MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "QLinearAveragePool"), _pool)
    | {
        "QLinearConv": partial(_conv, 3),
        "QLinearConvTranspose": partial(_conv_transpose, 3),
        "BatchNormalization": partial(_per_output, 2),
        "Attention": _attention,
        "QAttention": partial(_attention_with_projection, 8),
        "MultiHeadAttention": partial(_scores, 6),
        "Einsum": _einsum,
        "RecurrentStack": _recurrent_stack,
        "SelfAttention": _self_attention,
    }
)
