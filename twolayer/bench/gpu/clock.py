"""Time on a device, in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch

Run = Callable[[], Any]


class Timing(NamedTuple):
    """Microseconds of one call."""

    median: float
    least: float
    most: float


@dataclass
class Clock:
    """Times calls on ``device``: with events on a GPU, with the system's clock on the CPU."""

    device: str
    turns: int = 9
    turn_seconds: float = 4e-3

    def compare(self, runs: Mapping[str, Run]) -> dict[str, Timing]:
        """Time the runs in turns, A B C A B C; each turn is as many calls, one after another, as fill it."""
        counts = {name: self._calibrated(run) for name, run in runs.items()}
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(self.turns):
            for name, run in runs.items():
                self._seconds(run, 1)  # nobody times the first: caches hold what the last one used
                found[name].append(1e6 * self._seconds(run, counts[name]) / counts[name])
        return {name: Timing(statistics.median(us), min(us), max(us)) for name, us in found.items()}

    def one(self, run: Run) -> Timing:
        return self.compare({"": run})[""]

    def _calibrated(self, run: Run) -> int:
        self._seconds(run, 3)
        count = 1
        while (seconds := self._seconds(run, count)) < self.turn_seconds and count < 10_000:
            count = min(10_000, max(2 * count, math.ceil(count * self.turn_seconds / max(seconds, 1e-7))))
        return count

    def _seconds(self, run: Run, count: int) -> float:
        if self.device == "cpu":
            started = perf_counter()
            for _ in range(count):
                run()
            return perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
