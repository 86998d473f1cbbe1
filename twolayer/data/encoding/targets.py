"""Targets of a table, made into those of a net; and what a net's outputs mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import columns
from .columns import is_frame, listed
from .scaling import scaling_of

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[Any]

TASKS = ("classification", "regression")
MAX_CLASSES = 100  # of whole numbers; where there are more they are taken for values


@dataclass(frozen=True, eq=False)
class TargetEncoder:
    """Makes targets of a table's: places in ``classes`` (rows,), or values (rows, out), (value − mean) / scale."""

    names: tuple[str, ...]  # of columns; empty for an array's
    classes: tuple[Any, ...] | None  # ascending; bool, int, float or str
    mean: Array  # (out,) float64; of values
    scale: Array  # (out,) float64; of values
    reason: str = ""  # why they were taken for classes, or for values

    @classmethod
    def of(cls, targets: Any, training: Array, scaling: str = "auto", task: str | None = None) -> TargetEncoder:
        """Learn the classes of all rows, or from the ``training`` rows (indices) how to scale values.

        ``task``, a name in ``TASKS``, decides which; without it the targets do: texts and truth values are classes,
        numbers with a fraction or a decimal point are values, whole numbers are classes unless there are too many.
        """
        names = tuple(targets.columns) if is_frame(targets) else ()
        for name in names:
            columns.refuse_missing(targets[name], name)
        several = len(names) > 1 or (not names and targets.ndim == 2)
        decided, reason = ("regression", "several targets") if several else _task_of(_only(targets))
        if task is not None and task != decided:
            decided, reason = task, "as asked for"
        if decided == "regression":
            mean, scale = scaling_of(_values(targets), training, "none" if scaling == "none" else "standard")
            return cls(names, None, mean, scale, reason)
        if several:
            raise ValueError("a classification has one target, whose values are the classes; got several")
        classes = _classes_of(_only(targets))
        if len(classes) < 2:
            raise ValueError(f"expected at least 2 classes as targets; all rows have {classes[0]!r}")
        return cls(names, classes, np.zeros(1), np.ones(1), reason)

    @property
    def task(self) -> Literal["classification", "regression"]:
        return "regression" if self.classes is None else "classification"

    @property
    def features(self) -> int:
        """How many outputs the net has."""
        return len(self.mean) if self.classes is None else len(self.classes)

    def numbered(self, targets: Any) -> Array:
        """Return the place of each target (rows,) in ``classes``, int64; ``ValueError`` where it is none of them."""
        assert self.classes is not None
        if is_frame(targets):
            targets = self._own(targets)
            columns.refuse_missing(targets.iloc[:, 0], targets.columns[0])
        array = _comparable(_only(targets))
        if array.ndim != 1:
            raise ValueError(f"expected classes of shape (rows,); got {array.shape}")
        places = {value: place for place, value in enumerate(self.classes)}
        kinds, which = np.unique(array, return_inverse=True)
        numbers = np.array([places.get(kind, -1) for kind in kinds.tolist()], np.int64)[which]
        if (numbers < 0).any():
            row = int((numbers < 0).argmax())
            raise ValueError(
                f"the target in row {row + 1} is {array[row].item()!r}, none of the net's {len(self.classes)} classes: "
                f"{listed(self.classes)}"
            )
        return numbers

    def values(self, targets: Any) -> Array:
        """Return the targets as they are, (rows, out) float64."""
        array = _values(self._own(targets) if is_frame(targets) else targets)
        if array.shape[1] != self.features:
            raise ValueError(f"expected {self.features} targets; got {array.shape[1]}")
        return array

    def encode(self, targets: Any, dtype: Any) -> Array:
        """Return what ``fit`` takes as y: int64 (rows,), or ``dtype`` (rows, out)."""
        if self.classes is not None:
            return self.numbered(targets)
        return ((self.values(targets) - self.mean) / self.scale).astype(dtype)

    def decode(self, outputs: Array) -> Array:
        """Return what a net's outputs (rows, out) mean: each row's likeliest class (rows,), or values (rows, out)."""
        if self.classes is None:
            return outputs * self.scale + self.mean
        return np.array(self.classes)[outputs.argmax(axis=1)]

    def _own(self, frame: DataFrame) -> DataFrame:
        """The target's columns by name, or, where it has no names, all that were read as targets."""
        return frame[list(self.names)] if set(self.names) <= set(frame.columns) and self.names else frame

    def to_json(self) -> dict[str, Any]:
        """All of it but the reason, as JSON holds it."""
        return {
            "names": list(self.names),
            "classes": None if self.classes is None else list(self.classes),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TargetEncoder:
        classes = found["classes"]
        mean, scale = (np.asarray(found[name], np.float64) for name in ("mean", "scale"))
        return cls(tuple(found["names"]), None if classes is None else tuple(classes), mean, scale)


def _only(targets: Any) -> Array:
    """The only column of a frame, or an array as it is."""
    array = columns.values(targets.iloc[:, 0]) if is_frame(targets) else targets
    if array.dtype.kind not in "biufOUT":
        raise ValueError(f"targets must be numbers, texts or truth values; got dtype {array.dtype}")
    return array


def _task_of(targets: Array) -> tuple[str, str]:
    """The task that a column of targets asks for, and why."""
    if targets.dtype.kind not in "iuf":
        return "classification", "truth values" if targets.dtype.kind == "b" else "texts"
    if targets.dtype.kind == "f":
        whole = (targets == np.rint(targets)).all()
        return "regression", "whole numbers, but with a decimal point" if whole else "numbers with a fraction"
    count = len(np.unique(targets))
    if count > MAX_CLASSES or 2 * count > len(targets):
        return "regression", f"{count:,} different whole numbers"
    return "classification", "whole numbers"


def _classes_of(targets: Array) -> tuple[Any, ...]:
    if targets.dtype.kind == "f":
        wrong = ~np.isfinite(targets)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"expected a class in every row; the target in row {row + 1} is {targets[row]}")
        if (targets == np.rint(targets)).all():
            targets = targets.astype(np.int64)
    return tuple(np.unique(_comparable(targets)).tolist())


def _comparable(targets: Array) -> Array:
    """Objects as texts, so that they can be put in order; anything else as it is."""
    return np.array([str(target) for target in targets]) if targets.dtype.kind == "O" else targets


def _values(targets: Any) -> Array:
    """The targets as finite values (rows, out) float64."""
    if is_frame(targets):
        return columns.stacked(targets)
    if targets.dtype.kind not in "biuf":
        raise ValueError(f"targets of a regression must be numbers; got dtype {targets.dtype}")
    values = np.asarray(targets, np.float64).reshape(len(targets), -1)
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"targets must be finite; row {row + 1} holds {values[row].tolist()}")
    return values
