"""``TwoLayerNet`` against ``nn.Sequential``, call by call, and prepared inference."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

from ..contest import Contest, compare_to
from ..document import CaseResult
from ..workloads import Workload

# batch, in, hidden, out: from next to no arithmetic to seconds of it, in steps of about four
SHAPES = (
    (1, 8, 64, 2),
    (16, 8, 64, 2),
    (1, 784, 100, 10),
    (64, 64, 100, 10),
    (16, 784, 100, 10),
    (64, 784, 100, 10),
    (64, 784, 512, 10),
    (1024, 784, 100, 10),
    (256, 784, 1024, 10),
    (256, 1024, 4096, 256),
    (1024, 1024, 4096, 1024),
    (4096, 1024, 4096, 1024),
)
QUICK_SHAPES = SHAPES[:-2:2]


def of_task(task: str) -> Callable[[Contest, CaseResult, bool], None]:
    """The case of a task, under autograd; the module and its peer each at their best number of threads."""

    def run(contest: Contest, result: CaseResult, quick: bool) -> None:
        short = dataclasses.replace(contest.effort, turns=7, turn_seconds=0.05, budget=2.0)
        effort, contest.effort = contest.effort, short
        speedups = {}
        for batch, *layers in QUICK_SHAPES if quick else SHAPES:
            inputs, hidden, out = layers
            contenders = contest.contenders(result, "TwoLayerNet", "nn.Sequential")
            shape = f"{batch} × {inputs}-{hidden}-{out}"
            rows = contest.run(result, Workload(task, (inputs, hidden, out), batch), contenders, cell={"shape": shape})
            compare_to(rows, "nn.Sequential")
            ours = [row.speedup for row in rows if row.implementation == "TwoLayerNet" and row.speedup]
            if ours:
                speedups[shape] = max(ours)
        contest.effort = effort
        least = min(speedups, key=lambda shape: speedups[shape], default=None)
        mean = statistics.geometric_mean(speedups.values()) if speedups else None
        result.judge(f"module-{task}-mean", mean, f"{len(speedups)} shapes")
        result.judge(f"module-{task}-least", speedups[least] if least else None, least or "not measured")

    return run


def inference(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Outputs only; each number of threads on its own."""
    worst: dict[str, list[float]] = {}
    predictor = []
    for batch in (1, 64, 4096):
        workload = Workload("infer", (784, 100, 10), batch)
        contenders = contest.contenders(result, "TwoLayerNet", "predictor", "nn.Sequential")
        rows = contest.run(result, workload, contenders, cell={"batch": batch})
        for threads in contest.thread_counts:
            same = [row for row in rows if row.threads == threads]
            compare_to(same, "nn.Sequential")
            for row in same:
                if row.implementation == "TwoLayerNet" and row.speedup:
                    each = {64: f"infer-64-{threads}-thread{'s' if threads > 1 else ''}"}
                    worst.setdefault(each.get(batch, f"infer-{batch}"), []).append(row.speedup)
                if row.implementation == "predictor" and row.speedup and batch == 1:
                    predictor.append(row.speedup)
    for target in ("infer-1", "infer-64-1-thread", "infer-64-2-threads", "infer-4096"):
        found = worst.get(target)
        result.judge(
            target, min(found) if found else None, "at the same number of threads" if found else "not measured"
        )
    absent = result.absent.get("predictor", "not measured")
    result.judge("predictor-1", min(predictor) if predictor else None, "" if predictor else absent)
