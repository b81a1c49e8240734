"""The passes of a build, one after the other: each is taken, exported, checked, and dropped where it does not pay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..export.artifact import Precision
from ..models.data import Dataset
from ..models.schemes import QUANTIZED, Integers, precision_of
from .layer_stage import layers_stage, wants_search
from .paying import HALF, Payment, half_pays, pays
from .recipe import Recipe
from .recipe_parts import Step
from .stages import Exported, capture_stage, check_stage, export_stage, pass_stage
from .store import Stage, Store


@dataclass(frozen=True)
class Taken:
    """The stages of one step: the model after it, its file, and what it brought, where it claims speed."""

    label: str
    step: Step | None
    model: Stage
    exported: Exported
    payment: Payment | None = None

    @property
    def dropped(self) -> bool:
        """Whether the model goes on as it was before."""
        return self.payment is not None and not self.payment.kept


@dataclass
class Course:
    """What became of a recipe's passes so far.

    Attributes:
        recipe: with the passes marked that were dropped.
        kept: the baseline, and every pass that the model went on with.
        dropped: the passes that did not pay.
        payments: of all that was compared, in order.
        notes: what else is to be said.
    """

    recipe: Recipe
    kept: list[Taken]
    dropped: list[Taken]
    payments: list[Payment]
    notes: list[str]


def take_steps(store: Store, recipe: Recipe, data: Dataset | None) -> Course:
    """Capture the model, then apply each pass; export and check what each gives, and go on with what pays.

    A model that is adapted first is the baseline as it is then.
    """
    model, step = capture_stage(store, recipe, data), None
    if recipe.adapts:
        step = recipe.compress[0]
        model = pass_stage(store, step, (model, model), data, recipe)
    first = Taken("baseline", step, model, _exported(store, recipe, model, "baseline", data))
    course = Course(recipe, [first], [], [], [])
    for place, label in list(enumerate(recipe.labels))[recipe.adapts :]:
        taken = _take(store, course, place, label, data)
        (course.dropped if taken.dropped else course.kept).append(taken)
        if taken.payment:
            _tell(store, course, taken.payment)
        if taken.dropped:
            course.recipe = _without(course.recipe, place)
    return course


def tensorrt_file(store: Store, course: Course, data: Dataset | None) -> Exported | None:
    """Write and check the file for TensorRT; in integers where `quantize` is kept, or the recipe says so itself."""
    precision, last = course.recipe.tensorrt_precision, course.kept[-1]
    if precision is None:
        return None
    quantized = next((taken for taken in course.dropped if taken.step and taken.step.name == "quantize"), None)
    if quantized is not None and precision in QUANTIZED:
        course.notes.append(f"model.tensorrt.onnx is {precision}, as export.tensorrt.precision says: {_ONLY_HERE}")
        return _for_tensorrt(store, course.recipe, quantized, precision, data)
    if quantized is not None:
        part, asked = course.recipe.export.tensorrt, _integers(quantized.model)
        kept = "" if part and part.precision else f"; export.tensorrt.precision: {asked} keeps it in {asked}"
        course.notes.append(f"model.tensorrt.onnx is {precision}, as `{quantized.label}` was dropped{kept}")
    file = _for_tensorrt(store, course.recipe, last, precision, data)
    paid = half_pays(store, course.recipe, (last.exported, file), data) if precision == HALF else None
    if paid is None:
        return file
    _tell(store, course, paid)
    return file if paid.kept else _for_tensorrt(store, course.recipe, last, "fp32", data)


_ONLY_HERE = "`quantize` was dropped for the file that runs on the CPU only"


def _take(store: Store, course: Course, place: int, label: str, data: Dataset | None) -> Taken:
    """Apply one pass to the model as it is, and see what it brings."""
    step, before = course.recipe.compress[place], course.kept[-1]
    named = replace(step, name=label)
    models = before.model, course.kept[0].model
    model = pass_stage(store, named, models, data, course.recipe)
    model = layers_stage(store, course.recipe, step, model, data) if wants_search(step) else model
    file = _exported(store, course.recipe, model, label, data)
    return Taken(label, step, model, file, pays(store, course.recipe, step, (before.exported, file), data))


def _tell(store: Store, course: Course, payment: Payment) -> None:
    course.payments.append(payment)
    for text in (payment.line, *payment.reasons):
        store.progress.note(text)


def _without(recipe: Recipe, place: int) -> Recipe:
    steps = [replace(step, dropped=step.dropped or i == place) for i, step in enumerate(recipe.compress)]
    return replace(recipe, compress=tuple(steps))


def _exported(store: Store, recipe: Recipe, model: Stage, label: str, data: Dataset | None) -> Exported:
    file = export_stage(store, recipe, model, _integers(model) or "fp32", "cpu", data)
    return Exported(label, "cpu", model, file, check_stage(store, model, file, data))


def _integers(model: Stage) -> Integers | None:
    """Return the precision of a model that is marked for integers."""
    marked = model.facts.get("quantization")
    return precision_of(marked["scheme"]) if marked else None


def _for_tensorrt(store: Store, recipe: Recipe, taken: Taken, precision: Precision, data: Dataset | None) -> Exported:
    file = export_stage(store, recipe, taken.model, precision, "tensorrt", data)
    return Exported(taken.label, "tensorrt", taken.model, file, check_stage(store, taken.model, file, data))
