"""Read YAML into plain values and remember the place of each: no tags, no duplicate keys, nothing that grows.

Scalars follow YAML 1.2's core schema, because PyYAML's 1.1 reads the key `on` as true and `1e-3` as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..models.errors import BadInput
from .recipe_faults import Fault, Key, RecipeFaults, dotted, show

MAX_BYTES = 64 * 1024
MAX_VALUES = 5_000
MAX_DEPTH = 20

# Brackets opened and none closed: PyYAML takes seconds to find that these are too many.
_OPENINGS = re.compile(r"(?:[\[{][^\[\]{}]*)" + f"{{{2 * MAX_DEPTH}}}")

Place = tuple[int, int]


@dataclass(frozen=True)
class Tree:
    """A recipe's plain values, and where each value and each key was written (line and column from 1)."""

    path: str
    value: Any
    values: dict[Key, Place]
    keys: dict[Key, Place]

    def fault(self, key: Key, message: str, at_key: bool = False) -> Fault:
        """Place a message at a value, at its key, or at the nearest thing around it that was written."""
        places = {**self.values, **self.keys} if at_key else self.values
        nearest = next((key[:n] for n in range(len(key), -1, -1) if key[:n] in places), ())
        line, column = places.get(nearest, (1, 1))
        return Fault(line, column, dotted(key), message)


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the scalar rules of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own attribute, replaced and not shared)


def _scalar(kind: str, pattern: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), None)


_scalar("null", r"~|null|Null|NULL|")
_scalar("bool", r"true|True|TRUE|false|False|FALSE")
_scalar("int", r"[-+]?[0-9]+")
_scalar("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def read_tree(path: Path) -> Tree:
    """Read one YAML file whose top is a mapping.

    Raises:
        BadInput: the file is missing, a folder, unreadable or too large.
        RecipeFaults: it is no UTF-8, no YAML, empty, no mapping, or has duplicate keys, tags or loops.
    """
    text = _text(path)
    node = _compose(path, text)
    if node is None:
        raise _one(path, (1, 1), "the recipe is empty; start it with `shipworthy: 1`")
    if not isinstance(node, yaml.MappingNode):
        wanted = "wanted a mapping that starts with `shipworthy: 1`"
        raise _one(
            path, _place(node), f"got a {'list' if isinstance(node, yaml.SequenceNode) else 'lone value'}, {wanted}"
        )
    reader = _Reader()
    try:
        value = reader.build(node, ())
    except _TooMuchError as fault:
        raise _one(path, fault.place, str(fault)) from None
    if reader.faults:
        raise RecipeFaults(str(path), reader.faults)
    return Tree(str(path), value, reader.values, reader.keys)


def _text(path: Path) -> str:
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, wanted a recipe file; give for example {path / 'recipe.yaml'}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such recipe; check the path, or start from examples/01_fashion.yaml") from None
    except (OSError, ValueError) as fault:
        raise BadInput(f"{path}: cannot be read ({fault}); check its permissions") from fault
    if len(content) > MAX_BYTES:
        raise BadInput(f"{path}: larger than {MAX_BYTES // 1024} KiB, which no recipe is; was a data file given?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        column = fault.start - content.rfind(b"\n", 0, fault.start)
        message = f"not UTF-8 (byte 0x{content[fault.start]:02x}); save the file as UTF-8 text"
        raise _one(path, (line, column), message) from None


def _compose(path: Path, text: str) -> yaml.Node | None:
    too_deep = _one(path, (1, 1), f"nested deeper than {MAX_DEPTH} levels; a recipe needs five")
    if _OPENINGS.search(text):
        raise too_deep
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _one(path, place, f"not YAML: {_explain(fault)}") from None
    except yaml.reader.ReaderError as fault:
        before = text[: fault.position]
        place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise _one(path, place, "not YAML: a character that text cannot hold; remove it") from None
    except RecursionError:
        raise too_deep from None


def _explain(fault: yaml.MarkedYAMLError) -> str:
    problem = fault.problem or fault.context or "unreadable"
    if "\\t" in problem:
        return "a tab; indent with spaces"
    if "mapping values are not allowed" in problem:
        return "a second `:` on one line; put quotes around text that holds a colon, or start a new line"
    if "single document" in str(fault.context):
        return "a second document; keep one, without `---`"
    return f"{problem}; check the indentation, quotes and brackets before this place"


def _one(path: Path, place: Place, message: str) -> RecipeFaults:
    return RecipeFaults(str(path), [Fault(*place, "", message)])


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


class _TooMuchError(Exception):
    """Reading cannot go on: aliases that grow, loop, or nest without end."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass
class _Reader:
    values: dict[Key, Place] = field(default_factory=dict)
    keys: dict[Key, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def build(self, node: yaml.Node, key: Key) -> Any:
        """Return the plain value of a node, noting places and faults on the way."""
        if len(key) > MAX_DEPTH:
            raise _TooMuchError(_place(node), f"nested deeper than {MAX_DEPTH} levels, or an alias inside itself")
        if len(self.values) > MAX_VALUES:
            raise _TooMuchError(_place(node), f"more than {MAX_VALUES} values; do not multiply aliases")
        self.values[key] = _place(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, key)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                self._say(name, key, "a key must be a plain word; put quotes around text with brackets")
                continue
            inner = (*key, str(name.value))
            if name.value in made:
                first = self.keys[inner][0]
                self._say(name, inner, f"given twice (first in line {first}); keep one of the two")
                continue
            self.keys[inner] = _place(name)
            made[str(name.value)] = self.build(value, inner)
        return made

    def _scalar(self, node: yaml.Node, key: Key) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
        if not text.isprintable():
            self._say(node, key, "holds a character that cannot be shown; remove it")
            return None
        try:
            return _READERS[kind](text)
        except KeyError:
            self._say(node, key, f"the tag `{node.tag}` is not allowed; write plain values")
        except ValueError:
            self._say(node, key, f"got {show(text)}, which is no {kind}; write it out plainly")
        return None

    def _say(self, node: yaml.Node, key: Key, message: str) -> None:
        self.faults.append(Fault(*_place(node), dotted(key), message))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": _float,
    "bool": lambda text: text.lower() == "true",
    "null": lambda text: None,
}
