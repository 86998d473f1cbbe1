"""How good predictions are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def confusion_counts(truth: Array, predicted: Array, classes: int) -> Array:
    """Return (classes, classes) int64: how often rows of class i (down) were taken for class j (across).

    ``truth`` and ``predicted`` (rows,) number the classes from 0.
    """
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_metrics(counts: Array) -> dict[str, Any]:
    """Return ``accuracy``, and by class ``precision`` and ``recall``, from ``confusion_counts``.

    The precision of a class that was never predicted, and the recall of one without rows, is None.
    """
    right = np.diagonal(counts)
    return {
        "accuracy": float(right.sum() / counts.sum()),
        "precision": _shares(right, counts.sum(axis=0)),
        "recall": _shares(right, counts.sum(axis=1)),
    }


def _shares(part: Array, whole: Array) -> list[float | None]:
    return [float(p / w) if w else None for p, w in zip(part, whole, strict=True)]


def value_metrics(truth: Array, predicted: Array) -> dict[str, float | None]:
    """Return ``rmse``, ``mae`` and ``r2``, over all of (rows, out); ``r2`` is the mean over outputs.

    ``r2`` is 1 − Σ(y − p)² / Σ(y − ȳ)², and None where some output's targets are all the same.
    """
    error = predicted - truth
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    r2 = None if (spread == 0).any() else float((1 - (error**2).sum(axis=0) / spread).mean())
    return {"rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean()), "r2": r2}
