"""What a net's outputs stand for: the engine's loss for it, how scikit-learn counts that loss, and the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Task(NamedTuple):
    """``score(z, y, sample_weight)`` is of outputs z (rows, outputs), larger where they are better.

    scikit-learn's loss is ``loss_factor`` times the engine's, and the gradient that it follows ``gradient_factor``
    times the engine's: it sums over outputs where the engine averages, and halves squares.
    """

    loss: str
    outputs: int
    out_activation: str
    loss_factor: float
    gradient_factor: float
    score: Callable[[Array, Array, Array | None], float]


class Targets(NamedTuple):
    """What ``fit`` was given as y, checked."""

    task: Task
    values: Array  # as the task's score takes it
    row_weight: Array | None = None  # (rows,) by class


def multiclass(outputs: int) -> Task:
    """y (rows,) holds classes, one output for each."""
    return Task("cross_entropy", outputs, "softmax", 1.0, 1.0, _score_of_classes)


def multilabel(outputs: int) -> Task:
    """y (rows, outputs) holds 0 and 1; with one output, two classes."""
    return Task("bce_with_logits", outputs, "logistic", outputs, outputs, _score_of_labels)


def regression(loss: str, outputs: int) -> Task:
    """y (rows, outputs) holds values."""
    name, loss_factor, per_output = REGRESSION_LOSSES[loss]
    return Task(name, outputs, "identity", loss_factor, per_output * outputs, r2)


# By the estimator's name: the engine's, and the two factors, the second for each output.
REGRESSION_LOSSES = {
    "squared_error": ("mse", 0.5, 0.5),
    "absolute_error": ("l1", 1.0, 1.0),
    "huber": ("huber", 1.0, 1.0),
}


def _score_of_classes(z: Array, y: Array, weight: Array | None) -> float:
    return _share(z.argmax(axis=1) == y, z, weight)


def _score_of_labels(z: Array, y: Array, weight: Array | None) -> float:
    return _share(((z > 0) == y).all(axis=1), z, weight)


def _share(hits: Array, z: Array, weight: Array | None) -> float:
    return float(np.average(hits, weights=weight)) if np.isfinite(z).all() else float("nan")


def r2(z: Array, y: Array, weight: Array | None) -> float:
    """The coefficient of determination, averaged over outputs; of constant targets 1 if they are met, else 0."""
    if not np.isfinite(z).all():
        return float("nan")
    y = y.astype(np.float64)
    w = np.ones((len(y), 1)) if weight is None else weight[:, None].astype(np.float64)
    residual = (w * (y - z) ** 2).sum(axis=0)
    total = (w * (y - np.average(y, axis=0, weights=weight)) ** 2).sum(axis=0)
    constant = total == 0
    scores = np.where(constant, residual == 0, 1 - residual / np.where(constant, 1, total))
    return float(scores.mean())
