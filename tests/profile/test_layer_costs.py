"""Operations and bytes of operators, against counts by hand and torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shipworthy.profile.layer_costs import Operation, Shape, Tensor, bytes_moved, compute_dtype, einsum_macs, flops
from shipworthy.profile.torch_costs import broadcast


def op(operator: str, inputs: list[Shape | None], *outputs: Shape, **attributes: Any) -> Operation:
    """Make an operation on float32 tensors."""
    tensors = tuple(None if shape is None else Tensor("float32", shape) for shape in inputs)
    return Operation(operator, tensors, tuple(Tensor("float32", shape) for shape in outputs), attributes)


def _plain_attention(x: torch.Tensor) -> torch.Tensor:
    """Attend by two products: torch's counter does not know the fused kernel of the CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(x, x, x)


# Multiply-accumulates worked out from each operator's definition.
BY_HAND: list[tuple[Operation, int]] = [
    (op("Conv", [(2, 4, 8, 8), (6, 4, 3, 3), (6,)], (2, 6, 8, 8)), 2 * 6 * 64 * 4 * 9),
    (op("Conv", [(1, 8, 5, 5), (8, 1, 3, 3)], (1, 8, 5, 5)), 8 * 25 * 9),
    (op("Conv", [(1, 4, 9), (6, 2, 3)], (1, 6, 7)), 6 * 7 * 2 * 3),
    (op("FusedConv", [(1, 3, 4, 4), (2, 3, 1, 1), None, (1, 2, 4, 4)], (1, 2, 4, 4)), 2 * 16 * 3),
    (op("QLinearConv", [(1, 8, 8, 3), (), (), (12, 3, 3, 3)], (1, 8, 8, 12)), 12 * 64 * 27),
    (op("ConvTranspose", [(1, 4, 3, 3), (4, 5, 2, 2)], (1, 5, 6, 6)), 4 * 9 * 5 * 4),
    (op("Gemm", [(3, 8), (5, 8), (5,)], (3, 5), transB=1), 3 * 5 * 8),
    (op("Gemm", [(8, 3), (8, 5)], (3, 5), transA=1), 3 * 5 * 8),
    (op("FusedGemm", [(3, 8), (8, 5)], (3, 5)), 3 * 5 * 8),
    (op("MatMul", [(2, 3, 8), (8, 5)], (2, 3, 5)), 2 * 3 * 5 * 8),
    (op("MatMul", [(7, 1, 3, 8), (2, 8, 5)], (7, 2, 3, 5)), 7 * 2 * 3 * 5 * 8),
    (op("MatMul", [(8,), (8, 5)], (5,)), 5 * 8),
    (op("FusedMatMul", [(2, 8, 3), (2, 8, 5)], (2, 3, 5), transA=1), 2 * 3 * 5 * 8),
    # Rows before the batch, as they are or transposed: the batch is 2.
    (op("FusedMatMul", [(3, 2, 8), (2, 8, 5)], (2, 3, 5), transBatchA=1), 2 * 3 * 5 * 8),
    (op("FusedMatMul", [(8, 2, 3), (2, 8, 5)], (2, 3, 5), transBatchA=1, transA=1), 2 * 3 * 5 * 8),
    (op("QLinearMatMul", [(3, 8), (), (), (8, 5)], (3, 5)), 3 * 5 * 8),
    (op("LSTM", [(5, 2, 3), (1, 16, 3), (1, 16, 4)], (5, 1, 2, 4)), 5 * 2 * 16 * (3 + 4)),
    (op("GRU", [(5, 2, 3), (2, 12, 3), (2, 12, 4)], (5, 2, 2, 4)), 5 * 2 * 2 * 12 * (3 + 4)),
    (op("Einsum", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), equation="bij,bjk->bik"), 2 * 3 * 4 * 5),
    # Queries by 6 keys and weights by 6 values, 2 heads of 4.
    (op("Attention", [(1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4)], (1, 2, 5, 4)), 2 * (2 * 5 * 6 * 4)),
    (op("MultiHeadAttention", [(1, 5, 8), (1, 6, 8), (1, 6, 8)], (1, 5, 8)), 2 * (5 * 6 * 8)),
    # ONNX Runtime's own: 5 tokens of 8 are projected to queries, keys and values first; 3 tokens are past.
    (
        op("Attention", [(1, 5, 8), (8, 24), (24,), None, (2, 1, 2, 3, 4)], (1, 5, 8)),
        5 * 8 * 24 + 2 * (5 * (5 + 3) * 8),
    ),
]


@pytest.mark.parametrize(
    ("operation", "macs"), BY_HAND, ids=[f"{i} {one.operator}" for i, (one, _) in enumerate(BY_HAND)]
)
def test_operations_are_twice_the_multiply_accumulates(operation: Operation, macs: int) -> None:
    """A multiply-accumulate is two operations, whatever the layout, the groups or the type."""
    assert flops(operation) == 2 * macs


@pytest.mark.parametrize(
    ("run", "operation"),
    [
        (
            lambda: functional.conv2d(torch.ones(2, 4, 9, 9), torch.ones(6, 2, 3, 3), stride=2, dilation=2, groups=2),
            op("Conv", [(2, 4, 9, 9), (6, 2, 3, 3)], (2, 6, 3, 3)),
        ),
        (
            lambda: functional.conv_transpose2d(torch.ones(1, 4, 3, 3), torch.ones(4, 5, 2, 2), stride=2),
            op("ConvTranspose", [(1, 4, 3, 3), (4, 5, 2, 2)], (1, 5, 6, 6)),
        ),
        (lambda: torch.mm(torch.ones(3, 8), torch.ones(8, 5)), op("Gemm", [(3, 8), (8, 5)], (3, 5))),
        (lambda: torch.bmm(torch.ones(2, 3, 8), torch.ones(2, 8, 5)), op("MatMul", [(2, 3, 8), (2, 8, 5)], (2, 3, 5))),
        (
            lambda: _plain_attention(torch.ones(1, 2, 5, 4)),
            op("Attention", [(1, 2, 5, 4)] * 3, (1, 2, 5, 4)),
        ),
    ],
)
def test_counts_equal_those_of_torch(run: Callable[[], Any], operation: Operation) -> None:
    """The same shapes give the same number as torch's own counter, which counts while it runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    assert flops(operation) == counter.get_total_flops()


def test_other_work_is_counted_by_element_or_not_at_all() -> None:
    """Elementwise work counts one per output, a reduction one per input, a pool one per window, moves nothing."""
    assert flops(op("Relu", [(2, 3)], (2, 3))) == 6
    assert flops(op("Add", [(2, 3), (3,)], (2, 3))) == 6
    assert flops(op("ReduceMean", [(2, 3, 4)], (2,))) == 24
    assert flops(op("MaxPool", [(1, 2, 4, 4)], (1, 2, 2, 2), kernel_shape=[3, 3])) == 8 * 9
    assert flops(op("BatchNormalization", [(1, 2, 4)], (1, 2, 4))) == 16
    assert flops(op("Transpose", [(2, 3)], (3, 2))) == flops(op("ReorderInput", [(2, 3)], (2, 8))) == 0


@pytest.mark.parametrize(
    "operation",
    [
        op("Softmax", [(2, 3)], (2, 3)),
        op("MyOwn", [(2, 3)], (2, 3)),
        op("Conv", [(1, 3, 4, 4)], (1, 2, 4, 4)),
        op("Conv", [(1, 3, 4, 4), (2, 3, 1, 1)]),
        op("MaxPool", [(1, 2, 4, 4)], (1, 2, 2, 2)),
        op("Einsum", [(2, 3), (2, 3), (2, 3)], (2,), equation="ab,ab,ab->a"),
        op("Einsum", [(2, 3), (2,)], (2,), equation="ab,ab->a"),
        op("Gemm", [(0, 3), (3, 4)], (0, 4)),
        Operation("MatMul", (Tensor("float32", (2, 3)),), (Tensor("float32", (2, 4)),), complete=False),
    ],
)
def test_what_is_not_known_is_not_guessed(operation: Operation) -> None:
    """Without a rule, a weight, an output or an attribute that the rule needs there is no number."""
    assert flops(operation) is None


def test_einsum_takes_two_operands() -> None:
    """The product of all letters' sizes; neither an ellipsis nor one operand has a count."""
    assert einsum_macs("bhqd, bhkd -> bhqk", [(1, 2, 3, 4), (1, 2, 5, 4)]) == 2 * 3 * 5 * 4
    assert einsum_macs("...ij,...jk->...ik", [(2, 3), (3, 4)]) is None
    assert einsum_macs("ij->i", [(2, 3)]) is None


def test_bytes_are_those_of_inputs_weights_and_outputs() -> None:
    """Each tensor moves once in its own width; views move nothing, and a lookup reads the rows that it gives."""
    assert bytes_moved(op("Add", [(2, 3), (3,)], (2, 3))) == 4 * (6 + 3 + 6)
    assert bytes_moved(op("Reshape", [(2, 3), (2,)], (3, 2))) == 0
    assert bytes_moved(op("Gather", [(1000, 4), (5,)], (5, 4))) == 4 * (20 + 5 + 20)
    assert bytes_moved(op("Relu", [(2, 3)])) is None
    assert bytes_moved(Operation("Relu", (Tensor("string", (2,)),), (Tensor("string", (2,)),))) is None
    assert [Tensor(kind, (3, 3)).bytes for kind in ("int4", "int8", "float16", "float32", "int64")] == [
        5,
        9,
        18,
        36,
        72,
    ]


def test_quantized_operators_compute_in_int8() -> None:
    """The operator decides where its first input is a float; else the type of its first tensor does."""
    tensors = (Tensor("float32", (2, 2)),)
    assert compute_dtype(Operation("DynamicQuantizeMatMul", tensors, tensors)) == "int8"
    assert compute_dtype(Operation("QLinearConv", (Tensor("uint8", (2,)),), ())) == "int8"
    assert compute_dtype(Operation("Conv", tensors, tensors)) == "float32"
    assert compute_dtype(Operation("zeros", (), ())) == "unknown"


def test_shapes_broadcast_as_in_numpy() -> None:
    """Sizes of one stretch; others must agree."""
    for shapes in ([(2, 1, 4), (3, 1)], [(), (5,)], [(1,), (1, 1)], [(2, 0), (1,)]):
        assert broadcast(shapes) == np.broadcast_shapes(*shapes)
    with pytest.raises(ValueError, match="do not fit together"):
        broadcast([(2,), (3,)])
