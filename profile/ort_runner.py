"""Run an ONNX file in ONNX Runtime. Imports it only when a file is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from .errors import BadPlan, ProfileError
from .inputs import Array
from .opening import closed, refuse_cuda_graph, sha256_of, target_file, transfers_on_cpu, transfers_on_gpu
from .ort_binding import feeds_of, on_device, on_host
from .ort_faults import refuse_crash
from .ort_session import Device, check_placement, import_ort, open_session, placement, tells_placement
from .plan import Plan

if TYPE_CHECKING:
    from typing import Self


@final
class OrtRunner:
    """Runs a file through bound inputs and outputs, so that a sample is the session's own time.

    On a GPU inputs and outputs stay there unless `plan.transfers` is set, and a sample ends when the outputs are there;
    the file is run once at opening, since engines are built and graphs captured then. Its nodes must all be there too,
    but for arithmetic with shapes. That path has not been run on a GPU yet.

    Raises:
        RuntimeAbsent: onnxruntime is not installed, or the device is not there. A fallback to the CPU counts as absent.
        BadPlan: no such file, not a model, nodes that would run on the CPU, or inputs that do not fit.
        ProfileError: the first run on a GPU failed.
    """

    def __init__(self, target: Any, device: Device, plan: Plan, inputs: Any = None) -> None:
        path = target_file(target, device.runtime, "an ONNX file")
        if inputs is not None and not isinstance(inputs, Mapping):
            raise BadPlan(f"{path}: got inputs as a {type(inputs).__name__}, wanted a dict of arrays by input name")
        if not device.on_gpu:
            refuse_cuda_graph(plan, device.runtime)
        ort = import_ort(device)
        refuse_crash(ort, path, device)
        self._session: Any = open_session(ort, path, device, plan)
        feeds = feeds_of(self._session, plan, inputs, str(path))
        self.details: dict[str, Any] = _details(ort, self._session, plan, feeds)
        self.run: Callable[[], Any] = self._prepared(ort, device, plan, feeds, path)
        self.name, self.file, self.sha256 = path.name, str(path), sha256_of(path)
        self.runtime, self.plan = device.runtime, plan
        self.inputs = "random" if inputs is None else "given"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        """Drop the session, and with it its memory and threads."""
        self._session = None
        self.run = partial(closed, self.name)

    def _prepared(self, ort: Any, device: Device, plan: Plan, feeds: dict[str, Array], path: Path) -> Callable[[], Any]:
        if not device.on_gpu:
            self.details["transfers"] = transfers_on_cpu(plan)
            return on_host(ort, self._session, feeds)
        if tells_placement(ort):
            nodes = placement(self._session)
            fallback = check_placement(nodes, device, path, plan.allow_fallback)
            self.details |= _placed(nodes) | ({"fallback": fallback} if fallback else {})
        self.details |= {"transfers": transfers_on_gpu(plan), "cuda_graph": plan.cuda_graph}
        self.details["provider_options"] = self._session.get_provider_options()
        return _first_run(path, lambda: on_device(ort, self._session, feeds, plan))


def _first_run(path: Path, prepare: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    try:
        run = prepare()
        run()
    except BadPlan as fault:
        raise BadPlan(f"{path}: {fault}") from fault
    except Exception as fault:
        raise ProfileError(f"{path}: its first run failed: {fault}") from fault
    return run


def _details(ort: Any, session: Any, plan: Plan, feeds: Mapping[str, Array]) -> dict[str, Any]:
    return {
        "version": ort.__version__,
        "providers": list(session.get_providers()),
        "intra_op_threads": plan.threads,
        "inter_op_threads": 1,
        "spinning": plan.spinning,
        "input_shapes": {name: list(array.shape) for name, array in feeds.items()},
    }


def _placed(nodes: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        "nodes": {provider: len(group) for provider, group in nodes.items()},
        "nodes_on_cpu": list(nodes.get("CPUExecutionProvider", ())),
    }
