"""One line on standard error that tells how far the training of several nets is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from .results import History


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
