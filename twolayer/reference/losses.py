"""The losses: of z, the net's outputs of shape (rows, out), and its targets y, with the gradient with respect to z.

A loss is written as what one row contributes to it; :class:`Loss` adds that up over the rows, by their weights. The
arithmetic and the reductions are those of torch.nn.functional; all is done in the dtype of z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activations import sigmoid

Array = NDArray[Any]


class RowLosses(NamedTuple):
    """What each row of a batch contributes to a loss, before its sample weight."""

    value: Array  # (rows,)
    gradient: Array  # (rows, out) of the value
    counts_for: Array  # (rows,) what the row adds to the divisor of a mean
    kept: Array  # (rows,) bool; any other row is left out of value, gradient and divisor


class LossSums(NamedTuple):
    """A loss before its division, so that batches can be added up: the loss is total / divisor."""

    total: float
    divisor: float


@dataclass(frozen=True)
class Loss:
    """A loss over a batch, made of ``rows(z, y, **options)``.

    Each method takes z (rows, out); y, as ``targets`` says integer classes (rows,) or distributions (rows, out), or
    values (rows, out) or (out,), the same for all rows; and by keyword the options of ``rows`` and ``sample_weight``
    (rows,), 1 each by default. With sample weights s and row values l the mean is Σ sᵢ lᵢ / Σ sᵢ cᵢ, where cᵢ is the
    row's ``counts_for``, and the sum is Σ sᵢ lᵢ.
    """

    rows: Callable[..., RowLosses]
    targets: Literal["classes_or_distributions", "values"]
    reduction: Literal["mean", "sum"]

    def value(self, z: Array, y: Array, *, sample_weight: Array | None = None, **options: Any) -> float:
        """Return the loss; NaN for a mean in which nothing counts, as torch has it."""
        total, divisor = self.sums(z, y, sample_weight=sample_weight, **options)
        return total / divisor if divisor else float("nan")

    def gradient(self, z: Array, y: Array, *, sample_weight: Array | None = None, **options: Any) -> Array:
        """Return d value / d z, of z's shape and dtype."""
        rows = self.rows(z, y, **options)
        weight = _sample_weight(sample_weight, z)
        with np.errstate(divide="ignore", invalid="ignore"):  # where nothing counts
            share = (weight / self._divisor(rows, weight)).astype(z.dtype)
            return np.where(rows.kept[:, None], share[:, None] * rows.gradient, 0)

    def sums(self, z: Array, y: Array, *, sample_weight: Array | None = None, **options: Any) -> LossSums:
        """Return the weighted sum of the rows' values, and what it is to be divided by (1 for a loss that is a sum)."""
        rows = self.rows(z, y, **options)
        weight = _sample_weight(sample_weight, z)
        total = np.sum(weight * rows.value, where=rows.kept, dtype=np.float64)
        return LossSums(float(total), self._divisor(rows, weight))

    def _divisor(self, rows: RowLosses, weight: Array) -> float:
        if self.reduction == "sum":
            return 1.0
        return float(np.sum(weight * rows.counts_for, where=rows.kept, dtype=np.float64))


def _sample_weight(given: Array | None, z: Array) -> Array:
    return np.ones(len(z), z.dtype) if given is None else given


def cross_entropy(
    z: Array,
    y: Array,
    *,
    class_weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> RowLosses:
    """−Σⱼ tⱼ log softmax(z)ⱼ with the target distribution t, smoothed and then weighted by class.

    class_weight is (out,); a row of a class counts for its class's weight, a row with a distribution for 1.
    label_smoothing is the share of t that is spread evenly over all classes. Rows of class ignore_index are left out.
    """
    rows, out = z.shape
    weight = np.ones(out, z.dtype) if class_weight is None else class_weight
    if np.issubdtype(y.dtype, np.floating):
        given, count, kept = y, np.ones(rows, z.dtype), np.ones(rows, np.bool_)
    else:
        kept = y != ignore_index
        labels = np.where(kept, y, 0)
        given, count = np.eye(out, dtype=z.dtype)[labels], weight[labels]
    target = (given * (1 - label_smoothing) + label_smoothing / out) * weight  # (rows, out)

    shifted = z - z.max(axis=1, keepdims=True)  # so that exp cannot overflow
    exponentials = np.exp(shifted)
    normaliser = exponentials.sum(axis=1, keepdims=True)
    log_softmax = shifted - np.log(normaliser)
    value = -np.sum(target * np.where(target == 0, 0, log_softmax), axis=1)  # an output of −∞ elsewhere is no loss
    gradient = target.sum(axis=1, keepdims=True) * (exponentials / normaliser) - target
    return RowLosses(value, gradient, count, kept)


def _sum_over_outputs(value: Array, gradient: Array) -> RowLosses:
    """The row losses of a loss that is a sum or a mean over all numbers; both arguments are (rows, out)."""
    rows, out = value.shape
    count = np.full(rows, out, dtype=value.dtype)
    return RowLosses(value.sum(axis=1), gradient, count, np.ones(rows, np.bool_))


def squared_error(z: Array, y: Array) -> RowLosses:
    """(z - y)²."""
    error = z - y
    return _sum_over_outputs(error**2, 2 * error)


def absolute_error(z: Array, y: Array) -> RowLosses:
    """|z - y|, with gradient 0 where it is 0."""
    error = z - y
    return _sum_over_outputs(np.abs(error), np.sign(error))


def smooth_l1(z: Array, y: Array, *, beta: float = 1.0) -> RowLosses:
    """With d = |z - y|: d² / (2 beta) where d < beta, else d - beta / 2; the absolute error at beta 0."""
    if beta == 0:
        return absolute_error(z, y)
    error = z - y
    distance = np.abs(error)
    near = distance < beta
    value = np.where(near, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    return _sum_over_outputs(value, np.where(near, error / beta, np.sign(error)))


def huber(z: Array, y: Array, *, beta: float = 1.0) -> RowLosses:
    """With d = |z - y|: d² / 2 where d < beta, else beta (d - beta / 2). torch.nn.HuberLoss calls beta ``delta``."""
    error = z - y
    distance = np.abs(error)
    value = np.where(distance < beta, 0.5 * distance**2, beta * (distance - 0.5 * beta))
    return _sum_over_outputs(value, np.clip(error, -beta, beta))


def bce_with_logits(z: Array, y: Array) -> RowLosses:
    """−y log sigmoid(z) − (1 − y) log sigmoid(−z), as max(z, 0) − y z + log(1 + exp(−|z|))."""
    value = np.maximum(z, 0) - y * z + np.log1p(np.exp(-np.abs(z)))
    return _sum_over_outputs(value, sigmoid(z) - y)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, "classes_or_distributions", "mean"),
    "mse": Loss(squared_error, "values", "mean"),
    "mse_sum": Loss(squared_error, "values", "sum"),
    "l1": Loss(absolute_error, "values", "mean"),
    "smooth_l1": Loss(smooth_l1, "values", "mean"),
    "huber": Loss(huber, "values", "mean"),
    "bce_with_logits": Loss(bce_with_logits, "values", "mean"),
}
