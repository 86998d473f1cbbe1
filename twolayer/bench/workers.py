"""Starts the worker processes and asks them."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from types import TracebackType
from typing import Any

from ..programs.problem import Array
from .implementations import IMPLEMENTATIONS, Implementation


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
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump((method, arguments), self._process.stdin, protocol=5)
            self._process.stdin.flush()
            value, error = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise WorkerFailed(f"its process ended with status {self._process.wait()}") from None
        if error:
            raise WorkerFailed(error)
        return value

    def give(self, x: Array, y: Array) -> None:
        """Send the data, unless the worker has them."""
        if self._data is not x:
            self.ask("data", x, y)
            self._data = x

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
