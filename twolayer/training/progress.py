"""One line on standard error that tells how far training is and how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from .results import History


class ProgressLine:
    """``epoch 3/30  41 %  loss 0.8123  21 s left``: rewritten in place on a terminal, else a line for each epoch.

    ``first``: the epochs that were done before, whose time is not known here.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int | None,
        *,
        enabled: bool,
        stream: TextIO | None = None,
        first: int = 0,
    ) -> None:
        self._epochs, self._steps_per_epoch, self._first = epochs, steps_per_epoch, first
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._in_place = enabled and self._stream.isatty()  # sys.stderr may be None
        self._epoch, self._loss = first, ""
        self._start = time.perf_counter()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled and self._in_place:
            self._stream.write("\n")

    def on_progress(self, steps_done: int) -> None:
        """Show that so many steps of the present epoch are done."""
        if self._in_place:
            self._show(steps_done)

    def epoch_done(self, epoch: int, history: History) -> None:
        if not self._enabled:
            return
        self._epoch, self._loss = epoch + 1, f"  loss {history.loss[-1]:.4g}"
        if history.val_loss:
            self._loss += f"  val_loss {history.val_loss[-1]:.4g}"
        self._show(0)

    def _show(self, steps_done: int) -> None:
        within = steps_done / self._steps_per_epoch if self._steps_per_epoch else 0.0
        done = self._epoch + within
        here = done - self._first
        left = (time.perf_counter() - self._start) * (self._epochs - done) / here if here else 0.0
        text = f"epoch {self._epoch}/{self._epochs}  {done / self._epochs:4.0%}{self._loss}  {_duration(left)} left"
        self._stream.write(f"\r{text:<60}" if self._in_place else f"{text}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
