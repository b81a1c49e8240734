"""What the pipeline adds to its stages' work, the memory of a whole run, and how soon the command line answers.

Goals: bookkeeping (hashing, writing, reading models back, reports) under 3 % of a fresh build, under 4 GB of memory
over all processes of the run, and `--help` and recipe faults in under half a second without importing torch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types

from shipworthy.benchmarks.common import (
    EXAMPLE,
    arguments,
    machine,
    machine_text,
    quick_recipe,
    table,
    write_results,
)

SHARE_GOAL, MEMORY_GOAL, ANSWER_GOAL_S = 0.03, 4e9, 0.5
HEAVY = ("torch", "onnx", "onnxruntime", "matplotlib")
FAULTY = "shipworthy: 1\nmodle: {source: 'reference:fashion-resnet20'}\ncompress: [{prune: {ratio: 2}}]\n"
_VERDICTS = (0, 1, 3)
_PROBE = """
import sys
wanted = sys.argv.pop(1).split()
from shipworthy.__main__ import main
try:
    main()
finally:
    sys.stderr.write("\\nimported: " + " ".join(m for m in wanted if m in sys.modules))
"""


@dataclass(frozen=True)
class Overhead:
    """Where a build's seconds went. `elsewhere_s` is what neither a stage nor the bookkeeping counts, such as data."""

    total_s: float
    stages_s: float
    bookkeeping_s: float
    elsewhere_s: float

    @property
    def share(self) -> float:
        """Bookkeeping as a share of the whole."""
        return self.bookkeeping_s / self.total_s


@dataclass(frozen=True)
class Watched:
    """A process that ended: its exit code and output, and the most that it and its children held at once."""

    exit_code: int
    stderr: str
    wall_s: float
    tree_peak_bytes: int
    process_peak_bytes: int


@dataclass(frozen=True)
class StartUp:
    """How long a command takes in fresh processes, which exit code it has, and what heavy packages it imports."""

    name: str
    median_s: float
    least_s: float
    times_bare_python: float
    exit_code: int
    imported: list[str]


def main() -> None:
    """Read the command line and run all three parts."""
    parser = arguments(__doc__)
    parser.add_argument("--recipe", type=Path, default=EXAMPLE)
    parser.add_argument("--builds", type=int, default=1, help="fresh builds, each in a new folder")
    parser.add_argument("--starts", type=int, default=15, help="fresh processes for each command")
    parser.add_argument("--no-build", action="store_true", help="start-up only")
    args = parser.parse_args()
    where = machine()
    started = start_ups(3 if args.quick else args.starts)
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        recipe = quick_recipe(args.recipe, Path(name)) if args.quick else args.recipe
        builds = [] if args.no_build else [fresh_build(recipe, Path(name, str(i))) for i in range(args.builds)]
    text = [
        f"# What the pipeline adds{' (smoke run: shares mean nothing)' if args.quick else ''}\n",
        machine_text(where),
    ]
    text += [_build_text(builds)] if builds else []
    text += [_start_text(started)]
    data = {"quick": args.quick, "machine": where, "builds": builds, "start_up": [asdict(one) for one in started]}
    write_results(args.out, "pipeline_overhead", "\n".join(text), data)


def fresh_build(recipe: Path, workdir: Path) -> dict[str, Any]:
    """Build into an empty folder, then once more on its finished stages."""
    command = [sys.executable, "-m", "shipworthy", "build", str(recipe), "-w", str(workdir)]
    print(f"building {recipe.name}", flush=True)
    first, seconds = _built(command, workdir)
    again, on_finished = _built(command, workdir)
    found = overhead(seconds)
    return {
        **asdict(found), "share": found.share, "wall_s": first.wall_s, "seconds": seconds,
        "tree_peak_bytes": first.tree_peak_bytes, "process_peak_bytes": first.process_peak_bytes,
        "again_wall_s": again.wall_s, "again_stages_s": overhead(on_finished).stages_s,
    }  # fmt: skip


def _built(command: Sequence[str], workdir: Path) -> tuple[Watched, dict[str, float]]:
    """Run a build that must come to a verdict; return what was seen of it and the seconds in its record."""
    seen = watch(command)
    if seen.exit_code not in _VERDICTS:
        raise SystemExit(f"the build ended with code {seen.exit_code}:\n{seen.stderr[-2000:]}")
    seconds: dict[str, float] = json.loads((workdir / "report.json").read_text(encoding="utf-8"))["seconds"]
    return seen, seconds


def overhead(seconds: Mapping[str, float]) -> Overhead:
    """Sum up the `seconds` of a run's record."""
    total, books = seconds["total"], seconds["bookkeeping"]
    stages = sum(spent for name, spent in seconds.items() if name not in ("total", "bookkeeping"))
    return Overhead(total, stages, books, total - stages - books)


def watch(command: Sequence[str], interval_s: float = 0.1) -> Watched:
    """Run a command and sample the resident memory of it and all its descendants.

    Pages that processes share are counted in each, so the sum errs on the high side.
    """
    tree_peak = process_peak = 0
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while child.poll() is None:
            held = _resident(child.pid)
            tree_peak, process_peak = max(tree_peak, sum(held)), max(process_peak, *held, 0)
            time.sleep(interval_s)
        wall = time.perf_counter() - began
        errors.seek(0)
        return Watched(child.returncode, errors.read(), wall, tree_peak, process_peak)


def _resident(pid: int) -> list[int]:
    """Return the resident bytes of a process and its descendants that are still there."""
    held = [0]
    try:
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            held.append(one.memory_info().rss)
    except psutil.Error:
        pass  # it ended between two looks
    return held


def start_ups(count: int) -> list[StartUp]:
    """Time the commands that must answer at once, in turn, each in fresh processes."""
    with tempfile.TemporaryDirectory(prefix="start-up-") as name:
        faulty = Path(name, "faulty.yaml")
        faulty.write_text(FAULTY, encoding="utf-8")
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "shipworthy --help": [*program(), "--help"],
            "shipworthy build --help": [*program(), "build", "--help"],
            "shipworthy build (faulty recipe)": [*program(), "build", str(faulty), "-w", str(Path(name, "out"))],
        }
        times, codes = in_turn(commands, count)
        bare = next(iter(commands))
        heavy = {label: imported(command[len(program()) :]) for label, command in commands.items() if label != bare}
        base = median(times[bare])
        return [
            StartUp(label, median(t), min(t), median(t) / base, codes[label], heavy.get(label, []))
            for label, t in times.items()
        ]


def program() -> list[str]:
    """Return how to start the command line: the script beside this interpreter, or the module."""
    script = shutil.which("shipworthy", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "shipworthy"]


def in_turn(commands: Mapping[str, Sequence[str]], count: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Run every command `count` times, in turn, after one untimed run each; return seconds and exit codes."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    codes: dict[str, int] = {}
    for index in range(count + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            codes[name] = subprocess.run(command, capture_output=True, check=False).returncode
            if index:
                times[name].append(time.perf_counter() - began)
    return times, codes


def imported(given: Sequence[str], packages: Sequence[str] = HEAVY) -> list[str]:
    """Return those of the packages that the command line imports for the arguments given."""
    command = [sys.executable, "-c", _PROBE, " ".join(packages), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.rpartition("imported: ")[2].split()


def _build_text(builds: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "fresh build",
        "total s",
        "bookkeeping s",
        "share %",
        "elsewhere s",
        "peak GB, tree",
        "largest process",
        "again s",
    )
    rows = [
        (
            str(index), f"{b['total_s']:.1f}", f"{b['bookkeeping_s']:.2f}", f"{100 * b['share']:.2f}",
            f"{b['elsewhere_s']:.2f}", f"{b['tree_peak_bytes'] / 1e9:.2f}", f"{b['process_peak_bytes'] / 1e9:.2f}",
            f"{b['again_wall_s']:.1f}",
        )
        for index, b in enumerate(builds, 1)
    ]  # fmt: skip
    share, peak = max(b["share"] for b in builds), max(b["tree_peak_bytes"] for b in builds)
    goals = [
        f"Bookkeeping under {SHARE_GOAL:.0%}: {_said(share < SHARE_GOAL)}.",
        f"Memory under {MEMORY_GOAL / 1e9:.0f} GB: {_said(peak < MEMORY_GOAL)}.",
        f"Every stage reused by the run after it: {_said(not any(b['again_stages_s'] for b in builds))}.",
    ]
    return table(head, rows) + "\n" + " ".join(goals) + "\n"


def _start_text(started: Sequence[StartUp]) -> str:
    head = ("command, fresh process", "median ms", "least ms", "x bare Python", "exit code", "imports")
    rows = [
        (
            one.name, f"{1e3 * one.median_s:.0f}", f"{1e3 * one.least_s:.0f}", f"{one.times_bare_python:.1f}",
            str(one.exit_code), ", ".join(one.imported) or "-",
        )
        for one in started
    ]  # fmt: skip
    slow, torch = max(one.median_s for one in started), any("torch" in one.imported for one in started)
    goals = f"Answers under {ANSWER_GOAL_S} s: {_said(slow < ANSWER_GOAL_S)}. Without torch: {_said(not torch)}."
    return table(head, rows) + "\n" + goals + "\n"


def _said(holds: bool) -> str:
    return "met" if holds else "missed"


if __name__ == "__main__":
    main()
