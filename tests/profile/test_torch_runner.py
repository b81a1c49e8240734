"""Torch modules, eager and compiled, and what they refuse."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import device_time_ns, open_runner
from shipworthy.profile.torch_gpu import Copies, leaves, moved

PLAN = Plan()
on_a_gpu = pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")


def refused(words: str, kind: type[Exception] = BadPlan) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


class Net(torch.nn.Module):
    """Keeps what it was called under; gives a dict and a list."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, width)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
        """Return nested outputs."""
        y = torch.sin(self.linear(x)) * scale
        return {"y": y, "more": [y + 1, None]}


class Branching(torch.nn.Module):
    """Does what only Python can decide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Branch on a value."""
        return x if x.sum() > 0 else -x


def test_a_torch_module_runs_without_gradients_and_gives_its_threads_back() -> None:
    """A module runs in inference mode with the plan's threads; afterwards the process has its old ones."""
    seen: list[tuple[bool, int]] = []

    class Seeing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.is_grad_enabled(), torch.get_num_threads()))
            return x * 2

    before = torch.get_num_threads()
    with open_runner(Seeing().eval(), "torch", Plan(threads=before + 1), (torch.ones(1),)) as runner:
        runner.run()
        assert (runner.name, runner.details["device"]) == ("Seeing", "cpu")
    assert seen == [(False, before + 1)]
    assert torch.get_num_threads() == before


def test_a_torch_module_needs_inputs_and_evaluation_mode() -> None:
    """A module in training mode would change while it is measured; an exported graph always claims that mode."""
    module = torch.nn.BatchNorm1d(3)
    example = (torch.ones(2, 3),)
    with refused("BatchNorm1d: in training mode a run would change it; call .eval() first"):
        open_runner(module, "torch", PLAN, example)
    with refused("BatchNorm1d: wanted inputs: a tuple of tensors, or a dict by argument name"):
        open_runner(module.eval(), "torch", PLAN)
    graph = torch.fx.symbolic_trace(torch.nn.Linear(3, 1)).train()
    with open_runner(graph, "torch", PLAN, {"input": example[0]}) as runner:
        runner.run()


def test_a_closed_runner_says_so() -> None:
    """A run after the context has ended is an error with the remedy."""
    with open_runner(torch.nn.ReLU().eval(), "torch", PLAN, (torch.ones(1),)) as runner:
        pass
    with refused("ReLU: its runner is closed; open it again", ProfileError):
        runner.run()


def test_a_device_that_nothing_waits_for_is_refused() -> None:
    """A module on neither the CPU nor a CUDA GPU would be timed while it still works."""
    with refused("Net: it is on device meta, wanted cpu or cuda; use .to()"):
        open_runner(Net().to("meta").eval(), "torch", PLAN, (torch.ones(1, 4),))


def test_each_module_compiles_at_opening() -> None:
    """Compiling ends before the first run, its seconds are kept, and each width of one class has its own budget."""
    before = torch.get_num_threads()
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (3, 4):
            with open_runner(Net(width).eval(), "torch-compile", PLAN, {"x": torch.ones(2, 4)}) as runner:
                compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
                runner.run()
                assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0
            assert runner.details["compile_s"] > 0
    assert (runner.runtime, runner.details["mode"]) == ("torch-compile", "torch.compile, default, inference_mode")
    assert torch.get_num_threads() == before


def test_a_module_that_compiles_in_pieces_is_refused() -> None:
    """What torch would run eagerly in part is refused with torch's reason, and the threads come back."""
    before = torch.get_num_threads()
    with refused("Branching: torch.compile cannot take it as one graph (Data-dependent branching); change the module"):
        open_runner(Branching().eval(), "torch-compile", Plan(threads=before + 1), (torch.ones(3),))
    assert torch.get_num_threads() == before


def test_no_compiler_is_an_absent_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler one error names it."""
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        refused("runtime torch-compile: No working C++ compiler found", RuntimeAbsent) as caught,
    ):
        open_runner(Net(13).eval(), "torch-compile", PLAN, (torch.ones(2, 4),))
    assert "no-such-compiler" in str(caught.value)


def test_copies_bring_new_inputs_in_and_outputs_out() -> None:
    """Each run copies the inputs into the same tensors and its nested outputs into the host's."""
    net, x = Net().eval(), torch.ones(2, 4)
    inputs = {"x": x, "scale": 2.0}
    with torch.inference_mode():
        copies = Copies(torch, inputs, net(**inputs))
        work = copies.around(lambda: net(**inputs))
        wanted = [tensor.clone() for tensor in leaves(torch, work())]
        x.zero_()
        work()
    assert torch.equal(x, torch.ones(2, 4))
    assert len(wanted) == 2
    for got, one in zip(copies.outputs, wanted, strict=True):
        assert torch.equal(got, one)
        assert torch.any(got != 0)


def test_inputs_are_moved_whole() -> None:
    """Tensors at any depth go to the device, everything else stays as it is."""
    given = {"a": (torch.ones(1), 2), "b": [None, torch.zeros(2)]}
    there = moved(torch, copy.copy(given), torch.device("meta"))
    assert [tensor.device.type for tensor in leaves(torch, there)] == ["meta", "meta"]
    assert (there["a"][1], there["b"][0]) == (2, None)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("runtime", ["torch", "torch-compile"])
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
def test_a_module_runs_on_the_gpu(runtime: str, transfers: bool, cuda_graph: bool) -> None:
    """Copied, captured or neither, inputs given on the host are taken, and the GPU's own clock runs."""
    plan = Plan(transfers=transfers, cuda_graph=cuda_graph)
    with open_runner(Net().eval().cuda(), runtime, plan, (torch.ones(2, 4),)) as runner:
        runner.run()
        assert (runner.details["device"], runner.details["cuda_graph"]) == ("cuda", cuda_graph)
        assert (device_time_ns(runner) or 0) > 0


@pytest.mark.gpu
@on_a_gpu
def test_a_module_that_cannot_be_captured_is_refused() -> None:
    """A module that looks at a value on the host cannot be a graph."""
    with refused("Branching: it cannot be captured as a CUDA graph"):
        open_runner(Branching().cuda().eval(), "torch", Plan(cuda_graph=True), (torch.ones(3).cuda(),))
