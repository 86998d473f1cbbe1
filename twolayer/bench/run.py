"""A run: the machine's limits, then one case after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from .. import _native
from . import document, limits
from .cases import CASES
from .contest import Contest, Effort
from .document import CaseResult
from .workers import Workers

EFFORT = Effort(turns=9, turn_seconds=0.2, budget=20.0)
QUICK = Effort(turns=3, turn_seconds=0.1, budget=1.0)


def run(
    names: Sequence[str],
    *,
    quick: bool,
    measured: Callable[[dict[str, Any]], None],
    begin: Callable[[str, str], None],
    done: Callable[[CaseResult], None],
) -> dict[str, Any]:
    """Run the cases called ``names`` and return the document.

    ``measured`` is told of the limits, ``begin`` of each case's name and title, ``done`` of its result. What goes wrong
    in one implementation becomes an error row.
    """
    thread_counts = [1, 2] if _native.num_threads() > 1 else [1]
    machine_limits = limits.measure(thread_counts, seconds=0.03 if quick else 0.1)
    measured(machine_limits)
    results = []
    with Workers() as workers:
        contest = Contest(workers, machine_limits, QUICK if quick else EFFORT, thread_counts)
        for name in names:
            begin(name, CASES[name].title)
            started = perf_counter()
            result = CaseResult(name, CASES[name].title)
            CASES[name].run(contest, result, quick)
            result.seconds = perf_counter() - started
            results.append(result)
            done(result)
    return document.document(machine_limits, results, quick)
