"""Inputs of a table, made into those of a net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import columns
from .columns import MAX_CATEGORIES, Column, is_frame, listed
from .scaling import CHUNK, check_finite, scaling_of

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class InputEncoder:
    """Makes inputs (rows, features) of a table's: (number − mean) / scale, and 1 or 0 for each category of a text.

    ``columns`` is None for an array's, which have positions only. ``row_shape`` is that of an image; ``zero_based`` is
    how svmlight counted the columns.
    """

    columns: tuple[Column, ...] | None
    mean: Array  # (features,) float64
    scale: Array  # (features,) float64
    row_shape: tuple[int, ...] = ()
    zero_based: bool | None = None

    @classmethod
    def of(
        cls,
        inputs: Any,
        training: Array,
        scaling: str = "auto",
        *,
        max_categories: int = MAX_CATEGORIES,
        row_shape: tuple[int, ...] = (),
        zero_based: bool | None = None,
    ) -> InputEncoder:
        """Learn how to encode: the scale from the ``training`` rows (indices), the categories from all.

        ``scaling``: ``standard``, mean 0 and standard deviation 1 of every column of numbers (a sparse matrix keeps its
        zeros, and so its means); ``pixels``, over 255; ``none``; ``auto``: pixels for an array of bytes, else
        standard. ``ValueError`` for a missing or infinite value, or a column that holds neither numbers nor texts.
        """
        if not is_frame(inputs):
            check_finite(inputs)
            if scaling == "auto":
                scaling = "pixels" if inputs.dtype == np.uint8 else "standard"
            return cls(None, *scaling_of(inputs, training, scaling), row_shape, zero_based)
        scaling = "standard" if scaling == "auto" else scaling
        kinds, means, scales = [], [], []
        for name in inputs.columns:
            kind = columns.kind_of(inputs[name], name, max_categories)
            if kind.categories is None:
                mean, scale = scaling_of(columns.numbers(inputs[name], name)[:, None], training, scaling)
            else:
                mean, scale = np.zeros(kind.width), np.ones(kind.width)
            kinds.append(kind)
            means.append(mean)
            scales.append(scale)
        return cls(tuple(kinds), np.concatenate(means), np.concatenate(scales))

    @property
    def features(self) -> int:
        """How many inputs the net has."""
        return len(self.mean)

    def encode(self, inputs: Any, dtype: Any) -> Any:
        """Return the inputs as an array (rows, features) of ``dtype``, or a CSR matrix as one.

        ``ValueError``, naming column and row, where they are not such inputs as were learnt from.
        """
        if is_frame(inputs):
            if self.columns is not None:
                return self._encode_frame(inputs, dtype)
            inputs = columns.stacked(inputs)
        elif self.columns is not None and any(column.categories for column in self.columns):
            raise ValueError("expected columns with names, as some hold texts; got an array")
        if inputs.shape[1] != self.features:
            raise ValueError(f"expected {self.features} columns of inputs; got {inputs.shape[1]}")
        check_finite(inputs)
        if not isinstance(inputs, np.ndarray):
            return inputs.multiply(1.0 / self.scale).tocsr().astype(dtype)
        encoded = np.empty(inputs.shape, dtype)
        for first in range(0, len(inputs), CHUNK):
            encoded[first : first + CHUNK] = (inputs[first : first + CHUNK] - self.mean) / self.scale
        return encoded

    def encode_for_training(self, inputs: Any, dtype: Any) -> tuple[Any, dict[str, Any]]:
        """Return the inputs, and the options of ``fit`` that go with them: bytes stay bytes, and are scaled there."""
        if isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and self.columns is None:
            scale = self.scale[0]
            if (self.scale == scale).all() and not self.mean.any():
                return np.ascontiguousarray(inputs), {"input_scale": float(1.0 / scale)}
        return self.encode(inputs, dtype), {}

    def _encode_frame(self, frame: DataFrame, dtype: Any) -> Array:
        assert self.columns is not None
        absent = [column.name for column in self.columns if column.name not in frame.columns]
        if absent:
            there = listed(list(frame.columns))
            raise ValueError(f"there is no column {absent[0]!r}, which the net was trained on; there are {there}")
        encoded = np.zeros((len(frame), self.features), dtype)
        place = 0
        for column in self.columns:
            series = frame[column.name]
            if column.categories is None:
                encoded[:, place] = (columns.numbers(series, column.name) - self.mean[place]) / self.scale[place]
            else:
                encoded[np.arange(len(frame)), place + columns.codes(series, column)] = 1
            place += column.width
        return encoded

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it; one number stands for as many equal ones."""
        return {
            "features": self.features,
            "columns": None if self.columns is None else [column._asdict() for column in self.columns],
            "mean": _short(self.mean),
            "scale": _short(self.scale),
            "row_shape": list(self.row_shape),
            "zero_based": self.zero_based,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> InputEncoder:
        kinds = found["columns"]
        if kinds is not None:
            kinds = tuple(Column(kind["name"], kind["categories"] and tuple(kind["categories"])) for kind in kinds)
        mean, scale = (
            np.broadcast_to(np.asarray(found[name], np.float64), found["features"]) for name in ("mean", "scale")
        )
        return cls(kinds, mean, scale, tuple(found["row_shape"]), found["zero_based"])


def _short(array: Array) -> Any:
    return float(array[0]) if (array == array[0]).all() else array.tolist()
