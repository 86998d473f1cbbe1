"""One net's training from the first epoch to the last: what ``fit`` runs once and ``fit_many`` several times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .checks import integer
from .data import prepare_rows
from .loop import TrainingData, make_watch
from .options import check_options
from .place import Array
from .results import History
from .session import Session

Callback = Callable[[int, History], object]


class FitRun:
    """Everything that a call of ``fit`` was given, checked; :meth:`train` is the call's work, ``history`` its result.

    ``prepare`` stands in for :func:`prepare_rows` where several runs share what it makes.
    """

    def __init__(
        self,
        net: Any,
        x: Any,
        y: Any,
        *,
        epochs: int,
        validation: Any,
        early_stopping: Any,
        callback: Callback | None,
        sample_weight: Any,
        class_weight: Any = None,
        prepare: Callable[..., Any] = prepare_rows,
        **options: Any,
    ) -> None:
        self.epochs = integer("epochs", epochs, minimum=0)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable; got {type(callback).__name__}")
        self.session = Session(net, check_options(**options), class_weight, prepare)
        self.data = TrainingData(self.session, x, y, sample_weight, validation)
        self.history = History()
        self._callback = callback
        self._watch = make_watch(early_stopping, self.data)

    def train(
        self,
        on_epoch: Callback,
        on_progress: Callable[[int], None] | None = None,
        on_validation: Callable[[int], None] | None = None,
    ) -> None:
        """Train the net in place. However this ends, net and ``history.steps`` stand at the last finished step.

        ``on_epoch(epoch, history)`` is called after each epoch, the other two every 20 ms or so within one, with the
        number of steps done; what they raise ends the run.
        """
        session, watch, history = self.session, self._watch, self.history
        try:
            with session.stored():
                for epoch in range(self.epochs):
                    start = time.perf_counter()
                    self.data.train_epoch(history, on_progress, epoch + 1 < self.epochs)
                    self.data.validate(history, on_validation)
                    history.steps, history.path = session.steps, session.path
                    if self._callback is not None or (watch and watch.rule.restore_best):
                        session.store()
                    history.seconds += time.perf_counter() - start
                    on_epoch(epoch, history)
                    if watch and watch.is_better(history):
                        history.best_epoch, watch.best = epoch, self._copies()
                    asked_to_stop = self._callback is not None and self._callback(epoch, history) is True
                    if asked_to_stop or (watch and watch.is_over):
                        history.stopped_early = True
                        break
        finally:
            history.steps, history.path = session.steps, session.path
        if watch and watch.rule.restore_best and watch.best is not None:
            for array, best in zip(session.parameters.trained(), watch.best, strict=True):
                if array is not None:
                    array[...] = best
            session.parameters.mark_written()

    def _copies(self) -> list[Array | None]:
        parameters = self.session.parameters
        return [None if array is None else parameters.place.copy(array) for array in parameters.trained()]
