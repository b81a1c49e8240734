"""Inputs of an engine: random ones, arrays of the host, or arrays that lie on the GPU already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BadPlan
from .inputs import Array, InputSpec, check_inputs, random_inputs
from .plan import Plan

_INTERFACE = "__cuda_array_interface__"


@dataclass(frozen=True)
class OnDevice:
    """An array on the GPU that belongs to somebody else: a CUDA tensor of torch, or what CuPy or Numba gives.

    Attributes:
        address: of its first element; its elements lie one after another.
        shape: of the array.
        owner: what keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    owner: Any


Feed = Array | OnDevice


def engine_feeds(declared: Sequence[InputSpec], plan: Plan, inputs: Any, where: str) -> dict[str, Feed]:
    """Return what goes in, by name, after a check of names, types, shapes and the batch.

    Args:
        declared: by the engine.
        plan: its batch, seed and shapes.
        inputs: None for random ones, else arrays by name: numpy's, or any with a CUDA array interface.
        where: the file, for messages.

    Raises:
        BadPlan: one does not fit, or is not contiguous on the GPU.
    """
    if inputs is None:
        return dict(random_inputs(declared, plan.batch, plan.seed, where, dict(plan.shapes)))
    if not isinstance(inputs, Mapping):
        raise BadPlan(f"{where}: got inputs as a {type(inputs).__name__}, wanted a dict of arrays by input name")
    device = {name: _described(value, name, where) for name, value in inputs.items() if hasattr(value, _INTERFACE)}
    if device and plan.transfers:
        raise BadPlan(f"{where}: inputs {', '.join(device)} are on the GPU already; set transfers=False")
    stand_ins = {name: np.broadcast_to(np.zeros((), told["typestr"]), told["shape"]) for name, told in device.items()}
    checked = check_inputs(declared, {**inputs, **stand_ins}, plan.batch, where)
    return {name: _on_device(device[name], inputs[name]) if name in device else checked[name] for name in checked}


def _described(value: Any, name: str, where: str) -> Mapping[str, Any]:
    told: Mapping[str, Any] = getattr(value, _INTERFACE)
    strides = told.get("strides")
    if strides is not None:
        sizes = np.cumprod([np.dtype(told["typestr"]).itemsize, *reversed(told["shape"][1:])])[: len(told["shape"])]
        if tuple(strides) != tuple(int(size) for size in reversed(sizes)):
            raise BadPlan(f"{where}: input '{name}' is not contiguous on the GPU; make it so first")
    return told


def _on_device(told: Mapping[str, Any], owner: Any) -> OnDevice:
    return OnDevice(int(told["data"][0]), tuple(told["shape"]), owner)
