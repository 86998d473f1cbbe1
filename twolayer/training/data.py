"""Training data, checked once and brought into the form the engines read: rows of inputs, their targets and weights.

Inputs are handed on as they are wherever an engine can read them (float32, float64, bfloat16, uint8, CSR): nothing the
size of the data is copied, and a memory-mapped array is read batch by batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..registry import Loss
from .place import Array, Place, check_numbers, kind_of, name_of_dtype


@dataclass(frozen=True)
class Rows:
    """Checked data: what the engines' ``run`` and ``evaluate`` take as x, y and weights, all in one place."""

    place: Place
    count: int
    x: Any  # (count, in): an array, a bfloat16 tensor, or a CSR matrix as (values, columns, offsets)
    y: Array  # classes (count,), or values (count, out)
    sample_weight: Array | None  # (count,)
    class_weight: Array | None  # (out,)
    ignore_index: int

    @property
    def have_classes(self) -> bool:
        return self.y.ndim == 1

    @cached_property
    def counted(self) -> NDArray[Any] | None:
        """Which rows, (count,), are not of class ``ignore_index``; None where all are not."""
        counted = self.place.to_host(self.y != self.ignore_index)
        return None if counted.all() else counted


def prepare_rows(
    x: Any,
    y: Any,
    *,
    place: Place,
    in_features: int,
    out_features: int,
    loss: Loss,
    dtype: np.dtype[Any],
    ignore_index: int,
    scaled: bool,
    sample_weight: Any = None,
    class_weight: Any = None,
) -> Rows:
    """Check x, y and their weights; raise ``TypeError`` or ``ValueError`` naming the one that is wrong."""
    shape, inputs = place.as_inputs(x, dtype)
    if len(shape) != 2 or shape[1] != in_features:
        raise ValueError(f"x must have shape (rows, {in_features}), as the net has; got {shape}")
    if scaled and isinstance(inputs, tuple):
        raise ValueError("input_scale and input_shift go with a dense x; x is sparse, so scale its values")
    count = int(shape[0])
    if count == 0:
        raise ValueError("x must have at least one row; got none")
    targets = _prepare_targets(place, y, count, out_features, loss, dtype, ignore_index)
    if class_weight is not None and loss.name != "cross_entropy":
        raise ValueError(f"class_weight goes with loss 'cross_entropy'; the loss is {loss.name!r}")
    return Rows(
        place,
        count,
        inputs,
        targets,
        _prepare_weight(place, "sample_weight", sample_weight, count, dtype),
        _prepare_weight(place, "class_weight", class_weight, out_features, dtype),
        ignore_index,
    )


def _prepare_targets(
    place: Place, y: Any, rows: int, out_features: int, loss: Loss, dtype: np.dtype[Any], ignore_index: int
) -> Array:
    """Return y as int64 classes (rows,), or as values (rows, out_features); one row of values for all is broadcast."""
    array = place.as_array(y, "y")
    kind, shape = kind_of(array), tuple(array.shape)
    if loss.name == "cross_entropy" and kind in "iu":
        return _prepare_classes(place, array, rows, out_features, ignore_index)
    if loss.name == "cross_entropy" and not (kind == "f" and len(shape) == 2):
        raise TypeError(
            f"y must hold integer classes ({rows},) or a distribution ({rows}, {out_features}) for loss "
            f"'cross_entropy'; got {name_of_dtype(array)} of shape {shape}"
        )
    check_numbers("y", array, purpose=f" for loss {loss.name!r}")
    if shape not in ((rows, out_features), (out_features,)):
        raise ValueError(f"y must have shape ({rows}, {out_features}) or ({out_features},); got {shape}")
    return place.broadcast(place.converted(array, dtype), (rows, out_features))


def _prepare_classes(place: Place, array: Array, rows: int, out_features: int, ignore_index: int) -> Array:
    if tuple(array.shape) != (rows,):
        raise ValueError(f"y must have shape ({rows},), one class for each row of x; got {tuple(array.shape)}")
    classes = place.converted(array, np.dtype(np.int64))
    outside = ((classes < 0) | (classes >= out_features)) & (classes != ignore_index)
    if outside.any():
        row = int(place.to_host(outside).argmax())
        raise ValueError(f"y must hold classes in [0, {out_features}); row {row} holds {array[row]}")
    return classes


def _prepare_weight(place: Place, name: str, weight: Any, count: int, dtype: np.dtype[Any]) -> Array | None:
    if weight is None:
        return None
    given = place.as_array(weight, name)
    check_numbers(name, given, "fiu")
    array = place.converted(given, dtype)
    if tuple(array.shape) != (count,):
        raise ValueError(f"{name} must have shape ({count},); got {tuple(array.shape)}")
    if not ((array >= 0) & (array < math.inf)).all():  # NaN is neither
        raise ValueError(f"{name} must be finite and at least 0 everywhere")
    return array
