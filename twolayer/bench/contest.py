"""One cell of a case: the implementations are verified on it, and those that are right are timed in turns."""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections.abc import Iterable
from time import sleep
from typing import Any

from ..programs.problem import Problem
from .document import CaseResult, Row
from .implementations import IMPLEMENTATIONS
from .limits import seconds_at_limit
from .timing import Timing, take_turns
from .verify import WrongResult, check, rounding, truth
from .workers import WorkerFailed, WorkerProcess, Workers
from .workloads import Workload

Contender = tuple[str, int]  # an implementation's name, and its threads

SETTLE = 0.15  # seconds in which this process's BLAS threads, which wait busily after a product, go to sleep


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure."""

    turns: int
    turn_seconds: float  # of one turn of one implementation, at least
    budget: float  # seconds of all turns of a cell, at most but for three turns


class Contest:
    """Runs cells and adds their rows to a case's result."""

    def __init__(self, workers: Workers, limits: dict[str, Any], effort: Effort, thread_counts: list[int]) -> None:
        self.workers, self.limits, self.effort = workers, limits, effort
        self.thread_counts = thread_counts  # 1 and, where there are cores for it, 2
        self.seed = secrets.randbelow(2**31)  # of data and weights: fresh in every run

    def contenders(self, result: CaseResult, *names: str, threads: Iterable[int] = ()) -> list[Contender]:
        """Those that are installed, at each of ``threads`` (default: all counts); the others are noted as absent."""
        found = []
        for name in names:
            if reason := IMPLEMENTATIONS[name].absence():
                result.absent[name] = reason
            else:
                found += [(name, count) for count in threads or self.thread_counts]
        return found

    def run(
        self,
        result: CaseResult,
        workload: Workload,
        contenders: list[Contender],
        *,
        cell: dict[str, Any] | None = None,
        repeats: int | None = None,
        density: float = 1.0,
    ) -> list[Row]:
        """Verify and time the contenders, and return their rows, which are now the result's too.

        ``repeats`` fixes how many epochs or calls a turn is; ``density`` is the share of inputs that is not zero.
        """
        problem = workload.problem(self.seed)
        rows = {contender: Row(dict(cell or {}), *contender) for contender in contenders}
        ready = self._verified(workload, problem, rows)
        sleep(SETTLE)
        for contender, process in list(ready.items()):
            try:
                process.ask("calibrate", self.effort.turn_seconds, repeats)
            except WorkerFailed as error:
                self._drop(contender, rows[contender], f"failed: {error}")
                del ready[contender]
        times = take_turns(
            {contender: functools.partial(process.ask, "time") for contender, process in ready.items()},
            self.effort.turns,
            self.effort.budget,
        )
        for contender, seconds in times.items():
            row, timing = rows[contender], Timing.of(seconds)
            row.us, row.us_least, row.us_most = (1e6 * value for value in timing)
            row.turns = len(seconds)
            precision = IMPLEMENTATIONS[row.implementation].precision or workload.dtype
            limit = seconds_at_limit(self.limits, workload, precision, row.threads, density)
            row.limit_us = limit and 1e6 * limit
        result.rows += rows.values()
        return list(rows.values())

    def _verified(
        self, workload: Workload, problem: Problem, rows: dict[Contender, Row]
    ) -> dict[Contender, WorkerProcess]:
        """The processes of those whose results are right, ready to be timed."""
        start = problem.starts[""]
        x, y = problem.x, problem.y
        used = dataclasses.replace(problem, x=x[: workload.rows], y=y[: workload.rows])
        processes = {contender: self.workers.get(*contender) for contender in rows}
        for (name, threads), process in processes.items():
            sent = dataclasses.replace(problem, x=x[:0], y=y[:0], threads=threads)
            program = IMPLEMENTATIONS[name].programs[workload.task]
            process.tell_to_prepare(program, sent, x, y, workload.rows)
        exact, slack = truth(used, start), rounding(problem, start)
        ready: dict[Contender, WorkerProcess] = {}
        for contender, process in processes.items():
            try:
                results = process.answer()
                check(results, exact, IMPLEMENTATIONS[contender[0]].precision or workload.dtype, slack)
                ready[contender] = process
            except (WorkerFailed, WrongResult) as error:
                kind = "wrong" if isinstance(error, WrongResult) else "failed"
                self._drop(contender, rows[contender], f"{kind}: {error}")
        return ready

    def _drop(self, contender: Contender, row: Row, error: str) -> None:
        """Say what went wrong, and let the process go, which may not be in order."""
        row.error = error
        self.workers.discard(*contender)


def compare_to(rows: list[Row], *peers: str) -> Row | None:
    """Set every row's ``speedup`` over the fastest of the ``peers`` at any number of threads, and return that one."""
    timed = [row for row in rows if row.implementation in peers and row.us]
    if not timed:
        return None
    best = min(timed, key=lambda row: row.us or 0.0)
    for row in rows:
        if row.us and best.us:
            row.peer, row.speedup = f"{best.implementation}, {best.threads} threads", best.us / row.us
    return best
