"""The sizes of dimensions that a file leaves open: the batch, and others by the shapes that the user gives.

A dimension is a number, a name, a formula over names as converters write them (`2*seq+1`), or nothing. Names hold for
the whole file, so that the shape of one input gives the sizes of others.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .errors import BadPlan

Dims = tuple[int | str | None, ...]
"""Sizes as a file declares them; None, or a number below zero, for one that is open and has no name."""

_STEPS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "max": max, "min": min, "Max": max, "Min": min, "floor": math.floor, "ceil": math.ceil, "ceiling": math.ceil,
}  # fmt: skip
_REMEDY = "make them equal, or write batch in its place"
_LONGEST, _LARGEST = 200, 1 << 48


@dataclass(frozen=True)
class Sizes:
    """What is known of open dimensions.

    Attributes:
        batch: examples an inference.
        symbol: the name of the batch dimension; None where it has none.
        names: size by name.
        given: whole shapes, by input.
    """

    batch: int
    symbol: str | None
    names: Mapping[str, int]
    given: Mapping[str, tuple[int, ...]]

    def of(self, name: str, dims: Dims, axis: int) -> int | None:
        """Return the size of a dimension of an input, or None where nothing tells it."""
        size = dims[axis]
        if isinstance(size, int) and size >= 0:
            return size
        if is_batch(dims, axis, self.symbol):
            return self.batch
        if name in self.given:
            return self.given[name][axis]
        return value_of(size, self.names) if isinstance(size, str) else None


def is_batch(dims: Dims, axis: int, symbol: str | None) -> bool:
    """Tell whether a dimension is the batch: it bears its name, or is the first and has none."""
    size = dims[axis]
    if size is None or (isinstance(size, int) and size < 0):
        return axis == 0
    return isinstance(size, str) and size == symbol


def is_name(text: str) -> bool:
    """Tell a name from a formula."""
    return bool(text) and not set(text) & set("+-*/%()")


def batch_symbol(shapes: Sequence[Dims]) -> str | None:
    """Return the name of the batch: one that speaks of a batch, else the first dimension of the first input."""
    named = [size for dims in shapes for size in dims if isinstance(size, str) and is_name(size)]
    spoken = next((name for name in named if "batch" in name.lower()), None)
    if spoken is not None:
        return spoken
    first = next((dims[0] for dims in shapes if dims), None)
    return first if isinstance(first, str) and is_name(first) else None


def sizes(shapes: Mapping[str, Dims], batch: int, given: Mapping[str, Sequence[int | None]], where: str) -> Sizes:
    """Bind names to sizes.

    Args:
        shapes: what the file declares, by input.
        batch: examples an inference.
        given: whole shapes of some inputs; None stands for the batch.
        where: the file, for messages.

    Raises:
        BadPlan: a given shape does not fit what is declared, or two of them contradict each other.
    """
    symbol = batch_symbol(list(shapes.values()))
    names = {} if symbol is None else {symbol: batch}
    whole = {name: tuple(batch if size is None else size for size in shape) for name, shape in given.items()}
    for name, shape in whole.items():
        if name not in shapes:
            raise BadPlan(f"{where}: shape {text(name, shape)}: no such input, wanted one of {', '.join(shapes)}")
        _bind(name, shapes[name], shape, names, symbol, batch, where)
    found = Sizes(batch, symbol, names, whole)
    for name, shape in found.given.items():
        _check(name, shapes[name], shape, found, where)
    return found


def _bind(  # noqa: PLR0913 (one place, and what is known of it)
    name: str, dims: Dims, shape: tuple[int, ...], names: dict[str, int], symbol: str | None, batch: int, where: str
) -> None:
    if len(shape) != len(dims):
        raise BadPlan(f"{where}: shape {text(name, shape)}: wanted {len(dims)} sizes, as it declares {_declared(dims)}")
    for axis, size in enumerate(shape):
        if is_batch(dims, axis, symbol) and size != batch:
            raise BadPlan(
                f"{where}: shape {text(name, shape)}: its batch is {size}, and the plan's is {batch}; {_REMEDY}"
            )
        declared = dims[axis]
        if isinstance(declared, str) and is_name(declared) and names.setdefault(declared, size) != size:
            known = names[declared]
            raise BadPlan(f"{where}: shape {text(name, shape)}: {declared!r} is {known} elsewhere; make them equal")


def _check(name: str, dims: Dims, shape: tuple[int, ...], found: Sizes, where: str) -> None:
    for declared, size in zip(dims, shape, strict=True):
        value = value_of(declared, found.names) if isinstance(declared, str) else declared
        if value is not None and value >= 0 and value != size:
            raise BadPlan(f"{where}: shape {text(name, shape)}: got {size} where it declares {declared} ({value})")


def value_of(formula: str, names: Mapping[str, int]) -> int | None:
    """Return the value of a name or of a formula over names; None where one is not known, or it is no formula."""
    if formula in names:
        return names[formula]
    if len(formula) > _LONGEST or not re.fullmatch(r"[\w\s+\-*/%(),.]+", formula):
        return None
    try:
        found = _value(ast.parse(formula.strip(), mode="eval").body, names)
    except (SyntaxError, KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError):
        return None
    return int(found) if found.denominator == 1 and 0 <= found < _LARGEST else None


def _value(node: Any, names: Mapping[str, int]) -> Fraction:
    """Compute with fractions, of which `floor` makes whole numbers; whatever is not listed here raises KeyError."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.Name):
        return Fraction(names[node.id])
    if isinstance(node, ast.UnaryOp):
        return Fraction(_STEPS[type(node.op)](_value(node.operand, names)))
    if isinstance(node, ast.BinOp):
        return Fraction(_STEPS[type(node.op)](_value(node.left, names), _value(node.right, names)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return Fraction(_CALLS[node.func.id](*(_value(argument, names) for argument in node.args)))
    raise KeyError(type(node).__name__)


def text(name: str, shape: Sequence[int]) -> str:
    """Return a shape as the command line takes it."""
    return f"{name}={','.join(map(str, shape))}"


def _declared(dims: Dims) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in dims)})"
