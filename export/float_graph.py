"""A model as a clean ONNX graph in fp32: what every precision is made of."""

from __future__ import annotations

from typing import Any

import torch

from ..models.errors import ToolFailed
from ..models.graph import argument, aten, shape_of
from ..models.model import Model
from ..models.quiet import quiet
from .constants import fold_constants
from .onnx_clean import clean
from .onnx_graph import OnnxGraph, from_exporter


def float_graph(model: Model, opset: int) -> OnnxGraph:
    """Return the model as a clean graph in fp32.

    Raises:
        ToolFailed: the exporter refused it.
    """
    names: dict[str, Any] = {
        "input_names": [spec.name for spec in model.inputs],
        "output_names": [spec.name for spec in model.outputs],
    }
    try:
        with quiet():
            program = torch.onnx.export(
                for_exporter(fold_constants(model)).export(), dynamo=True, opset_version=opset, verbose=False, **names
            )
    except Exception as fault:
        raise ToolFailed(f"the ONNX exporter failed: {str(fault).splitlines()[0]}") from fault
    if program is None:
        raise ToolFailed("the ONNX exporter gave no program")
    graph = from_exporter(program.model)
    clean(graph.proto, model.inputs, model.outputs)
    return graph


def for_exporter(model: Model) -> Model:
    """Return the model with attention as the exporter takes it: of four dimensions, its result laid out anew.

    The exporter takes attention apart, and its parts lay their result out otherwise: what could be viewed cannot.
    """
    attention = aten.scaled_dot_product_attention.default
    if not any(node.target is attention for node in model.module.graph.nodes):
        return model
    made = model.copy()
    graph = made.module.graph
    for node in [node for node in graph.nodes if node.target is attention]:
        shape = shape_of(node) or ()
        wide = len(shape) > 4 and argument(node, "attn_mask") is None
        if wide:
            with graph.inserting_before(node):
                flat = [graph.call_function(aten.flatten.using_ints, (x, 0, len(shape) - 4)) for x in node.args[:3]]
            node.args = (*flat, *node.args[3:])
        with graph.inserting_after(node):
            plain: dict[str, Any] = {"memory_format": torch.contiguous_format}
            anew = graph.call_function(aten.clone.default, (node,), plain)
        made_whole = anew
        if wide:
            with graph.inserting_after(anew):
                made_whole = graph.call_function(aten.reshape.default, (anew, [-1, *shape[1:]]))
        node.replace_all_uses_with(made_whole, delete_user_cb=lambda user, anew=anew: user is not anew)
    made.module.recompile()
    return made
