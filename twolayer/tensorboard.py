"""Watching a training in TensorBoard: a callback for ``fit`` that logs each epoch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .extras import require

if TYPE_CHECKING:
    from .training.results import History

_TAGS = {"loss": "loss/training", "val_loss": "loss/validation", "val_accuracy": "accuracy/validation"}


class TensorBoardLogger:
    """Logs losses and accuracy after each epoch: ``fit(..., callback=TensorBoardLogger("runs/first"))``.

    ``to`` is a folder, which ``tensorboard --logdir`` then shows (this needs the package ``tensorboard``, but neither
    TensorFlow nor torch), or a writer with ``add_scalar(tag, value, step)``, such as a ``SummaryWriter`` of torch's or
    tensorboardX's. Epochs count from 1. It may be used in a ``with`` statement, or closed by ``close``; a writer that
    was given is flushed and left open.

    Raises ``ImportError``, naming the extra, when the package is not installed; ``TypeError`` when ``to`` is neither.
    """

    def __init__(self, to: Any) -> None:
        self._owned = isinstance(to, (str, os.PathLike))
        if self._owned:
            self._writer = require("tensorboard.summary", "TensorBoardLogger", "tensorboard").Writer(os.fspath(to))
        elif hasattr(to, "add_scalar"):
            self._writer = to
        else:
            raise TypeError(f"to must be a folder or a writer with add_scalar; got {type(to).__name__}")

    def __call__(self, epoch: int, history: History) -> None:
        for name, tag in _TAGS.items():
            values = getattr(history, name)
            if values:
                self._writer.add_scalar(tag, values[-1], epoch + 1)
        self._writer.add_scalar("seconds", history.seconds, epoch + 1)
        self._writer.flush()

    def close(self) -> None:
        """Close the files; what was logged is on disk before, after each epoch."""
        if self._owned:
            self._writer.close()

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
