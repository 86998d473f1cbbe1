"""One line on standard error that tells how far training is and how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from .results import History


class ProgressLine:
    """``epoch 3/30  41 %  loss 0.8123  21 s left``: rewritten in place on a terminal, else a line for each epoch."""

    def __init__(
        self, epochs: int, steps_per_epoch: int | None, *, enabled: bool, stream: TextIO | None = None
    ) -> None:
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._in_place = enabled and self._stream.isatty()  # sys.stderr may be None
        self._epoch, self._loss = 0, ""
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
        done = (self._epoch + within) / self._epochs
        left = (time.perf_counter() - self._start) * (1 - done) / done if done else 0.0
        text = f"epoch {self._epoch}/{self._epochs}  {done:4.0%}{self._loss}  {left:.0f} s left"
        self._stream.write(f"\r{text:<60}" if self._in_place else f"{text}\n")
        self._stream.flush()


class ManyProgressLine:
    """``nets 3/8  41 %  21 s left``: rewritten in place on a terminal, else a line for each net that is through.

    ``done`` holds how many of its epochs each net has done; workers write to it.
    """

    def __init__(self, epochs: list[int], *, enabled: bool, stream: TextIO | None = None) -> None:
        self.done = [0.0] * len(epochs)
        self._epochs, self._through = list(epochs), 0
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._in_place = enabled and self._stream.isatty()
        self._start = time.perf_counter()

    def __enter__(self) -> ManyProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_place:
            self._stream.write("\n")

    def net_done(self, net: int, history: History) -> None:
        self.done[net] = float(self._epochs[net])  # it may have stopped early
        self._through += 1
        self.show()
        if self._enabled and not self._in_place:
            figures = {"loss": history.loss, "val_loss": history.val_loss}
            last = "".join(f"  {name} {values[-1]:.4g}" for name, values in figures.items() if values)
            self._stream.write(f"net {net}  {len(history.loss)} epochs{last}  ({self._text()})\n")
            self._stream.flush()

    def show(self) -> None:
        """Bring the line on a terminal up to date."""
        if self._in_place:
            self._stream.write(f"\r{self._text():<60}")
            self._stream.flush()

    def _text(self) -> str:
        done = sum(self.done) / max(1, sum(self._epochs))
        left = (time.perf_counter() - self._start) * (1 - done) / done if done else 0.0
        return f"nets {self._through}/{len(self._epochs)}  {done:4.0%}  {left:.0f} s left"
