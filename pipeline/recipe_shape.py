"""Check one section of a recipe against the class it becomes; every fault in plain words."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from .recipe_faults import Fault, Key, show, suggest
from .recipe_yaml import Tree

T = TypeVar("T")


@dataclass(frozen=True)
class Checked(Generic[T]):
    """The value a section became, or the faults that kept it from becoming one."""

    value: T | None
    faults: tuple[Fault, ...] = ()


def check(kind: type[T], value: Any, tree: Tree, key: Key) -> Checked[T]:
    """Make a `kind` of plain values.

    It goes through JSON because pydantic's strict mode takes mappings and lists for classes and tuples only there.
    """
    try:
        return Checked(TypeAdapter(kind).validate_json(json.dumps(value), strict=True))
    except ValidationError as caught:
        errors = caught.errors(include_url=False)
    return Checked(None, tuple(_fault(kind, error, tree, key) for error in errors))


def _fault(kind: type, error: Any, tree: Tree, key: Key) -> Fault:
    inner: Key = tuple(error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _names(kind, inner[:-1])
        return tree.fault((*key, *inner), f"unknown key; {suggest(inner[-1], names)}", at_key=True)
    if error["type"] in ("missing", "missing_argument"):
        return tree.fault((*key, *inner), "missing; add it", at_key=True)
    if error["type"] == "value_error":
        return tree.fault((*key, *inner), str(error["ctx"]["error"]), at_key=True)
    return tree.fault((*key, *inner), _wanted(error))


def _wanted(error: Any) -> str:
    context, got = error.get("ctx", {}), error["input"]
    template = _WANTED.get(error["type"])
    wanted = template.format(**context) if template else error["msg"]
    hint = ""
    if error["type"] == "literal_error":
        hint = f"; {near}" if "mean" in (near := suggest(got, context["expected"].replace("'", "").replace(" or ", ", ").split(", "))) else ""  # fmt: skip # noqa: E501
    elif isinstance(got, str) and error["type"] in ("int_type", "float_type", "bool_type"):
        hint = "; take off the quotes" if _is_number(got) else ""
    return f"got {show(got)}, wanted {wanted}{hint}"


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (`key: value`)",
    "dataclass_type": "a mapping (`key: value`)",
}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _names(kind: Any, inner: Key) -> list[str]:
    """Return the fields of the class that `inner` leads to."""
    for part in inner:
        hint = get_type_hints(kind).get(str(part))
        kind = next((k for k in (hint, *get_args(hint)) if is_dataclass(k)), kind)
    return [f.name for f in fields(kind)]
