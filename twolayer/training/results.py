"""What a training run gives back, and how it ends when it does not end well."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """What a training run saw; the lists have one entry per epoch.

    ``loss`` is the mean over the epoch of each batch's loss before its update, batches weighted by their rows;
    ``last_batch_loss`` that of the last batch. ``val_loss`` and ``val_accuracy`` are there with ``validation``.
    ``seconds`` is the time spent training and validating, ``steps`` the number of updates. ``best_epoch`` (from 0) is
    there with early stopping.
    """

    loss: list[float] = field(default_factory=list)
    last_batch_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    stopped_early: bool = False
    best_epoch: int | None = None


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during :func:`fit`: the net holds the last finished step's weights, ``history`` the epochs before."""

    def __init__(self, history: History) -> None:
        super().__init__(f"training was interrupted after {history.steps} steps")
        self.history = history


class NonFiniteLossError(ArithmeticError):
    """A batch's loss was not finite; the net holds the weights before that batch. Tells ``step`` and ``batch``."""

    def __init__(self, loss: float, step: int, epoch: int, batch: int) -> None:
        super().__init__(
            f"the loss is {loss} at step {step} (epoch {epoch}, batch {batch}); try a smaller lr, clip_norm, or "
            "nonfinite='continue' to train on"
        )
        self.step, self.epoch, self.batch = step, epoch, batch
