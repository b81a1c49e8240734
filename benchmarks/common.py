"""What the benchmarks share: their options, the machine they ran on, tables, and where results go."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shipworthy.models.data import Dataset

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "01_fashion.yaml"
RESULTS = Path(__file__).with_name("results")
SCHEMA = 1

_PACKAGES = (
    "shipworthy",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch-pruning",
    "numpy",
)
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has, and the first line of `doc` as its help."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few steps and rounds, figures mean nothing")
    return parser


def machine() -> dict[str, Any]:
    """Describe processor, memory and versions; nothing in it names a user, a host or a folder."""
    from shipworthy.profile.environment import environment

    found = environment()
    kept = ("system", "machine", "cpu", "usable_cores", "instruction_sets", "memory_bytes", "load_average", "gpus")
    versions = {name: one for name in _PACKAGES if (one := _version(name))}
    return {key: found[key] for key in kept} | {"python": platform.python_version(), "versions": versions}


def int8_dot_products(instruction_sets: Iterable[str]) -> list[str]:
    """Return the instructions present that sum 8-bit products in 32 bits, without saturation between."""
    present = set(instruction_sets)
    return [name for name in _DOT_PRODUCTS if name in present]


def machine_text(found: Mapping[str, Any]) -> str:
    """Return `machine()` in two lines of Markdown."""
    sets = ", ".join(found["instruction_sets"]) or "unknown"
    load = f", load {found['load_average'][0]:.1f} before" if found["load_average"] else ""
    versions = ", ".join(f"{name} {one}" for name, one in found["versions"].items())
    memory = f", {found['memory_bytes'] / 2**30:.0f} GiB" if found["memory_bytes"] else ""
    cpu = f"{found['cpu'] or found['machine']}, {found['usable_cores']} cores{memory}{load}; instruction sets: {sets}."
    return f"Machine: {cpu}\nVersions: Python {found['python']}, {versions}.\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; every column but the first is aligned right."""
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval(value: float, low: float | None, high: float | None, form: str = ".2f") -> str:
    """Return a value with its interval as text, such as `7.51 (7.40 to 7.62)`."""
    ends = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    return f"{value:{form}}{ends}"


def write_results(out: Path, name: str, markdown: str, data: Mapping[str, Any]) -> None:
    """Print the Markdown and write it with its data to `<out>/<name>.md` and `.json`."""
    from shipworthy.models.files import write_text

    write_text(out / f"{name}.md", markdown)
    write_text(out / f"{name}.json", json.dumps({"schema": SCHEMA, **data}, indent=1, allow_nan=False) + "\n")
    print(markdown)


def read_rows(file: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that an interrupted run goes on from; a line that was cut off is passed over."""
    for line in file.read_text(encoding="utf-8").splitlines() if file is not None and file.is_file() else ():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def add_row(file: Path | None, row: Mapping[str, Any], *, allow_nan: bool = True) -> None:
    """Append a row to a file, on a line of its own even after one that was cut off."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = not file.is_file() or file.read_bytes()[-1:] in (b"", b"\n")
    with file.open("a", encoding="utf-8") as opened:
        opened.write(("" if whole else "\n") + json.dumps(row, allow_nan=allow_nan) + "\n")


def quick_recipe(recipe: Path, folder: Path) -> Path:
    """Write a copy of a recipe that trains for four steps."""
    text = recipe.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "quick.yaml"
    made.write_text(re.sub(r"\b(steps|epochs): *[\d.]+", "steps: 4", text), encoding="utf-8")
    return made


def fewer_tests(data: Dataset, count: int) -> Dataset:
    """Return the data with its first `count` test images only."""
    from shipworthy.models.data import Split

    return replace(data, test=Split(data.test.labels[:count], data.test.fetch))


def pruning_tool() -> Any:
    """Import Torch-Pruning, or end with a message that says how to install it."""
    try:
        import torch_pruning
    except ImportError as fault:
        raise SystemExit(
            "this benchmark compares with Torch-Pruning, which is not installed: pip install torch-pruning==1.6.1"
        ) from fault
    return torch_pruning


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
