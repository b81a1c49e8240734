"""The value that every compression pass takes and gives: a captured graph with typed inputs and outputs."""

from __future__ import annotations

import io
import json
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from .dims import BATCH, Dims, asked, check_varies, found, output_shapes
from .errors import BadInput
from .files import replacing
from .graph import copy_graph, set_training
from .quiet import quiet

_META = "shipworthy.json"


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; a dimension given by name may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Quantization:
    """A request for integers: the scheme, the examples `(count, ...)` that calibrate it, and other settings by name."""

    scheme: str
    method: str
    calibration: tuple[Tensor, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sparsity:
    """Which weights are sparse: the pattern of each (`2:4` or `unstructured`) by its name.

    Their zeros are exact, and every pass keeps them.
    """

    patterns: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Model:
    """A captured model.

    Attributes:
        module: the `torch.export` graph, callable and trainable; kept in evaluation mode between passes.
        inputs: what goes in, in order.
        outputs: what comes out, in order.
        example_inputs: one small batch that runs.
        dynamic_batch: whether dimension 0 of every input may vary.
        source: where the model came from.
        quantization: set by the quantize pass, carried out by the exporter.
        sparsity: set by the sparsify pass, kept in `.pt2` files and by later passes, named in ONNX files.
    """

    module: GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example_inputs: tuple[Tensor, ...]
    dynamic_batch: bool
    source: str = ""
    quantization: Quantization | None = None
    sparsity: Sparsity | None = None

    def copy(self, instead: Mapping[str, Tensor] = MappingProxyType({})) -> Model:
        """Return a model whose graph and weights can be changed without touching this one.

        Parameters and buffers named in `instead` become those tensors, of any shape.
        """
        return replace(self, module=copy_graph(self.module, instead))

    def export(self) -> ExportedProgram:
        """Capture the present graph anew, in evaluation mode, with fresh shapes."""
        set_training(self.module, False)
        return _export(self.module, self.example_inputs, self.dims)

    def recaptured(self, example_inputs: tuple[Tensor, ...]) -> Model:
        """Return the present graph captured anew on other examples, whose sizes are then the model's.

        Raises:
            BadInput: the graph does not take them.
        """
        set_training(self.module, False)
        program = _export(self.module, example_inputs, self.dims)
        made = _model(copy_graph(program.module(check_guards=False)), program, example_inputs, self.dims)
        names = zip(self.inputs, made.inputs, strict=True)
        inputs = tuple(replace(new, name=old.name) for old, new in names)
        return replace(self, module=made.module, inputs=inputs, outputs=made.outputs, example_inputs=example_inputs)

    @property
    def dims(self) -> Dims:
        """The names of the dimensions of each input that may vary, by their position."""
        return tuple({d: s for d, s in enumerate(spec.shape) if isinstance(s, str)} for spec in self.inputs)


def capture(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    dynamic_batch: bool = True,
    source: str = "",
    dynamic: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> Model:
    """Capture a module as a graph of ATen operators.

    The module is captured in evaluation mode; training flags are switched in the graph when a pass trains. Its own
    mode and weights stay as they are: the graph has copies.

    Args:
        module: any module that `torch.export` takes.
        example_inputs: positional inputs, batch first.
        dynamic_batch: let dimension 0 of every input vary.
        source: where the model came from, for reports.
        dynamic: other dimensions that vary, by input and position, with their names:
            `{"input_ids": {1: "length"}, "attention_mask": {1: "length"}}`.

    Raises:
        BadInput: the module cannot be captured, or fixes a dimension that is to vary; the message names the line of
            its code, or the dimension.
    """
    if not isinstance(example_inputs, tuple) or not all(isinstance(x, Tensor) for x in example_inputs):
        raise BadInput(f"example_inputs must be a tuple of tensors, got {type(example_inputs).__name__}")
    examples = tuple(_at_least_two(x) if dynamic_batch else x for x in example_inputs)
    dims = asked(module, examples, dynamic_batch, dynamic)
    modes = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        program = _export(module, examples, dims)
        graph = copy_graph(program.module(check_guards=False))
    finally:
        for name, part in module.named_modules():
            part.training = modes[name]
    if dynamic_batch:
        _check_batch(graph, examples, source)
    check_varies(program, dims)
    return replace(_model(graph, program, examples, dims), dynamic_batch=dynamic_batch, source=source)


def save_pt2(model: Model, path: str | Path) -> None:
    """Write the model as a `.pt2` file that needs none of its Python classes; the same model gives the same bytes."""
    meta: dict[str, Any] = {"schema": 1, "dynamic_batch": model.dynamic_batch, "source": model.source}
    named = {s.name: {d: n for d, n in e.items() if n != BATCH} for s, e in zip(model.inputs, model.dims, strict=True)}
    if any(named.values()):
        meta["dynamic"] = named
    if model.sparsity:
        meta["sparsity"] = dict(model.sparsity.patterns)
    # Through memory: torch writes the file's own (temporary) name into it, and hides a full disk in a RuntimeError.
    held = io.BytesIO()
    with quiet():
        program = model.export()
        for node in program.graph.nodes:
            node.meta.pop("from_node", None)  # where it came from, by addresses in this process
        torch.export.save(program, held, extra_files={_META: json.dumps(meta)})
    with replacing(Path(path)) as beside:
        beside.write_bytes(held.getbuffer())


def load_pt2(path: str | Path) -> Model:
    """Read a `.pt2` file, ours or another's.

    Raises:
        BadInput: the file is missing or is no exported program.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise BadInput(f"{path}: not a .pt2 file, or cut off; write it with torch.export.save")
    extra = {_META: ""}
    try:
        with quiet():
            program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    except Exception as fault:
        raise BadInput(f"{path}: torch.export cannot read it ({_first_line(fault)})") from fault
    meta = json.loads(extra[_META]) if extra[_META] else {}
    if program.example_inputs is None:
        raise BadInput(f"{path}: holds no example inputs; save it with torch.export.save of a fresh export")
    examples = tuple(program.example_inputs[0])
    dynamic = bool(meta.get("dynamic_batch", _batch_varies(program)))
    graph = program.module(check_guards=False)
    named = meta.get("dynamic", {} if meta else found(program))
    dims = tuple(
        ({0: BATCH} if dynamic and x.ndim else {}) | {int(d): n for d, n in named.get(str(name), {}).items()}
        for name, x in zip(program.graph_signature.user_inputs, examples, strict=True)
    )
    model = replace(
        _model(graph, program, examples, dims), dynamic_batch=dynamic, source=meta.get("source") or path.name
    )
    return replace(model, sparsity=Sparsity(meta["sparsity"])) if "sparsity" in meta else model


def _model(graph: GraphModule, program: ExportedProgram, examples: tuple[Tensor, ...], dims: Dims) -> Model:
    set_training(graph, False)
    names = program.graph_signature.user_inputs
    inputs = tuple(
        _spec(str(name), x, tuple(entries.get(d, size) for d, size in enumerate(x.shape)))
        for name, x, entries in zip(names, examples, dims, strict=True)
    )
    with torch.no_grad():
        results = _flat(graph(*examples))
    labels = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    varies = BATCH in {name for entries in dims for name in entries.values()}
    shapes = [_batched(shape) if varies else shape for shape in output_shapes(program, dims)]
    outputs = tuple(_spec(label, y, shape) for label, y, shape in zip(labels, results, shapes, strict=True))
    return Model(graph, inputs, outputs, examples, varies)


def _spec(name: str, x: Tensor, shape: tuple[int | str, ...]) -> TensorSpec:
    return TensorSpec(name, str(x.dtype).removeprefix("torch."), shape)


def _batched(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return (BATCH, *shape[1:]) if shape else shape


def _flat(results: Any) -> Sequence[Tensor]:
    found = [x for x in torch.utils._pytree.tree_leaves(results) if isinstance(x, Tensor)]
    if not found:
        raise BadInput("the model returns no tensor")
    return found


def _at_least_two(x: Tensor) -> Tensor:
    """A batch of one is captured as a constant, so one example is shown twice."""
    return torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x


def _export(module: nn.Module, examples: tuple[Tensor, ...], dims: Dims) -> ExportedProgram:
    shapes = tuple(dict.fromkeys(entries, Dim.AUTO) or None for entries in dims)
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # where torch prints the graph as far as it came
            return torch.export.export(module, examples, dynamic_shapes=shapes)
    except Exception as fault:
        raise BadInput(_explain(fault)) from fault


def _explain(fault: Exception) -> str:
    """Name the deepest line of the user's own code on the way to a capture error."""
    torch_root, own = str(Path(torch.__file__).parent), __file__
    frames = traceback.extract_tb(fault.__traceback__)
    ours = [f for f in frames if not f.filename.startswith((torch_root, own, "<"))]
    # The frames before the export call are the caller's, not the model's.
    below = [
        f for f in ours if frames.index(f) > max((i for i, g in enumerate(frames) if g.filename == own), default=0)
    ]
    where = f" at {below[-1].filename}:{below[-1].lineno}: `{below[-1].line}`" if below else ""
    return (
        f"torch.export cannot capture the model{where}: {type(fault).__name__}: {_first_line(fault)}; "
        "rewrite that line without data-dependent Python (torch.where, torch.cond), or give a .pt2 file"
    )


def _first_line(fault: BaseException) -> str:
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)


def _batch_varies(program: ExportedProgram) -> bool:
    names = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return all(isinstance(v.shape[0], torch.SymInt) for v in values if isinstance(v, Tensor) and v.ndim)


def _check_batch(graph: GraphModule, examples: tuple[Tensor, ...], source: str) -> None:
    """Run one more example than was captured: a batch size fixed by the model's code shows itself at once."""
    larger = tuple(torch.cat([x, x[:1]]) if x.ndim else x for x in examples)
    try:
        with torch.no_grad():
            results = _flat(graph(*larger))
        fits = all(y.ndim and y.shape[0] == larger[0].shape[0] for y in results)
    except RuntimeError:
        fits = False
    if not fits:
        raise BadInput(
            f"{source or 'the model'}: its code fixes the batch size at {examples[0].shape[0]}; "
            "derive sizes from x.shape[0], or capture with dynamic_batch=False"
        )


__all__ = ["Model", "Quantization", "Sparsity", "TensorSpec", "capture", "load_pt2", "save_pt2"]
