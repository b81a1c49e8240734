"""How far a changed graph's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Interpreter

from ..models.data import Dataset
from ..models.errors import BadInput
from ..models.model import Model
from .facts import training_inputs

BATCH = 64
Inputs = tuple[Tensor, ...]


def harm_on(model: Model, data: Dataset, samples: int, seed: int) -> Callable[[Graph], float]:
    """Return a function that compares graphs, made of the model's by leaving parts out, with the model.

    It gives the mean KL divergence of the changed graph's class probabilities from the original's, in nats, where the
    only output is a score for each of the data's classes. Other outputs: the mean squared error, in variances of the
    original's output; of several outputs the mean. What is not finite is infinite.

    Args:
        model: the original.
        data: training examples are drawn from its training split.
        samples: how many.
        seed: draws them.

    Raises:
        BadInput: the model takes other inputs, or one batch of it more examples than there are.
    """
    batches = _batches(model, data, samples, seed)
    wanted = [_run(model, model.module.graph, x) for x in batches]
    scores = [spec.shape[1:] for spec in model.outputs] == [(len(data.classes),)]
    measure = _divergence if scores else _relative_error

    def harm(graph: Graph) -> float:
        given = [_run(model, graph, x) for x in batches]
        value = measure(_joined(wanted), _joined(given))
        return max(value, 0.0) if value < torch.inf else torch.inf

    return harm


def _batches(model: Model, data: Dataset, samples: int, seed: int) -> list[Inputs]:
    """Return inputs `(batch, ...)`, whole batches only where the model's is fixed."""
    if model.dynamic_batch:
        return _parts(training_inputs(model, data, samples, seed), BATCH)
    size = int(model.inputs[0].shape[0])
    found = _parts(training_inputs(model, data, max(samples, size), seed), size)
    whole = [inputs for inputs in found if len(inputs[0]) == size]
    if not whole:
        raise BadInput(f"the model's batch is fixed at {size}, and there are {len(found[0][0])} training examples")
    return whole


def _parts(inputs: Inputs, size: int) -> list[Inputs]:
    return list(zip(*(torch.split(x, size) for x in inputs), strict=True))


def _run(model: Model, graph: Graph, inputs: Inputs) -> Sequence[Tensor]:
    with torch.no_grad():
        found = Interpreter(model.module, graph=graph).run(*(x.clone() for x in inputs))
    return torch.utils._pytree.tree_leaves(found)


def _joined(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def _divergence(wanted: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    (a,), (b,) = ([F.log_softmax(scores.double(), 1) for scores in some] for some in (wanted, given))
    return float(F.kl_div(b, a, reduction="batchmean", log_target=True))


def _relative_error(wanted: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    errors = [
        float(F.mse_loss(b, a) / a.var(correction=0).clamp_min(torch.finfo(a.dtype).tiny))
        for a, b in zip((a.double() for a in wanted), (b.double() for b in given), strict=True)
    ]
    return sum(errors) / len(errors)
