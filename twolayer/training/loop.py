"""What one call of ``fit`` goes through: its rows or batches, the rows held out, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import number
from .data import Rows
from .results import History
from .session import Session, permutation
from .stopping import EarlyStopping, StoppingWatch

Array = NDArray[Any]

_SPLIT_EPOCH = 2**64 - 1  # the permutation that no epoch of training uses: it picks the rows held out for validation


class TrainingData:
    """What one call of ``fit`` trains and validates on: checked rows, or an iterable of batches."""

    def __init__(self, session: Session, x: Any, y: Any, sample_weight: Any, validation: Any) -> None:
        self._session = session
        self._batches: Iterable[Any] | None = None
        self._chosen: Array | None = None
        self.validation: tuple[Rows, Array | None] | None = None
        if y is None:
            self._take_batches(x, sample_weight, validation)
        else:
            self._rows = session.prepare(x, y, sample_weight)
            self._hold_out(validation)
            count = self._rows.count if self._chosen is None else len(self._chosen)
            self.steps_per_epoch: int | None = len(session.batch_sizes(count))
        if validation is not None and self.validation is None:
            self.validation = (_prepare_validation(session, validation), None)

    def train_epoch(self, history: History, on_progress: Callable[[int], None] | None, more: bool = False) -> None:
        """``more``: whether, if nothing ends the run before, another epoch comes after this one."""
        if self._batches is None:
            mean, last = self._session.run_epoch(self._rows, self._chosen, on_progress, more)
        else:
            mean, last = self._train_on_batches()
        history.loss.append(mean)
        history.last_batch_loss.append(last)

    def validate(self, history: History, on_progress: Callable[[int], None] | None = None) -> None:
        if self.validation is None:
            return
        result = self._session.evaluate(*self.validation, on_progress)
        history.val_loss.append(result["loss"])
        if "accuracy" in result:
            history.val_accuracy.append(result["accuracy"])

    def _hold_out(self, validation: Any) -> None:
        """Take a fraction of the rows for validation."""
        if isinstance(validation, bool) or not isinstance(validation, Real):
            return
        fraction = number("validation", validation, 0.0, 1.0)
        self._chosen, held_out = split(self._rows.count, fraction, self._session.options.seed)
        self.validation = (self._rows, held_out)

    def _take_batches(self, batches: Any, sample_weight: Any, validation: Any) -> None:
        if isinstance(batches, Iterator) or not isinstance(batches, Iterable) or hasattr(batches, "shape"):
            raise TypeError(
                "without y, x must be an iterable of batches (x, y) that can be gone through once per epoch, such as a "
                f"DataLoader; got {type(batches).__name__}"
            )
        if sample_weight is not None:
            raise ValueError("sample_weight goes with x and y; with an iterable of batches, let it give (x, y, weight)")
        if isinstance(validation, Real):
            raise ValueError(f"validation must be (x, y) with an iterable of batches; got {validation}")
        self._batches = batches
        self.steps_per_epoch = len(batches) if isinstance(batches, Sized) else None

    def _train_on_batches(self) -> tuple[float, float]:
        assert self._batches is not None
        session = self._session
        losses, counts = [], []
        for step, batch in enumerate(self._batches):
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
                given = type(batch).__name__ + size
                raise TypeError(f"x must give batches (x, y) or (x, y, sample_weight); got a {given}")
            rows = session.prepare(*batch)
            losses.append(session.run_batch(rows, session.epochs, step, self.steps_per_epoch or 0))
            counts.append(rows.count)
        if not losses:
            raise ValueError("x must give at least one batch; it gave none")
        session.epochs += 1
        self.steps_per_epoch = len(losses)  # known now also where the iterable has no length
        return float(np.dot(losses, counts) / sum(counts)), float(losses[-1])


def split(count: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Return which of ``count`` rows are trained on and which held out: ascending indices, drawn from the seed."""
    held_out = round(fraction * count)
    if not 0 < held_out < count:
        raise ValueError(f"validation must leave rows on both sides; {fraction} of {count} rows does not")
    mixed = permutation(count, seed, _SPLIT_EPOCH)
    return np.sort(mixed[: count - held_out]), np.sort(mixed[count - held_out :])


def _prepare_validation(session: Session, validation: Any) -> Rows:
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
        raise TypeError(f"validation must be (x, y) or a fraction of the rows; got {type(validation).__name__}")
    try:
        return session.prepare(*validation)
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation: {error}") from error


def make_watch(early_stopping: EarlyStopping | None, data: TrainingData) -> StoppingWatch | None:
    if early_stopping is None:
        return None
    if not isinstance(early_stopping, EarlyStopping):
        raise TypeError(f"early_stopping must be an EarlyStopping; got {type(early_stopping).__name__}")
    if early_stopping.monitor != "loss" and data.validation is None:
        raise ValueError(
            f"early_stopping monitors {early_stopping.monitor}, which needs validation; got validation=None"
        )
    if early_stopping.monitor == "val_accuracy" and data.validation is not None and not data.validation[0].have_classes:
        raise ValueError("early_stopping monitors val_accuracy, which needs classes; y holds values")
    return StoppingWatch(early_stopping)
