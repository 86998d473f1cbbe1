"""One's own data from a ``.npz`` or ``.csv`` file, read and checked.

Whole numbers as targets are classes, and make a classification; other numbers are values, and make a regression. Every
error is a ``ValueError`` or an ``OSError`` of one line that names the file.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.files import damage_named
from ..data.npy import read_npz

Array = NDArray[Any]

SUFFIXES = (".npz", ".csv")


@dataclass(frozen=True)
class Rows:
    """x (n, in) float64, and y: (n,) int64 classes or (n, out) float64 values."""

    x: Array
    y: Array

    def __getitem__(self, rows: Array | slice) -> Rows:
        return Rows(self.x[rows], self.y[rows])

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class OwnData:
    """A file's rows; the classes, if ``class_count`` is not 0, are numbered from 0 in ascending order."""

    train: Rows
    test: Rows | None
    class_count: int


def load(path: Path) -> OwnData:
    """Read x and y, and for a ``.npz`` x_test and y_test if it has them; a ``.csv``'s last column is y."""
    with damage_named(path):
        if path.suffix.lower() == ".csv":
            train, test = _read_csv(path), None
        else:
            with zipfile.ZipFile(path) as archive:
                has_test = {"x_test.npy", "y_test.npy"} & set(archive.namelist())
            train = _read_pair(path, "x", "y")
            test = _read_pair(path, "x_test", "y_test") if has_test else None
        if test is not None and (test.x.shape[1:], test.y.shape[1:]) != (train.x.shape[1:], train.y.shape[1:]):
            raise ValueError(
                f"x_test and y_test must be as x {train.x.shape} and y {train.y.shape}, but for the number of rows; "
                f"got {test.x.shape} and {test.y.shape}"
            )
        if train.y.ndim == 2:
            return OwnData(train, test, 0)
        classes = np.unique(train.y)
        if len(classes) < 2 or 2 * len(classes) > len(train):
            raise ValueError(
                f"y must hold at least 2 classes, of 2 rows or more on average; got {len(classes)} different whole "
                f"numbers in {len(train)} rows (targets that are no classes: as floats, with a decimal point)"
            )
        return OwnData(_numbered(train, classes), _numbered(test, classes) if test else None, len(classes))


def _read_csv(path: Path) -> Rows:
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if lines and not any(map(_is_number, lines[0].split(","))):
        del lines[0]  # names of columns
    if not lines:
        raise ValueError("expected rows of numbers separated by commas; got none")
    fields = [[field.strip() for field in line.split(",")] for line in lines]
    for row, line in enumerate(fields, start=1):
        if len(line) != len(fields[0]) or len(line) < 2:
            expected = f"{len(fields[0])} columns, as in the first row" if row > 1 else "at least 2 columns"
            raise ValueError(f"expected {expected}; row {row} has {len(line)}")
        wrong = next((field for field in line if not _is_number(field)), None)
        if wrong is not None:
            raise ValueError(f"expected numbers; row {row} holds {wrong!r}")
    table = np.array(fields, dtype=np.float64)
    whole = all(re.fullmatch(r"[+-]?\d{1,18}", line[-1]) for line in fields)
    y = np.array([int(line[-1]) for line in fields]) if whole else table[:, -1]
    return _checked(table[:, :-1], y, "the columns of x", "the last column")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_pair(path: Path, x_name: str, y_name: str) -> Rows:
    x, y = read_npz(path, (x_name, y_name))
    return _checked(x, y, x_name, y_name)


def _checked(x: Array, y: Array, x_name: str, y_name: str) -> Rows:
    for name, array in ((x_name, x), (y_name, y)):
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold real numbers; got dtype {array.dtype}")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{x_name} must be of shape (rows, inputs); got {x.shape}")
    if y.ndim not in (1, 2) or len(y) != len(x) or y.size == 0:
        raise ValueError(f"{y_name} must have the {len(x)} rows of {x_name}, and one or two dimensions; got {y.shape}")
    is_classes = y.dtype.kind in "biu"
    if is_classes and y.size != len(x):
        raise ValueError(f"{y_name} of whole numbers, which are classes, must be of shape ({len(x)},); got {y.shape}")
    for name, array in ((x_name, x), (y_name, y.reshape(len(y), -1))):
        wrong = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if wrong.size:
            raise ValueError(f"{name} must be finite; row {wrong[0] + 1} is not")
    return Rows(x.astype(np.float64), y.ravel().astype(np.int64) if is_classes else _columns(y).astype(np.float64))


def _columns(y: Array) -> Array:
    return y[:, None] if y.ndim == 1 else y


def _numbered(rows: Rows, classes: Array) -> Rows:
    """The rows with each class replaced by its place in ``classes``, which is ascending."""
    unknown = np.flatnonzero(~np.isin(rows.y, classes))
    if unknown.size:
        raise ValueError(f"y_test must hold classes of y; row {unknown[0] + 1} holds {rows.y[unknown[0]]}")
    return Rows(rows.x, np.searchsorted(classes, rows.y))
