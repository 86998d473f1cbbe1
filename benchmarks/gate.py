"""Fails when a pinned case is slower than its peer: ``python benchmarks/gate.py``, half a minute, exit code 1 if so.

A case that loses is measured again, up to five times: a busy machine must not fail what an idle one passes.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from twolayer import _native
from twolayer.bench.contest import Contest, Effort
from twolayer.bench.document import CaseResult
from twolayer.bench.workers import Workers
from twolayer.bench.workloads import Workload

ATTEMPTS = 5
EFFORT = Effort(turns=7, turn_seconds=0.02, budget=4.0)


class Pinned(NamedTuple):
    """A case: the fastest row of ours must not be slower than that of the peer."""

    name: str
    workload: Workload
    ours: str
    peer: str


PINNED = (
    Pinned(
        "sparse digits", Workload("fit", (784, 100, 10), 64, 60, data="digits", lr=1e-4), "twolayer.fit", "torch eager"
    ),
    Pinned("dense inputs", Workload("fit", (784, 100, 10), 64, 60), "twolayer.fit", "torch eager"),
    Pinned("tiny net", Workload("fit", (8, 64, 2), 10, 60), "twolayer.fit", "torch eager"),
    Pinned("module, 64 rows", Workload("backward", (784, 100, 10), 64), "TwoLayerNet", "nn.Sequential"),
    Pinned("module, tiny net", Workload("backward", (8, 64, 2), 1), "TwoLayerNet", "nn.Sequential"),
    Pinned("predictor, one row", Workload("infer", (784, 100, 10), 1), "predictor", "nn.Sequential"),
)


def measured(contest: Contest, pinned: Pinned) -> tuple[float | None, str]:
    """How often ours is faster than the peer, and in words what happened; None: there is nothing to compare."""
    result = CaseResult(pinned.name, pinned.name)
    contenders = contest.contenders(result, pinned.ours, pinned.peer)
    if result.absent:
        return None, "; ".join(f"{name}: {reason}" for name, reason in result.absent.items())
    rows = contest.run(result, pinned.workload, contenders)
    if errors := [f"{row.implementation}: {row.error}" for row in rows if row.error]:
        return 0.0, "; ".join(errors)
    ours, peer = result.best(pinned.ours), result.best(pinned.peer)
    assert ours and peer and ours.us and peer.us
    words = f"{ours.us:,.1f} µs on {ours.threads} threads, {pinned.peer} {peer.us:,.1f} on {peer.threads}"
    return peer.us / ours.us, words


def main() -> int:
    """Measure every pinned case; return 1 if one is slower than its peer, or wrong, in all attempts."""
    counts = [1, 2] if _native.num_threads() > 1 else [1]
    failed = False
    with Workers() as workers:
        contest = Contest(workers, {"isa": None, "gflops": {}, "reads": []}, EFFORT, counts)
        for pinned in PINNED:
            for _ in range(ATTEMPTS):
                ratio, words = measured(contest, pinned)
                if ratio is None or ratio >= 1:
                    break
            outcome = "skipped" if ratio is None else "passed" if ratio >= 1 else "FAILED"
            print(f"{outcome}  {pinned.name}: {'' if ratio is None else f'{ratio:.2f} ×; '}{words}", flush=True)
            failed |= outcome == "FAILED"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
