"""What a training run gives back, and how it ends when it does not end well."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """What a training run saw; the lists have one entry per epoch.

    ``loss`` is the mean over the epoch of each batch's loss before its update, batches weighted by their rows;
    ``last_batch_loss`` that of the last batch. ``val_loss`` and ``val_accuracy`` are there with ``validation``.
    ``seconds`` is the time spent training and validating, ``steps`` the number of updates. ``best_epoch`` (from 0) is
    there with early stopping. ``path`` is what trained: "cpu" (the native engine), "numpy" (the reference, where that
    is not loaded), on a GPU "cuda cluster" (whole epochs in one launch that holds the net in shared memory) or "cuda
    graph" (several launches a step, captured in a graph, where that cannot be); "" before the first step.
    """

    loss: list[float] = field(default_factory=list)
    last_batch_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    stopped_early: bool = False
    best_epoch: int | None = None
    path: str = ""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during :func:`fit` or :func:`fit_many`: nets hold the last finished step's weights.

    ``histories`` has the epochs before, of each net, and ``history`` those of the first, which is ``fit``'s only one.
    """

    def __init__(self, *histories: History) -> None:
        super().__init__(f"training was interrupted after {sum(history.steps for history in histories)} steps")
        self.histories = list(histories)
        self.history = histories[0]


class NonFiniteLossError(ArithmeticError):
    """A batch's loss was not finite; the net holds the weights before that batch. Tells ``step`` and ``batch``.

    From :func:`fit_many` also which ``net`` it was, the first of them, and the ``histories`` of all.
    """

    def __init__(self, loss: float, step: int, epoch: int, batch: int, net: int | None = None) -> None:
        where = f"step {step} (epoch {epoch}, batch {batch})" + ("" if net is None else f" of nets[{net}]")
        super().__init__(
            f"the loss is {loss} at {where}; try a smaller lr, clip_norm, or nonfinite='continue' to train on"
        )
        self.loss, self.step, self.epoch, self.batch = loss, step, epoch, batch
        self.net = net
        self.histories: list[History] = []

    def among(self, net: int, histories: list[History]) -> NonFiniteLossError:
        """Return the same error as that of one of several nets."""
        error = NonFiniteLossError(self.loss, self.step, self.epoch, self.batch, net)
        error.histories = histories
        return error
