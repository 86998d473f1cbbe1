"""Live progress of a task: a bar for every program where rich can draw on a terminal, else a line as each is done."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

_SECONDS_BETWEEN_REDRAWS = 0.1


class Progress(Protocol):
    """What a running task tells of itself; names are those given to ``begin``."""

    def begin(self, names: Sequence[str], total: int) -> None:
        """Say which programs will run and how many epochs each."""

    def update(self, name: str, epochs: int, status: str) -> None:
        """Say that ``epochs`` more are done."""

    def finish(self, name: str, outcome: str) -> None:
        """Say that a program is done, or failed."""


class LineProgress(AbstractContextManager["LineProgress"]):
    """One line on stdout for each finished program."""

    def begin(self, names: Sequence[str], total: int) -> None:
        self._width = max(map(len, names))

    def update(self, name: str, epochs: int, status: str) -> None:
        pass

    def finish(self, name: str, outcome: str) -> None:
        print(f"  {name:<{self._width}}  {outcome}", flush=True)

    def __exit__(self, *exception: object) -> None:
        pass


class BarProgress(AbstractContextManager["BarProgress"]):
    """One bar for each program, redrawn only from within ``update`` and ``finish``, whose time nobody counts."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            auto_refresh=False,
        )
        self._redrawn = 0.0

    def begin(self, names: Sequence[str], total: int) -> None:
        self._ids = {name: self._bars.add_task(name, total=total, status="") for name in names}
        self._bars.start()

    def update(self, name: str, epochs: int, status: str) -> None:
        self._bars.update(self._ids[name], advance=epochs, status=status)
        now = time.monotonic()
        if epochs == 0 or now - self._redrawn > _SECONDS_BETWEEN_REDRAWS:
            self._bars.refresh()
            self._redrawn = now

    def finish(self, name: str, outcome: str) -> None:
        self._bars.update(self._ids[name], status=outcome)
        self._bars.refresh()

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


def open_progress() -> LineProgress | BarProgress:
    """The progress display that stdout allows, as a context manager."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        return BarProgress()
    return LineProgress()
