"""Can the profiler be trusted? Six experiments on it, each with a goal.

aa: how often is a model called faster or slower than itself, on a loaded machine, by us and by usual procedures?
power: is a planted slowdown of 3 % found? coverage: do 95 % intervals hold the truth? peeking: do goals that are looked
at again and again stay at 5 % error? truth: do medians agree with independent harnesses? overhead: what does the loop
cost?
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from shipworthy.benchmarks import profiler_aa, profiler_overhead, profiler_power, profiler_simulated, profiler_truth
from shipworthy.benchmarks.common import arguments, machine, machine_text, write_results
from shipworthy.benchmarks.profiler_bare import MODELS
from shipworthy.benchmarks.profiler_common import Experiment, Row, Settings, add_row, plainly, read_rows

EXPERIMENTS = {
    "aa": Experiment(
        "A model against itself",
        profiler_aa.aa_units,
        profiler_aa.aa_workshop,
        profiler_aa.aa_report,
    ),
    "power": Experiment(
        "A planted slowdown",
        profiler_power.power_units,
        profiler_power.power_workshop,
        profiler_power.power_report,
    ),
    "coverage": Experiment(
        "Intervals on series whose truth is known",
        profiler_simulated.coverage_units,
        lambda _: plainly(profiler_simulated.covered),
        profiler_simulated.coverage_report,
    ),
    "peeking": Experiment(
        "Goals looked at again and again",
        profiler_simulated.peeking_units,
        lambda settings: plainly(partial(profiler_simulated.peeked, settings.quick)),
        profiler_simulated.peeking_report,
    ),
    "truth": Experiment(
        "Medians of independent harnesses",
        profiler_truth.truth_units,
        lambda _: plainly(profiler_truth.agreement),
        profiler_truth.truth_report,
    ),
    "overhead": Experiment(
        "What the loop costs",
        profiler_overhead.overhead_units,
        lambda _: plainly(profiler_overhead.cost),
        profiler_overhead.overhead_report,
    ),
}


def main() -> None:
    """Read the command line, make the rows that are missing, write the report."""
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--rows", type=Path, help="a file of rows: those in it are not taken again, new ones are added")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for truth and aa")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["resnet20"], help="for aa and power")
    parser.add_argument("--aa-tries", type=int, default=100)
    parser.add_argument("--power-tries", type=int, default=40)
    parser.add_argument("--slowdown", type=float, default=0.03, help="planted in power, as a share")
    parser.add_argument("--workdir", type=Path, default=Path("out/profiler"), help="folder of model files")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"no such experiment: {', '.join(unknown)}; wanted some of {', '.join(EXPERIMENTS)}")
    aa, power = (2, 1) if args.quick else (args.aa_tries, args.power_tries)
    settings = Settings(args.quick, args.device, args.workdir, tuple(args.models), aa, power, args.slowdown)
    where = machine()
    found = {
        name: rows_of(one, settings, args.rows)
        for name, one in EXPERIMENTS.items()
        if name in (args.names or EXPERIMENTS)
    }
    text = [f"# The profiler, tested{' (smoke run: the figures mean nothing)' if args.quick else ''}\n"]
    text += [machine_text(where)]
    text += [f"## {EXPERIMENTS[name].title}\n\n{EXPERIMENTS[name].report(rows)}" for name, rows in found.items()]
    name = "profiler" if args.device == "cpu" else "profiler_cuda"
    write_results(args.out, name, "\n".join(text), {"quick": args.quick, "machine": where, "rows": found})


def rows_of(experiment: Experiment, settings: Settings, file: Path | None) -> Sequence[Row]:
    """Return all rows of an experiment: those that are known, and those made now."""
    known, units = read_rows(file), experiment.units(settings)
    missing = [key for key in units if key not in known]
    if missing:
        with experiment.workshop(settings) as work:
            for key in missing:
                known[key] = {"key": key, **work(units[key])}
                add_row(file, known[key])
                print(key, flush=True)
    return [known[key] for key in units]


if __name__ == "__main__":
    main()
