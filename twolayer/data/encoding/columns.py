"""The columns of a pandas frame: numbers or texts, and an error for what is missing or neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Array = NDArray[Any]

MAX_CATEGORIES = 100  # of one column of texts, unless more are asked for


class Column(NamedTuple):
    """A column of inputs: numbers, or, with ``categories``, texts, each of which is an input of its own."""

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        return 1 if self.categories is None else len(self.categories)


def is_frame(data: Any) -> bool:
    return hasattr(data, "columns")


def listed(names: Sequence[Any]) -> str:
    """The names in a row, the first ten of many."""
    shown = ", ".join(map(str, names[:10]))
    return shown if len(names) <= 10 else f"{shown} … ({len(names)})"


def refuse_missing(series: Series, name: str) -> None:
    """Raise ``ValueError`` that names the column and its first row without a value."""
    missing = series.isna().to_numpy()
    if missing.any():
        row, count = int(missing.argmax()) + 1, int(missing.sum())
        rest = "" if count == 1 else f", one of {count:,} such rows"
        raise ValueError(f"column {name!r} has no value in row {row}{rest}; fill it in, or leave out row or column")


def kind_of(series: Series, name: str, max_categories: int) -> Column:
    """The column as numbers or as texts; ``ValueError`` where it is neither, or has too many texts."""
    from pandas import CategoricalDtype
    from pandas.api import types

    refuse_missing(series, name)
    if isinstance(series.dtype, CategoricalDtype):
        categories = sorted({str(value) for value in series.unique()})
    elif types.is_complex_dtype(series.dtype):
        raise ValueError(f"column {name!r} must hold real numbers or texts; it holds {series.dtype}")
    elif types.is_numeric_dtype(series.dtype):  # truth values too
        return Column(name)
    else:
        _check_texts(series, name)
        categories = sorted(series.unique())
    if len(categories) > max_categories:
        raise ValueError(
            f"column {name!r} has {len(categories):,} different texts, such as {categories[0]!r}, which would be as "
            f"many inputs: leave it out (--drop {name!r}) or allow it (--max-categories {len(categories)})"
        )
    return Column(name, tuple(categories))


def _check_texts(series: Series, name: str) -> None:
    """Raise ``ValueError`` unless all are texts, and not numbers but for a few."""
    values = series.to_numpy()
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(
            f"column {name!r} must hold numbers or texts; row {wrong + 1} holds a {type(values[wrong]).__name__}: "
            f"convert it, or leave the column out (--drop {name!r})"
        )
    are_numbers = np.array([_is_number(value) for value in values])
    if 0.5 <= are_numbers.mean() < 1:
        row = int((~are_numbers).argmax())
        raise ValueError(
            f"column {name!r} holds numbers, but {values[row]!r} in row {row + 1}: correct it, or leave the column out "
            f"(--drop {name!r})"
        )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def numbers(series: Series, name: str) -> Array:
    """The column as float64; ``ValueError`` names the first row that has no finite number."""
    refuse_missing(series, name)
    try:
        found = series.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        row = next((row for row, value in enumerate(series) if not _is_number(value)), 0)
        raise ValueError(f"column {name!r} must hold numbers; row {row + 1} holds {series.iloc[row]!r}") from None
    infinite = ~np.isfinite(found)
    if infinite.any():
        row = int(infinite.argmax())
        raise ValueError(f"column {name!r} must hold finite numbers; row {row + 1} holds {found[row]}")
    return found


def codes(series: Series, column: Column) -> Array:
    """The place of each row's text among the column's categories, int64; ``ValueError`` where it is none of them."""
    assert column.categories is not None
    refuse_missing(series, column.name)
    places = {category: place for place, category in enumerate(column.categories)}
    found = series.astype(str).map(places)
    unknown = found.isna().to_numpy()
    if unknown.any():
        row = int(unknown.argmax())
        raise ValueError(
            f"column {column.name!r} holds {series.iloc[row]!r} in row {row + 1}, which no row had when the net was "
            f"trained; there were {listed(column.categories)}"
        )
    return found.to_numpy(dtype=np.int64)


def values(series: Series) -> Array:
    """The column, which has no missing value, as NumPy knows it: nullable numbers as plain ones."""
    return series.to_numpy(dtype=getattr(series.dtype, "numpy_dtype", None))


def stacked(frame: DataFrame) -> Array:
    """All columns, which hold numbers, as (rows, columns) float64."""
    return np.column_stack([numbers(frame[name], name) for name in frame.columns])
