"""``fit`` over batch and hidden width against torch's eager loops, and alone over many widths."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable

from ..contest import Contest, compare_to
from ..document import CaseResult
from ..workloads import Workload

BATCHES, QUICK_BATCHES = (1, 10, 64, 256, 4096), (1, 64, 256)
WIDTHS, QUICK_WIDTHS = (8, 30, 100, 512, 1024), (8, 100, 512)
OUT = 10
NUMBERS = 1 << 24  # inputs in all, at most
LANES = 16  # a width is padded to so many


def workload_of(inputs: int, hidden: int, out: int, batch: int) -> Workload:
    """So many batches that an epoch's own cost is small beside them."""
    layers = inputs, hidden, out
    few = 4 if Workload("fit", layers, batch).flops() > 1e8 else 16
    rows = min(max(512, few * batch), NUMBERS // inputs // batch * batch)
    return Workload("fit", layers, batch, rows // batch, pool=min(NUMBERS // inputs, 1 << 16))


def of_inputs(inputs: int) -> Callable[[Contest, CaseResult, bool], None]:
    """The case of the grid's cells with so many inputs."""

    def run(contest: Contest, result: CaseResult, quick: bool) -> None:
        batches, widths = (QUICK_BATCHES, QUICK_WIDTHS) if quick else (BATCHES, WIDTHS)
        speedups = _cells(contest, result, inputs, OUT, [(batch, hidden) for batch in batches for hidden in widths])
        _judge_least(result, "grid-least", speedups)
        mean = statistics.geometric_mean(speedups.values()) if speedups else None
        result.judge("grid-mean", mean, f"{len(speedups)} cells of {inputs} inputs")

    return run


def tiny(contest: Contest, result: CaseResult, quick: bool) -> None:
    """A net whose arithmetic takes next to no time."""
    batches = (1, 64) if quick else (1, 10, 64)
    _judge_least(result, "tiny", _cells(contest, result, 8, 2, [(batch, 64) for batch in batches]))


def _judge_least(result: CaseResult, target: str, speedups: dict[tuple[int, int], float]) -> None:
    if not speedups:
        result.judge(target, None, "not measured")
        return
    batch, hidden = min(speedups, key=lambda cell: speedups[cell])
    result.judge(target, speedups[batch, hidden], f"batch {batch}, hidden {hidden}")


def _cells(
    contest: Contest, result: CaseResult, inputs: int, out: int, cells: list[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """How often ``fit`` on all threads is faster than the best eager loop at its best number of threads, by cell."""
    effort, contest.effort = contest.effort, dataclasses.replace(contest.effort, turns=3, turn_seconds=0.02)
    speedups = {}
    for batch, hidden in cells:
        contenders = contest.contenders(result, "twolayer.fit", threads=[max(contest.thread_counts)])
        contenders += contest.contenders(result, "torch eager", "nn.Linear loop")
        cell = {"batch": batch, "in": inputs, "hidden": hidden}
        rows = contest.run(result, workload_of(inputs, hidden, out, batch), contenders, cell=cell)
        compare_to(rows, "torch eager", "nn.Linear loop")
        if speedup := rows[0].speedup:
            speedups[batch, hidden] = speedup
    contest.effort = effort
    return speedups


def _watched_widths(quick: bool) -> list[int]:
    """All the small ones, and three around each edge that a vector, a cache line or a block could make."""
    edges = [64, 128, 512, 1024] if quick else [48, 64, 96, 100, 112, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024]
    near = {width + by for width in edges for by in (-1, 0, 1)}
    small = range(1, 41, 4) if quick else range(1, 41)
    return sorted(width for width in {*small, *near} if width <= 1024)


def widths(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Time per multiply-add of the padded net from width to width; where it rises there is a cliff."""
    threads = max(contest.thread_counts)
    effort, contest.effort = contest.effort, dataclasses.replace(contest.effort, turns=3, turn_seconds=0.01)
    costs: list[tuple[int, float]] = []
    for hidden in _watched_widths(quick):
        workload = Workload("fit", (784, hidden, OUT), 64, 64)
        contenders = contest.contenders(result, "twolayer.fit", threads=[threads])
        (row,) = contest.run(result, workload, contenders, cell={"hidden": hidden})
        padded = dataclasses.replace(workload, layers=(784, math.ceil(hidden / LANES) * LANES, OUT))
        if row.us:
            costs.append((hidden, row.us / padded.flops()))
    contest.effort = effort
    rises = [
        (cost / earlier_cost, f"from {earlier} to {hidden}")
        for (earlier, earlier_cost), (hidden, cost) in itertools.pairwise(costs)
    ]
    result.judge("widths", *max(rises, default=(None, "not measured")))
