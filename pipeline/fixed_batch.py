"""An ONNX file for one batch size, made of one whose batch varies."""

from __future__ import annotations

from dataclasses import replace

from ..export.artifact import OnnxArtifact
from ..export.onnx_file import write_onnx
from ..export.onnx_graph import OnnxGraph, read_graph
from ..models.model import Model, TensorSpec


def fix_batch(artifact: OnnxArtifact, model: Model, batch: int) -> OnnxArtifact:
    """Write the file anew with its batch dimension set to `batch`.

    Passes train, score and calibrate with batches of their own, so the size is fixed in what ships and not before.

    Args:
        artifact: a file exported from `model`; replaced.
        model: with a dynamic batch; others are fixed already.
        batch: examples per inference.

    Raises:
        ToolFailed: the ONNX checker refuses the graph with this batch.
    """
    if not model.dynamic_batch:
        return artifact
    inputs, outputs = (tuple(_fixed(spec, batch) for spec in specs) for specs in (model.inputs, model.outputs))
    graph = read_graph(artifact.path)
    proto = graph.proto
    for values, specs in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        for value, spec in zip(values, specs, strict=True):
            if spec.shape:
                value.type.tensor_type.shape.dim[0].dim_value = batch
    # Sizes inferred for any batch would contradict the one that is set now.
    del proto.graph.value_info[:]
    fixed = replace(model, inputs=inputs, outputs=outputs, dynamic_batch=False)
    graph = OnnxGraph(proto, graph.weights, frozenset(artifact.fp32_nodes))
    return write_onnx(graph, artifact.path, fixed, artifact.precision, artifact.target)


def _fixed(spec: TensorSpec, batch: int) -> TensorSpec:
    return replace(spec, shape=(batch, *spec.shape[1:])) if spec.shape else spec
