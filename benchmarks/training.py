"""What the trainer adds to a bare PyTorch loop: images a second of both, interleaved in one run. Goal: at most 3 %.

Both have the same network, batches, optimizer and learning rates. The bare loop runs the eager module; the trainer the
captured graph, and it looks after gradients that are not finite, statistics, and who watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shipworthy.benchmarks.common import arguments, interval, machine, machine_text, table, write_results

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shipworthy.compress.training import Batch

GOAL = 0.03
STEPS = 5
"""Of a round; its first is not counted, as memory is got there."""

HEAD = ("network", "batch", "trainer, images/s", "bare loop, images/s", "bare loop's time of the trainer's, 95 %", "goal")  # fmt: skip # noqa: E501


@dataclass(frozen=True)
class Row:
    """One network. `share` is the bare loop's time of the trainer's: 1 is no overhead, less is some."""

    net: str
    batch: int
    trainer_ns: int
    bare_ns: int
    share: tuple[float, float | None, float | None]
    rounds: int


def main() -> None:
    """Read the command line, time."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    rounds = 3 if args.quick else args.rounds
    rows = [row(name, make(), batch, rounds) for name, make, batch in nets()]
    report(args.out, rows, args.threads, quick=args.quick)


def nets() -> list[tuple[str, Callable[[], nn.Module], int]]:
    """Return what is trained: the reference model, half of it, and one so small that overhead would show most."""
    from shipworthy.models.resnet import SmallResNet

    return [
        ("ResNet-20, width 32", SmallResNet, 64),
        ("ResNet-20, width 16", lambda: SmallResNet(width=16), 64),
        ("ResNet-8, width 8", lambda: SmallResNet(blocks=1, width=8), 64),
    ]


def row(name: str, module: nn.Module, batch: int, rounds: int) -> Row:
    """Time a network both ways, in turn; who goes first changes."""
    import torch

    import shipworthy as sw
    from shipworthy.profile.stats import median_interval, median_ratio_interval

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, 1, 28, 28, generator=generator), torch.randint(10, (batch,), generator=generator)
    model = sw.capture(module, (x[:2],))
    ways = {"trainer": trainer_of(model, (x, y)), "bare": bare_of(module, (x, y))}
    taken: dict[str, list[int]] = {"trainer": [], "bare": []}
    for turn in range(rounds + 1):
        for way in sorted(ways, reverse=turn % 2 == 0):
            spent = ways[way]()
            if turn:  # the first round fills caches
                taken[way].append(spent)
    found = median_ratio_interval(taken["bare"], taken["trainer"])
    middle = {way: round(median_interval(values).value) for way, values in taken.items()}
    return Row(name, batch, middle["trainer"], middle["bare"], (found.value, found.low, found.high), rounds)


def trainer_of(model: object, batch: tuple[Tensor, Tensor]) -> Callable[[], int]:
    """Return what trains by `compress.training`, and gives the nanoseconds of a step."""
    import torch.nn.functional as F

    from shipworthy.compress.optimizers import Schedule
    from shipworthy.compress.training import train
    from shipworthy.models.model import Model

    assert isinstance(model, Model)
    module = model.copy().module

    def batch_at(_: int) -> Batch:
        return (batch[0],), batch[1]

    def run() -> int:
        times: list[int] = []
        train(
            module, batch_at, lambda scores, labels, _: F.cross_entropy(scores, labels),
            Schedule(STEPS, 1e-3, 5e-4), lambda *_: times.append(time.perf_counter_ns()),
        )  # fmt: skip
        return (times[-1] - times[0]) // (STEPS - 1)

    return run


def bare_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], int]:
    """Return the same as one would write it by hand."""
    import torch
    import torch.nn.functional as F

    from shipworthy.compress.optimizers import kernels_and_others

    module = module.train().to(memory_format=torch.channels_last)
    groups = [dict(group) for group in kernels_and_others(module.parameters(), 5e-4)]

    def run() -> int:
        optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS + 1, cycle_momentum=False)
        x, y = batch
        times: list[int] = []
        for _ in range(STEPS):
            loss = F.cross_entropy(module(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            rate.step()
            times.append(time.perf_counter_ns())
        return (times[-1] - times[0]) // (STEPS - 1)

    return run


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    speeds = (f"{1e9 * row.batch / ns:,.0f}" for ns in (row.trainer_ns, row.bare_ns))
    return (row.net, str(row.batch), *speeds, interval(*row.share, form=".3f"), verdict(row.share))


def verdict(share: tuple[float, float | None, float | None]) -> str:
    """Return what became of the goal: the whole interval is on one side of it, or it is not."""
    _, low, high = share
    if low is None or high is None:
        return "unclear"
    return "met" if low >= 1 - GOAL else "missed" if high < 1 - GOAL else "unclear"


def report(out: Path, rows: list[Row], threads: int, *, quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    text = [
        f"# The trainer against a bare loop{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"Images of 28 x 28, SGD, {threads} thread(s), {rows[0].rounds} rounds of {STEPS} steps, the two in turn. "
        "Below 1 the trainer takes longer.\n",
        table(HEAD, map(cells, rows)),
    ]
    data = {"quick": quick, "machine": where, "threads": threads, "rows": [*map(asdict, rows)]}
    write_results(out, "training", "\n".join(text), data)


if __name__ == "__main__":
    main()
