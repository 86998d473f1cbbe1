"""The digits as arrays, and the one place that says what makes four arrays a digit data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE = 28  # pixels
CLASSES = 10
PARTS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, eq=False)
class MNIST:
    """Handwritten digits: images as uint8, 0 (paper) to 255 (ink), and labels 0 to 9 as int64."""

    x_train: np.ndarray  # (train, 28, 28) uint8; MNIST itself has 60,000
    y_train: np.ndarray  # (train,) int64
    x_test: np.ndarray  # (test, 28, 28) uint8; MNIST itself has 10,000
    y_test: np.ndarray  # (test,) int64
    source: str  # where it came from, in words or as a path


def checked_mnist(arrays: Sequence[np.ndarray], places: Sequence[str], source: str) -> MNIST:
    """Return the four ``arrays``, in the order of ``PARTS``, as a data set.

    Images may come as (n, 28, 28) or (n, 784) and in any number type that holds whole numbers 0 to 255, labels in any
    integer type. ``ValueError`` begins with the array's place (its file, its name), one of ``places``.
    """
    x_train, x_test = (_images(arrays[i], places[i]) for i in (0, 2))
    y_train, y_test = (_labels(arrays[i], places[i]) for i in (1, 3))
    for x, y, place in ((x_train, y_train, places[1]), (x_test, y_test, places[3])):
        if len(x) != len(y):
            raise ValueError(f"{place}: expected {len(x)} labels, one per image; got {len(y)}")
    return MNIST(x_train, y_train, x_test, y_test, source)


def _images(array: np.ndarray, place: str) -> np.ndarray:
    if array.shape[1:] not in ((SIDE, SIDE), (SIDE * SIDE,)) or len(array) == 0:
        raise ValueError(f"{place}: expected images of shape (n, 28, 28) or (n, 784), n > 0; got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{place}: expected pixels as integers or floats; got dtype {array.dtype}")
    if array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255):  # also when a NaN makes both NaN
            raise ValueError(f"{place}: expected pixels from 0 to 255; got {low} to {high}")
        whole = array.astype(np.uint8)
        if (whole != array).any():
            raise ValueError(f"{place}: expected whole numbers 0 to 255 as pixels; got fractions (scaled pixels?)")
        array = whole
    return np.ascontiguousarray(array).reshape(-1, SIDE, SIDE)


def _labels(array: np.ndarray, place: str) -> np.ndarray:
    if array.ndim != 1:
        raise ValueError(f"{place}: expected labels of shape (n,); got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{place}: expected labels as integers; got dtype {array.dtype}")
    wrong = np.flatnonzero((array < 0) | (array >= CLASSES))
    if wrong.size:
        raise ValueError(f"{place}: expected labels 0 to 9; got {array[wrong[0]]} at index {wrong[0]}")
    return array.astype(np.int64)
