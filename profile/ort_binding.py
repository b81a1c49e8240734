"""One inference of an ONNX Runtime session as a call without arguments: its inputs, and how they are bound.

The calls for a GPU take the device's name as a parameter and run on the CPU too; they are not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .errors import BadPlan
from .inputs import Array, InputSpec, check_inputs, random_inputs
from .plan import Plan

Run = Callable[[], Any]


def feeds_of(session: Any, plan: Plan, inputs: Mapping[str, Any] | None, where: str) -> dict[str, Array]:
    """Return a session's inputs: those given, checked, or random ones.

    Raises:
        BadPlan: they do not fit, or a size must be known that is not the batch.
    """
    specs = [InputSpec(one.name, one.type, _shape(one.shape)) for one in session.get_inputs()]
    if inputs is None:
        return random_inputs(specs, plan.batch, plan.seed, where, dict(plan.shapes))
    return check_inputs(specs, inputs, plan.batch, where)


def on_host(ort: Any, session: Any, feeds: Mapping[str, Array]) -> Run:
    """Return a run with inputs and outputs bound in the host's memory."""
    if not (all_tensors(session) and all(array.dtype.kind in "biuf" for array in feeds.values())):
        return partial(session.run, None, dict(feeds))
    values = {name: ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0) for name, array in feeds.items()}
    return partial(session.run_with_iobinding, _bound(session, values, "cpu"))


def on_device(ort: Any, session: Any, feeds: Mapping[str, Array], plan: Plan, device: str = "cuda") -> Run:
    """Return a run whose inputs and outputs are on the device at fixed addresses.

    With `plan.transfers` each run first writes the inputs there and at its end copies the outputs to the host. With
    `plan.cuda_graph` the run is captured here.

    Raises:
        BadPlan: an output is no tensor, so that it cannot stay on the device.
    """
    if not all_tensors(session):
        kinds = {output.name: output.type for output in session.get_outputs()}
        raise BadPlan(f"its outputs {kinds} are not all tensors and cannot stay on the GPU; measure it on ort-cpu")
    values = {name: _sent(ort, array, device) for name, array in feeds.items()}
    binding = _bound(session, values, device)
    if plan.cuda_graph:
        _fix_outputs(ort, session, binding)
        session.run_with_iobinding(binding)
    if plan.transfers:
        return partial(_copying, session, binding, [(values[name], array) for name, array in feeds.items()])
    return partial(_waiting, session, binding)


def all_tensors(session: Any) -> bool:
    """Tell whether all outputs can be bound; text, maps and sequences can only be fetched."""
    kinds = [output.type for output in session.get_outputs()]
    return all(kind.startswith("tensor(") and kind != "tensor(string)" for kind in kinds)


def _sent(ort: Any, array: Array, device: str) -> Any:
    """Return an array's copy in memory of the device."""
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, device, 0)
    value.update_inplace(array)
    return value


def _bound(session: Any, values: Mapping[str, Any], device: str) -> Any:
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    return binding


def _fix_outputs(ort: Any, session: Any, binding: Any) -> None:
    """Run once without capturing, and bind the outputs that this made: a graph writes where it wrote when captured."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    session.run_with_iobinding(binding, options)
    for output, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(output.name, value)


def _waiting(session: Any, binding: Any) -> None:
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()


def _copying(session: Any, binding: Any, feeds: list[tuple[Any, Array]]) -> list[Any]:
    for value, array in feeds:
        value.update_inplace(array)
    session.run_with_iobinding(binding)
    found: list[Any] = binding.copy_outputs_to_cpu()
    return found


def _shape(sizes: list[Any]) -> tuple[int | str | None, ...]:
    return tuple(size if isinstance(size, int | str) else None for size in sizes)
