"""A training run that can be stopped at any moment and gone on with, to the bits of one that was not stopped."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..model_file import Model
from ..trainer import Trainer
from ..training.loop import TrainingData, make_watch
from ..training.progress import ProgressLine
from ..training.results import History
from ..training.stopping import EarlyStopping
from .checkpoints import Checkpoint

Array = NDArray[Any]


class TrainingRun:
    """Trains ``model``'s net in place on x and y, as ``fit`` does with these ``options``, and keeps its history.

    ``validation`` and ``rule`` are ``fit``'s ``validation`` and ``early_stopping``. Wrong arguments raise ``TypeError``
    or ``ValueError``.
    """

    def __init__(
        self,
        model: Model,
        x: Any,
        y: Array,
        options: Mapping[str, Any],
        *,
        validation: Any = None,
        rule: EarlyStopping | None = None,
    ) -> None:
        self.model = model
        self._trainer = Trainer(model.net, **options)
        self._session = self._trainer._session
        self._data = TrainingData(self._session, x, y, None, validation)
        self._watch = make_watch(rule, self._data)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take up where ``checkpoint`` was made. ``ValueError`` where it is of another net or optimiser."""
        own, other = self.model.net.parameters(), checkpoint.model.net.parameters()
        form, found = ({name: array.shape for name, array in arrays.items()} for arrays in (own, other))
        if form != found:
            raise ValueError(f"the checkpoint must have weights of shapes {form}; it has {found}")
        for name, array in own.items():
            array[...] = other[name]
        self._trainer.load_state_dict(checkpoint.state)
        self.model.history = copy.deepcopy(checkpoint.model.history)
        if self._watch:
            for epochs in range(1, self.epochs + 1):  # what it saw then, it sees again
                self._watch.is_better(_beginning(self.model.history, epochs))
            best = checkpoint.best
            self._watch.best = None if best is None else [best.get(name) for name in ("w1", "b1", "w2", "b2")]

    @property
    def epochs(self) -> int:
        """The number of epochs done."""
        return len(self.model.history.loss)

    def run(self, epochs: int, on_epoch: Callable[[], None], *, progress: bool) -> None:
        """Train until there are ``epochs``, or early stopping ends it; ``on_epoch`` is called after each.

        ``progress``: show a line with the time left on standard error. Ctrl-C raises ``KeyboardInterrupt``, and a loss
        that is not finite ``NonFiniteLossError``; ``checkpoint`` is then not to be called.
        """
        history, session, data = self.model.history, self._session, self._data
        line = ProgressLine(epochs, data.steps_per_epoch, enabled=progress, first=self.epochs)
        with line, session.stored():
            while self.epochs < epochs and not history.stopped_early:
                start = time.perf_counter()
                data.train_epoch(history, line.on_progress if progress else None)
                data.validate(history)
                session.store()
                history.steps, history.path = session.steps, session.path
                history.seconds += time.perf_counter() - start
                line.epoch_done(self.epochs - 1, history)
                if self._watch:
                    if self._watch.is_better(history):
                        history.best_epoch, self._watch.best = self.epochs - 1, self._weights()
                    history.stopped_early = self._watch.is_over
                on_epoch()

    def checkpoint(self) -> Checkpoint:
        """Return all that ``resume`` needs."""
        best = self._watch.best if self._watch else None
        named = None if best is None else dict(zip(("w1", "b1", "w2", "b2"), best, strict=True))
        kept = None if named is None else {name: array for name, array in named.items() if array is not None}
        return Checkpoint(self.model, self._trainer.state_dict(), kept)

    def take_best(self) -> None:
        """Give the net the weights of its best epoch, where early stopping asks for that."""
        if self._watch and self._watch.rule.restore_best and self._watch.best is not None:
            for array, best in zip(self._session.parameters.arrays(), self._watch.best, strict=True):
                if array is not None:
                    array[...] = best

    def _weights(self) -> list[Array | None]:
        return [None if array is None else array.copy() for array in self._session.parameters.arrays()]


def _beginning(history: History, epochs: int) -> History:
    return History(
        loss=history.loss[:epochs], val_loss=history.val_loss[:epochs], val_accuracy=history.val_accuracy[:epochs]
    )
