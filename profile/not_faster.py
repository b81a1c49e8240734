"""Say in plain lines how much of a file runs in integers, and why it is not faster: only what was counted or timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .compute_peak import ort_dispatch_ns
from .errors import ProfileError
from .inputs import Array
from .integer_share import FLOAT, INTEGER, WEIGHTS_ONLY, FloatNode, IntegerShare, integer_share
from .layer_profile import LayerProfile
from .layer_table import time_text
from .layers import profile_layers
from .plan import Plan

RUNS = 30
"""Inferences of which layers are timed: enough for the median of those that matter."""

_DISPATCH_S = 0.05
_SMALL = 0.25  # from here on the start of operators is what an inference takes
_HALF = 0.5
_FEW = 0.1  # MACs that fell by less than this cannot be felt
_NAMED = 3
_PRODUCTS = INTEGER | WEIGHTS_ONLY | FLOAT


@dataclass(frozen=True)
class Timed:
    """What was timed of a file.

    Attributes:
        inference_ns: the median of a whole inference.
        operators: the share of the layers' time by operator, 0 to 1.
        dispatch_ns: what one operator costs that has nothing to do; None where it was not measured.
    """

    inference_ns: float
    operators: Mapping[str, float]
    dispatch_ns: float | None = None

    @classmethod
    def of(cls, profile: LayerProfile, dispatch_ns: float | None = None) -> Timed:
        """Sum a profile by layer up."""
        shares: dict[str, float] = {}
        for layer in profile.layers:
            shares[layer.operator] = shares.get(layer.operator, 0.0) + layer.share
        return cls(profile.plain_median_ns, shares, dispatch_ns)


def look_into(
    path: str | Path,
    before: str | Path | None = None,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Mapping[str, Array] | None = None,
) -> tuple[IntegerShare, tuple[str, ...]]:
    """Return what a file does in integers, and why it is no faster than the one before; takes about a second.

    Args:
        path: the ONNX file that is no faster.
        before: the file that it was made of.
        runtime: `ort-cpu` or `ort-cuda`.
        plan: see `integer_share`.
        inputs: see `integer_share`.

    Raises:
        RuntimeAbsent: see `integer_share`.
        BadPlan: see `integer_share`.
        ProfileError: see `integer_share`.
    """
    plan = plan or Plan()
    share = integer_share(path, runtime, plan, inputs)
    old = integer_share(before, runtime, plan, inputs) if before else None
    try:
        dispatch = ort_dispatch_ns(plan.threads, _DISPATCH_S) if runtime == "ort-cpu" else None
        timed = Timed.of(profile_layers(path, runtime, plan, inputs, RUNS), dispatch)
    except ProfileError:
        timed = None  # what was counted still stands
    return share, why_not_faster(share, old, timed)


def share_lines(share: IntegerShare) -> tuple[str, ...]:
    """Say which share of a file's MACs runs in integers, and which operators do not."""
    if share.formats:
        kernels = ", ".join(f"{count} {name}" for name, count in share.formats.items())
        return (f"kernels on {share.runtime} by number format: {kernels}",)
    if share.share is None:
        return (f"share of MACs in int8 on {share.runtime}: not known: {share.absent or 'the file has none'}",)
    head = (
        f"{_percent(share.share)} of MACs run in int8 on {share.runtime} "
        f"({share.integer_products} of {share.products} operators)"
    )
    return (head, *_weights(share), *_stayed(share, None), *_uncounted(share))


def why_not_faster(
    share: IntegerShare, before: IntegerShare | None = None, timed: Timed | None = None
) -> tuple[str, ...]:
    """Return one to a few plain lines on what keeps a file from being faster.

    Args:
        share: of the file.
        before: of the file that it was made of.
        timed: what was timed of the file; without it nothing is said of times.
    """
    quantized = bool(share.integer_products or share.weights_only_macs or share.pairs)
    found = [*_overhead(share, timed)]
    found += _rest(timed)
    if quantized:
        found += [*_stayed(share, None), *_weights(share), *_pairs(share, timed)]
    found += [*_layout(share, before, timed), *_casts(share, before), *([] if quantized else _macs(share, before))]
    return tuple(found or _nothing(share, timed, quantized))


def _overhead(share: IntegerShare, timed: Timed | None) -> Iterator[str]:
    """Compare what starting the nodes costs with the whole inference."""
    if timed is None or not timed.dispatch_ns or not timed.inference_ns:
        return
    started = share.nodes * timed.dispatch_ns
    if started >= _SMALL * timed.inference_ns:
        yield (
            f"the graph is too small: starting its {share.nodes} operators takes {time_text(started)} "
            f"({time_text(timed.dispatch_ns)} each, measured) of {time_text(timed.inference_ns)}, "
            f"{_percent(min(1.0, started / timed.inference_ns))}"
        )


def _rest(timed: Timed | None) -> Iterator[str]:
    """Say so where most of the time goes into what no compression of weights makes faster."""
    if timed is None or not timed.operators:
        return
    products = sum(part for name, part in timed.operators.items() if name in _PRODUCTS)
    if products < _HALF:
        yield f"multiply-accumulates take only {_percent(products)} of its time; {_slowest(timed, products=False)}"


def _slowest(timed: Timed, products: bool) -> str:
    """Name the operators that take longest, with or without those that multiply and accumulate."""
    left_out = frozenset[str]() if products else _PRODUCTS
    others = ((name, part) for name, part in timed.operators.items() if name not in left_out)
    slowest = sorted(others, key=lambda one: -one[1])[:_NAMED]
    goes = ", ".join(f"{name} {_percent(part)}" for name, part in slowest)
    return f"{'its time' if products else 'the rest'} goes into {goes}"


def _stayed(share: IntegerShare, most: int | None = _NAMED) -> Iterator[str]:
    """Name what stayed in float, by reason; most MACs first."""
    groups: dict[str, list[FloatNode]] = {}
    for node in share.in_float:
        groups.setdefault(node.reason, []).append(node)
    for why, nodes in list(groups.items())[:most]:
        macs = sum(node.macs or 0 for node in nodes)
        part = f", {_percent(macs / share.macs)} of MACs" if share.macs else ""
        yield f"in float: {_names(node.title for node in nodes)}{part}: {why}"


def _weights(share: IntegerShare) -> Iterator[str]:
    if share.weights_only_macs and share.macs:
        part = _percent(share.weights_only_macs / share.macs)
        yield f"{part} of MACs have integer weights only: that saves memory, and little arithmetic"


def _uncounted(share: IntegerShare) -> Iterator[str]:
    if share.not_counted:
        yield f"not counted: {_names(share.not_counted)}"


def _pairs(share: IntegerShare, timed: Timed | None) -> Iterator[str]:
    if share.inner_pairs > 0:
        around = f", around {_names(share.unfused)}" if share.unfused else ""
        took = _took(timed, share.pairs or {}, "with those at its ends ")
        nodes = f"{share.inner_pairs} QuantizeLinear and DequantizeLinear nodes inside the graph"
        yield f"{nodes} were not fused{around}{took}"


def _layout(share: IntegerShare, before: IntegerShare | None, timed: Timed | None) -> Iterator[str]:
    now, then = (sum((one.reorders or {}).values()) if one else 0 for one in (share, before))
    if now > then:
        kinds = ", ".join(f"{count} {name}" for name, count in (share.reorders or {}).items())
        more = f", {then} before" if before else ""
        yield f"ONNX Runtime added {now} changes of layout ({kinds}{more}){_took(timed, share.reorders or {})}"


def _casts(share: IntegerShare, before: IntegerShare | None) -> Iterator[str]:
    then = before.casts if before else 0
    if share.casts > then:
        yield f"ONNX Runtime added {share.casts} Cast nodes{f' ({then} before)' if then else ''}"


def _macs(share: IntegerShare, before: IntegerShare | None) -> Iterator[str]:
    """Say how little there is less to compute, as the runtime pads it."""
    if before is None or not before.macs or share.macs is None:
        return
    less = 1 - share.macs / before.macs
    if less < _FEW:
        how = f"only {_percent(less)} fewer" if less > 0 else "no fewer"
        yield f"{how} MACs run than before ({share.macs:,} of {before.macs:,}, channels padded as ONNX Runtime does)"


def _nothing(share: IntegerShare, timed: Timed | None, quantized: bool) -> list[str]:
    """Say where the time goes where nothing that was counted keeps a file from being faster."""
    what = "every product runs in integers and every Q/DQ pair inside is fused" if quantized else "fewer MACs run"
    where = f"; {_slowest(timed, products=True)}" if timed and timed.operators else ""
    return [f"{what}, and on this CPU that is no faster{where}" if share.runtime == "ort-cpu" else f"{what}{where}"]


def _took(timed: Timed | None, operators: Iterable[str], which: str = "") -> str:
    part = sum(timed.operators.get(name, 0.0) for name in operators) if timed else 0.0
    return f"; {which}they take {_percent(part)} of the time" if part else ""


def _names(names: Iterable[str] | Sequence[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def _percent(share: float) -> str:
    """Return a share in percent; what is not all never reads as 100, what is something never as 0."""
    text = f"{100 * share:.1f}"
    if (text == "100.0" and share < 1) or (text == "0.0" and share > 0):
        return "over 99.9 %" if share > 0.5 else "under 0.1 %"
    return f"{text.removesuffix('.0')} %"
