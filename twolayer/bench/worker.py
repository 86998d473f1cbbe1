"""The process in which one implementation runs: ``python -m twolayer.bench.worker``, told what to do by ``workers``.

A process of its own has the library's threads to itself, and sleeps while another's turn is timed. Requests come
pickled on standard input, answers go pickled to what was standard output; whatever a library prints goes to the
standard error.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import sys
from time import perf_counter
from typing import Any

from ..programs.problem import Array, Calls, Problem
from .implementations import Program
from .verify import results_of_training


class Worker:
    """Holds the data that it was last given, and the program that it was last told to prepare."""

    def __init__(self) -> None:
        self._data: tuple[Array, Array] | None = None
        self._repeats = 1

    def prepare(
        self, program: Program, problem: Problem, data: tuple[Array, Array] | None, rows: int
    ) -> dict[str, Array]:
        """Make the program ready on the first ``rows`` of the data, the last that were given where these are None.

        Returns what it computes, to be verified.
        """
        self._data = data or self._data
        assert self._data is not None
        x, y = self._data
        start = problem.starts[""]
        self._problem = dataclasses.replace(problem, x=x[:rows], y=y[:rows])
        self._start, self._program = start, program.load()
        short = self._problem.warm_up() if problem.task == "fit" else self._problem
        prepared = self._program(short, start)
        if isinstance(prepared, Calls):
            self._calls: Calls | None = prepared
            return prepared.results()
        self._calls = None
        return results_of_training(prepared(None), start)

    def calibrate(self, seconds: float, repeats: int | None) -> None:
        """Warm up, and choose how often to run so that one turn takes ``seconds`` or is of ``repeats``."""
        self._repeats = repeats or 1
        took = self._turn_seconds()
        if repeats or took > 3 * seconds:
            return
        while (took := self._turn_seconds()) < seconds:
            growth = math.ceil(1.1 * seconds / max(took, 1e-9))
            self._repeats *= min(growth, 100)

    def _turn_seconds(self) -> float:
        return self.time() * self._repeats * self._steps()

    def _steps(self) -> int:
        """Steps of one repeat: an epoch, or a call."""
        return 1 if self._calls else self._problem.batches

    def time(self) -> float:
        """Run, after a few steps that nobody times, and return the seconds of one step."""
        if self._calls:
            if self._repeats > 1:  # else it is long, and needs none
                self._calls.run(1)
            started = perf_counter()
            self._calls.run(self._repeats)
        else:
            self._program(dataclasses.replace(self._problem.warm_up(), epochs=1), self._start)(None)
            train = self._program(dataclasses.replace(self._problem, epochs=self._repeats), self._start)
            started = perf_counter()
            train(None)
        return (perf_counter() - started) / (self._repeats * self._steps())


def main() -> None:
    """Answer requests (method, arguments) with (value, None) or (None, what went wrong) until the input ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker: Any = Worker()
    while True:
        try:
            method, arguments = pickle.load(requests)
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            answer = getattr(worker, method)(*arguments), None
        except Exception as error:  # an implementation may fail in any way; its row says how
            lines = str(error).strip().splitlines()
            answer = None, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
