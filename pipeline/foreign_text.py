"""The text of `inspect` for an ONNX file."""

from __future__ import annotations

from ..profile.not_faster import share_lines
from .cli_models import shape_text
from .cli_output import columns
from .foreign_summary import OnnxSummary
from .report_numbers import count, size

_LONGEST = 60


def onnx_text(found: OnnxSummary) -> str:
    """Return what a file is, its inputs and outputs, what was not counted, and its layers."""
    facts = found.facts
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts.opsets.items())
    beside = f" with {', '.join(facts.beside)}" if facts.beside else ""
    whole = "" if not found.not_counted else " of what could be counted"
    head = [
        f"model   {facts.path}",
        f"format  ONNX IR {facts.ir_version}, opset {opsets}{f', by {facts.producer}' if facts.producer else ''}",
        f"size    {size(facts.bytes)}{beside}",
        f"params  {count(facts.params)} ({facts.params:,}){_precision(facts.precision)}",
        f"MACs    {count(found.macs)} an example{whole}",
        *(f"  {name:<12} {count(macs)}" for name, macs in found.macs_by_operator.items()),
        *(f"not counted: {reason}" for reason in found.not_counted),
        *(f"int8    {line}" for line in (share_lines(found.integers) if found.integers else ())),
        *(f"input   {one.name}: {one.dtype} {_shape(one.shape)}" for one in facts.inputs),
        *(f"output  {one.name}: {one.dtype} {_shape(one.shape)}" for one in facts.outputs),
        *(f"holds   {key} = {_short(value)}" for key, value in facts.metadata.items()),
    ]
    rows = [
        (one.name, one.kind, _shape(one.output_shape), f"{one.params:,}", "?" if one.macs is None else f"{one.macs:,}")
        for one in found.layers
    ]
    if not rows:
        return "\n".join(head)
    return "\n".join(head) + "\n\n" + columns([("layer", "kind", "output", "params", "MACs"), *rows], frozenset((3, 4)))


def _precision(found: dict[str, int]) -> str:
    whole = sum(found.values())
    if len(found) < 2:
        return f" {''.join(found)}".rstrip()
    return " " + ", ".join(f"{name} {params / whole:.1%}" for name, params in found.items())


def _shape(shape: tuple[int | str, ...] | None) -> str:
    return "of any shape" if shape is None else shape_text(shape)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
