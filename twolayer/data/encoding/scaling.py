"""How numbers are scaled: (number − mean) / scale, with a mean and a scale for each column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SCALINGS = ("auto", "standard", "pixels", "none")
CHUNK = 4096  # rows that are looked at together
_PIXEL = 255.0


def scaling_of(x: Any, training: Array, scaling: str) -> tuple[Array, Array]:
    """Mean and scale (columns,) float64 for x (rows, columns), from its ``training`` rows (indices).

    ``standard`` makes mean 0 and standard deviation 1; a sparse matrix, whose zeros stay zeros, keeps its mean, and
    a constant column its scale. ``pixels`` divides by 255; ``none`` leaves the numbers as they are.
    """
    columns = x.shape[1]
    if scaling == "none":
        return np.zeros(columns), np.ones(columns)
    if scaling == "pixels":
        return np.zeros(columns), np.full(columns, _PIXEL)
    mean, deviation = _moments(x, training) if isinstance(x, np.ndarray) else _sparse_moments(x[training])
    deviation[deviation <= 1e-12 * np.abs(mean)] = 1.0  # a constant, but for what rounding left
    return (mean if isinstance(x, np.ndarray) else np.zeros(columns)), deviation


def _moments(x: Array, training: Array) -> tuple[Array, Array]:
    chunks = [training[first : first + CHUNK] for first in range(0, len(training), CHUNK)]
    mean = sum((x[rows].sum(axis=0, dtype=np.float64) for rows in chunks), np.zeros(x.shape[1])) / len(training)
    square = sum((((x[rows] - mean) ** 2).sum(axis=0) for rows in chunks), np.zeros(x.shape[1])) / len(training)
    return mean, np.sqrt(square)


def _sparse_moments(x: Any) -> tuple[Array, Array]:
    x = x.astype(np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    square = np.asarray(x.multiply(x).mean(axis=0)).ravel()
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def check_finite(x: Any) -> None:
    """Raise ``ValueError``, naming row and column, for the first number of x that is missing or infinite."""
    if x.dtype.kind != "f":
        return
    if not isinstance(x, np.ndarray):
        if not np.isfinite(x.data).all():
            raise ValueError("expected finite numbers as inputs; the sparse matrix holds others")
        return
    for first in range(0, len(x), CHUNK):
        wrong = ~np.isfinite(x[first : first + CHUNK])
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            number = x[first + row, column]
            fault = "has no value" if np.isnan(number) else f"holds {number}"
            raise ValueError(f"column {column} {fault} in row {first + row + 1}")
