"""Read a recipe: the only place where configuration is checked. Below it, functions take plain values."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..compress.quantize import Quantize
from ..models.schemes import Integers, precision_of
from ..profile.goals import Goal
from . import recipe_checks as checks
from .engine_part import plain_export
from .recipe_faults import Fault, Key, RecipeFaults, show, suggest
from .recipe_metrics import METRICS, Metric, Runtime
from .recipe_parts import (
    PASSES,
    DataPart,
    ExportPart,
    GoalPart,
    ModelPart,
    OnnxPart,
    ProfilePart,
    Step,
    TensorrtPart,
    TrainPart,
    plain_data,
)
from .recipe_shape import check
from .recipe_yaml import Tree, read_tree

if TYPE_CHECKING:
    from ..export.artifact import Precision

SCHEMAS = (1,)
SECTIONS = ("shipworthy", "seed", "model", "data", "train", "compress", "export", "profile", "goals")
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """What to build and what it must be: a checked recipe with every default filled in and every path absolute."""

    path: Path
    seed: int
    model: ModelPart
    data: DataPart | None
    train: TrainPart
    compress: tuple[Step, ...]
    export: ExportPart
    profile: ProfilePart
    goals: tuple[Goal, ...]
    written: tuple[ModelPart, DataPart | None] = field(repr=False)
    """The model and data as the recipe names them: relative paths stay relative, so a moved recipe keeps its hash."""

    @property
    def labels(self) -> list[str]:
        """The name of each pass, with a number from the second of a kind on: `prune`, `distill`, `prune-2`."""
        seen: Counter[str] = Counter()
        labels = []
        for step in self.compress:
            seen[step.name] += 1
            labels.append(step.name if seen[step.name] == 1 else f"{step.name}-{seen[step.name]}")
        return labels

    @property
    def adapts(self) -> bool:
        """Whether a pretrained model is adapted first: what that gives is then the baseline, and the teacher."""
        return bool(self.compress) and self.compress[0].settings.adapts

    @property
    def quantizes(self) -> bool:
        """Whether a pass asks for integers, and was not dropped."""
        return self.integers is not None

    @property
    def integers(self) -> Integers | None:
        """The precision that a pass asks for that makes integers and was not dropped."""
        found = (step.settings for step in self.compress if not step.dropped)
        return next((precision_of(one.scheme) for one in found if isinstance(one, Quantize)), None)

    @property
    def tensorrt_precision(self) -> Precision | None:
        """What the TensorRT file holds; None when none is made."""
        if self.export.tensorrt is None:
            return None
        return self.export.tensorrt.precision or self.integers or "fp16"

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-able values with every default filled in; written as YAML, it is a recipe."""
        model, data = self.written
        made = {
            "shipworthy": SCHEMAS[-1],
            "seed": self.seed,
            "model": asdict(model),
            "data": plain_data(data) if data else None,
            **({"train": asdict(self.train)} if self.train != TrainPart() else {}),
            "compress": [{step.name: _written(step)} for step in self.compress],
            "export": plain_export(self.export),
            "profile": _profile(self.profile),
            "goals": {goal.metric: _goal(goal) for goal in self.goals},
        }
        plain: dict[str, Any] = json.loads(json.dumps(made))
        return plain

    @property
    def sha256(self) -> str:
        """The hash of what the recipe says: not of comments, order of keys, or defaults left out."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe, without importing torch.

    Args:
        path: a YAML file.

    Raises:
        BadInput: the file cannot be read.
        RecipeFaults: (a BadInput) lists every fault with its line, its key and a remedy.
    """
    path = Path(path)
    return _Reading(read_tree(path), path.absolute().parent).recipe(path)


@dataclass
class _Reading:
    """One reading: sections are checked one by one, so that a fault in one does not hide those in others."""

    tree: Tree
    folder: Path
    faults: list[Fault] = field(default_factory=list)

    def recipe(self, path: Path) -> Recipe:
        """Return the recipe, or raise all its faults."""
        self._top()
        seed = self._seed()
        model, data = self._section("model", ModelPart), self._section("data", DataPart)
        train = self._section("train", TrainPart) or TrainPart()
        has_data = self.tree.value.get("data") is not None
        files = (
            checks.model_part(model, self.folder, self.say) if model else None,
            checks.data_part(data, self.folder, self.say) if data else None,
        )
        steps = self._steps(seed, has_data)
        export, profile = self._export_and_profile()
        if export:
            checks.check_schemes(steps, export, self.say)
        goals = self._goals(profile.runtimes if profile else None, has_data)
        if self.faults or not model or not files[0] or not export or not profile:
            raise RecipeFaults(self.tree.path, self.faults)
        passes = tuple(step for _, step in steps)
        return Recipe(path, seed, files[0], files[1], train, passes, export, profile, goals, (model, data))

    def say(self, key: Key, message: str, at_key: bool = False) -> None:
        """Note a fault."""
        self.faults.append(self.tree.fault(key, message, at_key))

    def _top(self) -> None:
        top = self.tree.value
        for name in top:
            if name not in SECTIONS:
                self.say((name,), f"unknown key; {suggest(name, SECTIONS)}", at_key=True)
        reads = f"this program reads schema {', '.join(map(str, SCHEMAS))}"
        schema = top.get("shipworthy")
        if "shipworthy" not in top:
            self.say(("shipworthy",), f"missing: the recipe's schema; {reads}: add `shipworthy: {SCHEMAS[-1]}`")
        elif isinstance(schema, bool) or schema not in SCHEMAS:
            self.say(("shipworthy",), f"got {show(schema)}, and {reads}; use that, or another version of shipworthy")
        if "model" not in top:
            self.say(("model",), "missing; add `model: {source: ...}`")

    def _seed(self) -> int:
        seed = self.tree.value.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            self.say(("seed",), f"got {show(seed)}, wanted a whole number from 0 to 4294967295")
            return 0
        return seed

    def _section(self, name: str, kind: type[T]) -> T | None:
        value = self.tree.value.get(name)
        return None if value is None and name != "model" else self._check(kind, value, (name,))

    def _check(self, kind: type[T], value: Any, key: Key) -> T | None:
        if key[-1] == "model" and "model" not in self.tree.value:
            return None
        checked = check(kind, value, self.tree, key)
        self.faults.extend(checked.faults)
        return checked.value

    def _steps(self, seed: int, has_data: bool) -> list[tuple[int, Step]]:
        """Return the passes that are right, each with its place."""
        written = self.tree.value.get("compress")
        if written is None:
            return []
        if not isinstance(written, list):
            self.say(("compress",), f"got {show(written)}, wanted a list of passes (`- prune: {{ratio: 0.5}}`)")
            return []
        steps = [(i, step) for i, item in enumerate(written) if (step := self._step(i, item, seed))]
        checks.check_steps(steps, has_data, self.say)
        return steps

    def _step(self, index: int, item: Any, seed: int) -> Step | None:
        named = {item: None} if isinstance(item, str) else item
        key: Key = ("compress", index)
        if not isinstance(named, dict) or len(named) != 1:
            many = f"a mapping of {len(named)}" if isinstance(named, dict) else show(item)
            self.say(key, f"got {many}, wanted one pass an entry (`- prune: {{ratio: 0.5}}`)")
            return None
        ((name, settings),) = named.items()
        if name not in PASSES:
            self.say((*key, name), f"no such pass; {suggest(name, PASSES)}", at_key=True)
            return None
        settings, insist = checks.take_insist(_or_empty(settings), name, (*key, name), self.say)
        if isinstance(settings, dict) and "seed" in signature(PASSES[name]).parameters:
            # What draws, and is given no seed of its own, takes the recipe's.
            settings = {"seed": seed, **settings}
        made = self._check(PASSES[name], settings, (*key, name))
        if made:
            checks.teacher_sources(made, self.folder, self.say, (*key, name))
        return Step(name, made, insist) if made else None

    def _export_and_profile(self) -> tuple[ExportPart | None, ProfilePart | None]:
        top = self.tree.value
        export = self._check(ExportPart, _or_empty(top.get("export")), ("export",))
        profile = self._check(ProfilePart, _or_empty(top.get("profile")), ("profile",))
        if export:
            checks.check_export(export, _mentions(top.get("compress"), "quantize"), self.say)
        if profile:
            checks.check_profile(profile, export, self.say)
        return export, profile

    def _goals(self, runtimes: tuple[Runtime, ...] | None, has_data: bool) -> tuple[Goal, ...]:
        written = self.tree.value.get("goals")
        if written is not None and not isinstance(written, dict):
            self.say(("goals",), f"got {show(written)}, wanted a mapping (`size_mb: {{max: 0.5}}`)")
            return ()
        made = [self._goal(name, value, runtimes, has_data) for name, value in (written or {}).items()]
        return tuple(goal for goal in made if goal)

    def _goal(self, name: str, value: Any, runtimes: tuple[Runtime, ...] | None, has_data: bool) -> Goal | None:
        if name not in METRICS:
            self.say(("goals", name), f"unknown metric; {suggest(name, METRICS)}", at_key=True)
            return None
        if not isinstance(value, dict):
            form = f"{{{METRICS[name].bound}: NUMBER}}"
            self.say(("goals", name), f"got {show(value)}, wanted a mapping: `{name}: {form}`")
            return None
        part = self._check(GoalPart, value, ("goals", name))
        return checks.make_goal(name, part, runtimes, has_data, self.say) if part else None


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


def _mentions(steps: Any, name: str) -> bool:
    return isinstance(steps, list) and any(name == s or (isinstance(s, dict) and name in s) for s in steps)


def _written(step: Step) -> Mapping[str, Any]:
    """Return a pass as a recipe has it; what came later is there only where it is asked for."""
    insist = {"insist": True} if step.insist else {}
    return insist | {f.name: getattr(step.settings, f.name) for f in fields(step.settings)}  # type: ignore[arg-type]  # every pass is a dataclass


def _profile(part: ProfilePart) -> dict[str, Any]:
    """Leave out what came later where it is not asked for, so that recipes from before keep their hash."""
    return {key: value for key, value in asdict(part).items() if key not in ("figures", "allow_fallback") or value}


def _goal(goal: Goal) -> dict[str, Any]:
    return {key: value for key in ("min", "max", "on") if (value := getattr(goal, key)) is not None}


__all__ = [
    "METRICS",
    "PASSES",
    "DataPart",
    "ExportPart",
    "Goal",
    "Metric",
    "ModelPart",
    "OnnxPart",
    "ProfilePart",
    "Recipe",
    "RecipeFaults",
    "Runtime",
    "Step",
    "TensorrtPart",
    "read_recipe",
]
