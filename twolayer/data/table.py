"""One's own data: a file of any of the usual formats, read as inputs and targets.

CSV and Parquet are read by pandas and keep their columns; ``.npy``, ``.npz`` and IDX by this package and svmlight by
scikit-learn, as arrays. Every error is a ``ValueError`` or an ``OSError`` that names the file, or an ``ImportError``
that names the extra to install.
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..extras import require
from .files import GZIP_MAGIC, damage_named
from .idx import read_idx
from .npy import load_npy, read_npz

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[Any]

FORMATS = ("csv", "parquet", "npy", "npz", "idx", "svmlight")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".svm": "svmlight",
    ".svmlight": "svmlight",
    ".libsvm": "svmlight",
}
_PACKED = (".gz", ".bz2", ".xz", ".zip")
_INDEX_NAME = "Unnamed: 0"  # what pandas calls the column of row numbers that its own to_csv wrote


@dataclass(frozen=True)
class Reading:
    """How to read a file, where it does not say so itself.

    ``targets``: names or positions of columns; for ``.npz`` the name of an array; for images a file of labels. ``drop``
    names columns to leave out. ``inputs``: the array of inputs in a ``.npz``. ``header``, ``separator``: of a CSV.
    ``features``, ``zero_based``: of svmlight, None where the file decides.
    """

    targets: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    inputs: str | None = None
    format: str | None = None
    header: bool = True
    separator: str | None = None
    features: int | None = None
    zero_based: bool | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """A file's rows.

    ``inputs``: a DataFrame, an array (rows, in) or a CSR matrix; ``targets``: a DataFrame of the target columns, an
    array (rows,) or (rows, out), or None. ``row_shape`` is (28, 28) where each row was such an image. ``notes`` say
    what was done besides reading.
    """

    inputs: Any
    targets: Any | None
    row_shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    zero_based: bool | None = None  # of svmlight

    def __len__(self) -> int:
        return int(self.inputs.shape[0])


def read_table(path: Path, reading: Reading, *, targets: bool) -> Table:
    """Read the file, with its ``targets`` or without: then a target column that it has all the same is left out."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    format = reading.format or format_of(path)
    _refuse_foreign(path, format, reading)
    read = {
        "csv": _read_csv,
        "parquet": _read_parquet,
        "npy": _read_npy,
        "npz": _read_npz,
        "idx": _read_idx,
        "svmlight": _read_svmlight,
    }
    with damage_named(path):
        table = read[format](path, reading, targets)
        if len(table) == 0:
            raise ValueError("expected at least one row; got none")
        return table


def format_of(path: Path) -> str:
    """The name in ``FORMATS`` of the file's format, told by its first bytes, or else by its suffix."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and file.name[0] not in "._"]
        if files and all(file.suffix == ".parquet" for file in files):
            return "parquet"
        raise IsADirectoryError(f"{path}: expected a file, or a folder of Parquet files; got another folder")
    with path.open("rb") as raw:
        start = raw.read(6)
    if start[:2] == GZIP_MAGIC:
        with damage_named(path), gzip.open(path) as unpacked:
            start = unpacked.read(6)
    if start[:4] == b"PAR1":
        return "parquet"
    if start == b"\x93NUMPY":
        return "npy"
    if start[:2] == b"\0\0":
        return "idx"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".npz":
        return "npz"
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    if suffixes and suffixes[-1] in _SUFFIXES:
        return _SUFFIXES[suffixes[-1]]
    known = ", ".join([".parquet", ".npy", ".npz", "IDX", *_SUFFIXES])
    raise ValueError(f"{path}: expected a file of one of {known}; name its format with --format ({', '.join(FORMATS)})")


def _refuse_foreign(path: Path, format: str, reading: Reading) -> None:
    given = {
        "--inputs": (reading.inputs is not None, ("npz",)),
        "--no-header": (not reading.header, ("csv",)),
        "--separator": (reading.separator is not None, ("csv",)),
        "--drop": (bool(reading.drop), ("csv", "parquet", "npy", "npz", "idx")),
    }
    for option, (is_given, formats) in given.items():
        if is_given and format not in formats:
            raise ValueError(f"{path}: {option} is for {', '.join(formats)}; the file is {format}")


# ---------------------------------------------------------------------------------------------------------------------
# Frames: columns have names and kinds.


def _read_csv(path: Path, reading: Reading, targets: bool) -> Table:
    pandas = require("pandas", "reading CSV", "cli")
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP_MAGIC
    separator = reading.separator or ("\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ",")
    frame = pandas.read_csv(
        path,
        sep=separator,
        header=0 if reading.header else None,
        compression="gzip" if packed else "infer",
        skipinitialspace=True,
        low_memory=False,  # one kind for the whole of a column
    )
    if not isinstance(frame.index, pandas.RangeIndex):  # pandas takes what is more than the header's for row labels
        raise ValueError(f"expected rows of {frame.shape[1]} columns, as the header names; the first row has more")
    if frame.shape[1] == 1 and (better := next((mark for mark in ";\t|" if mark in str(frame.columns[0])), None)):
        raise ValueError(f"expected columns separated by {separator!r}; got {better!r}: --separator {better!r}")
    return _from_frame(frame, reading, targets)


def _read_parquet(path: Path, reading: Reading, targets: bool) -> Table:
    pandas = require("pandas", "reading Parquet", "cli")
    require("pyarrow", "reading Parquet", "cli")
    return _from_frame(pandas.read_parquet(path, engine="pyarrow"), reading, targets)


def _from_frame(frame: DataFrame, reading: Reading, targets: bool) -> Table:
    frame.columns = [str(name) for name in frame.columns]
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"expected columns of different names; got {twice!r} twice")
    frame = frame.reset_index(drop=True)
    notes = []
    if _INDEX_NAME not in reading.targets and _numbers_rows(frame):
        frame = frame.drop(columns=_INDEX_NAME)
        notes.append("left out the first column, which has no name and numbers the rows")
    names = list(frame.columns)
    dropped = [_named(names, name) for name in reading.drop]
    if targets and not reading.targets:
        raise ValueError(f"--target must name the column to be learnt; there are {_listed(names)}")
    wanted = [_named(names, name) for name in reading.targets] if targets else []
    if both := [name for name in wanted if name in dropped]:
        raise ValueError(f"column {both[0]!r} is the target and cannot be dropped")
    if not targets:
        dropped += [name for name in reading.targets if name in names]
    inputs = frame.drop(columns=[*wanted, *dropped])
    if inputs.shape[1] == 0:
        raise ValueError(f"expected at least one column of inputs; got none beside {_listed(names)}")
    return Table(inputs, frame[wanted] if targets else None, notes=tuple(notes))


def _numbers_rows(frame: DataFrame) -> bool:
    """Whether the first column is what pandas writes beside a frame, its rows' numbers, also of a part of the rows."""
    if frame.columns[0] != _INDEX_NAME:
        return False
    return bool(frame[_INDEX_NAME].dtype.kind == "i" and frame[_INDEX_NAME].is_unique)


def _named(names: Sequence[str], name: str) -> str:
    """``name`` itself, or the name of the column at that position, which may count from the end."""
    if name in names:
        return name
    position = _position(name)
    if position is not None and -len(names) <= position < len(names):
        return names[position]
    import difflib

    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"there is no column {name!r}{hint}; there are {_listed(names)}")


def _position(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names)) if len(names) <= 12 else f"{', '.join(map(str, names[:10]))} … ({len(names)})"


# ---------------------------------------------------------------------------------------------------------------------
# Arrays: columns have positions.


def _read_npy(path: Path, reading: Reading, targets: bool) -> Table:
    array = _real(load_npy(path), "the array")
    are_columns = reading.targets and all(_position(name) is not None for name in reading.targets)
    if targets and not are_columns:
        return _from_array(array, _labels_beside(path, reading), reading)
    if not are_columns or array.ndim != 2 or (not targets and array.shape[1] == reading.features):
        if targets:
            raise ValueError(f"--target as a column needs an array of shape (rows, columns); got {array.shape}")
        return _from_array(array, None, reading)
    columns = _column_numbers(array, reading.targets, "--target")
    y = array[:, columns[0]] if len(columns) == 1 else array[:, columns]
    return _from_array(array, y if targets else None, reading, columns)


def _read_idx(path: Path, reading: Reading, targets: bool) -> Table:
    return _from_array(read_idx(path), _labels_beside(path, reading) if targets else None, reading)


def _labels_beside(path: Path, reading: Reading) -> Array:
    """The targets of a file that has none: those in the file that ``--target`` names, or MNIST's labels beside it."""
    if len(reading.targets) > 1:
        raise ValueError(f"--target must be one file of labels; got {len(reading.targets)}")
    if reading.targets:
        labels = Path(reading.targets[0])
    else:
        labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        if labels == path:
            raise ValueError("--target must name the column, or the file, of what is to be learnt")
    if not labels.is_file():
        raise FileNotFoundError(f"--target: there is no file {labels} of labels")
    return read_idx(labels) if format_of(labels) == "idx" else load_npy(labels)


def _read_npz(path: Path, reading: Reading, targets: bool) -> Table:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(reading.targets) > 1:
        raise ValueError(f"--target must be one array; got {', '.join(reading.targets)}")
    target = reading.targets[0] if reading.targets else next((name for name in ("y", "y_train") if name in names), None)
    if targets and target not in names:
        raise ValueError(f"--target must be one of its arrays, {_listed(names)}; got {target or 'none'}")
    inputs = reading.inputs or _inputs_beside(names, target)
    if inputs not in names:
        raise ValueError(f"--inputs must be one of its arrays, {_listed(names)}; got {inputs or 'none'}")
    x = read_npz(path, (inputs,))[0]
    return _from_array(_real(x, inputs), read_npz(path, (target,))[0] if targets and target else None, reading)


def _inputs_beside(names: Sequence[str], target: str | None) -> str | None:
    """x beside y, x_train beside y_train, X in place of x; or the only array but for the target."""
    if target and target[0] in "yY":
        for first in "xX":
            if first + target[1:] in names:
                return first + target[1:]
    others = [name for name in names if name != target]
    return others[0] if len(others) == 1 else next((name for name in ("x", "X", "x_test") if name in names), None)


def _read_svmlight(path: Path, reading: Reading, targets: bool) -> Table:
    if reading.targets:
        raise ValueError("--target is not for svmlight, where each row begins with its own")
    datasets = require("sklearn.datasets", "reading svmlight", "cli")
    options = {"n_features": reading.features, "dtype": np.float64}
    try:
        x, y = datasets.load_svmlight_file(str(path), zero_based=bool(reading.zero_based), **options)
        zero_based = bool(reading.zero_based)
    except ValueError:  # LIBSVM counts columns from 1; a file that has a column 0 counts from 0
        if reading.zero_based is not None:
            raise
        x, y = datasets.load_svmlight_file(str(path), zero_based=True, **options)
        zero_based = True
    if (y == np.rint(y)).all():  # scikit-learn reads every target as a float
        y = y.astype(np.int64)
    return Table(x, y if targets else None, zero_based=zero_based)


def _real(array: Array, name: str) -> Array:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers; got dtype {array.dtype}")
    return array


def _from_array(x: Array, y: Array | None, reading: Reading, taken: Sequence[int] = ()) -> Table:
    """The table of inputs x (rows, …), a column for each number of a row, less those ``taken`` and to be dropped."""
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"inputs must be of shape (rows, columns), or (rows, …) of images; got {x.shape}")
    if y is not None and (y.ndim not in (1, 2) or len(y) != len(x) or 0 in y.shape):
        raise ValueError(f"targets must have the {len(x)} rows of the inputs and one or two dimensions; got {y.shape}")
    row_shape = x.shape[1:] if x.ndim > 2 else ()
    x = x.reshape(len(x), -1)
    if reading.drop or taken:
        x = np.delete(x, [*taken, *_column_numbers(x, reading.drop, "--drop")], axis=1)
        row_shape = ()
        if x.shape[1] == 0:
            raise ValueError("expected at least one column of inputs; got none beside the target")
    if y is not None and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    return Table(x, y, row_shape)


def _column_numbers(array: Array, columns: Sequence[str], option: str) -> list[int]:
    """The columns, given as positions that may count from the end, counted from 0."""
    count = array.shape[1]
    positions = []
    for text in columns:
        position = _position(text)
        if position is None or not -count <= position < count:
            raise ValueError(f"{option} must be the position of a column, from {-count} to {count - 1}; got {text!r}")
        positions.append(position % count)
    return positions
