"""Starts the worker processes and asks them."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from types import TracebackType
from typing import Any

from ..programs.problem import Array, Problem
from .implementations import IMPLEMENTATIONS, Implementation, Program


class WorkerFailed(Exception):
    """What an implementation raised, in one line."""


class WorkerProcess:
    """One implementation at one number of threads, in a process of its own."""

    def __init__(self, implementation: Implementation, threads: int) -> None:
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TWOLAYER_NUM_THREADS")
        self._data: Array | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "twolayer.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                **dict.fromkeys(limits, str(threads)),
                "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            },
        )
        if implementation.takes_all_cores and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))[:threads]
            os.sched_setaffinity(self._process.pid, cores)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have the worker do it and return what it gives; raises ``WorkerFailed``."""
        self.tell(method, *arguments)
        return self.answer()

    def tell(self, method: str, *arguments: Any) -> None:
        """Have the worker do it; it may be told more than one thing before its answers are read."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its answer will tell
            pickle.dump((method, arguments), self._process.stdin, protocol=5)
            self._process.stdin.flush()

    def answer(self) -> Any:
        """What the worker gives for the first thing it was told that is not answered; raises ``WorkerFailed``."""
        assert self._process.stdout
        try:
            value, error = pickle.load(self._process.stdout)
        except EOFError:
            raise WorkerFailed(f"its process ended with status {self._process.wait()}") from None
        if error:
            raise WorkerFailed(error)
        return value

    def tell_to_prepare(self, program: Program, problem: Problem, x: Array, y: Array, rows: int) -> None:
        """Have the worker make the program ready on ``rows`` of the data, which are sent unless it has them."""
        data = None if self._data is x else (x, y)
        self._data = x
        self.tell("prepare", program, problem, data, rows)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Workers:
    """Worker processes, started when they are first asked for and kept: a library's import takes seconds."""

    def __init__(self) -> None:
        self._processes: dict[tuple[str, int], WorkerProcess] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def get(self, implementation: str, threads: int) -> WorkerProcess:
        """The process of the implementation of that name."""
        key = implementation, threads
        if key not in self._processes:
            self._processes[key] = WorkerProcess(IMPLEMENTATIONS[implementation], threads)
        return self._processes[key]

    def discard(self, implementation: str, threads: int) -> None:
        """End a process that has failed; the next to ask starts another."""
        self._processes.pop((implementation, threads)).close()
