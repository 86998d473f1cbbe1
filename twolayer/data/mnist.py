"""Where MNIST is looked for, and what is used when it is nowhere."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np

from .dataset import MNIST, PARTS, checked_mnist
from .digits import digits_as_mnist
from .download import DownloadError, Progress, cache_folder, download_mnist
from .files import as_path
from .idx import find_idx, read_idx
from .npy import load_npy, read_npz

ENVIRONMENT = "TWOLAYER_DATA"
LOCAL_FOLDER = Path("data", "mnist")  # under the current directory

_IDX_FILES = {  # name, number of dimensions; in the order of PARTS
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
_NPZ_MAGIC = b"PK\x03\x04"
_NPY_MAGIC = b"\x93NUMPY"


class DatasetNotFoundError(FileNotFoundError):
    """MNIST is in none of the usual places; the message lists each with the reason."""


def load_mnist(
    path: str | PathLike[str] | None = None, *, download: bool = True, progress: Progress | None = None
) -> MNIST:
    """Return MNIST: ``x_train`` (60000, 28, 28) uint8, ``y_train`` (60000,) int64, ``x_test``, ``y_test``, ``source``.

    ``path`` is a folder (the four IDX files, gzipped or not, or ``mnist.npz``, or ``mnist.npy``) or one ``.npz`` (with
    ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras has it) or ``.npy`` file (an object array of those four).
    Without it: ``$TWOLAYER_DATA``, ``data/mnist`` under the current directory, the user's cache folder, and then, with
    ``download``, the network, into the cache folder; ``progress(name, done, total)`` counts its bytes.

    Another data set of MNIST's shape, such as Fashion-MNIST or a part of MNIST, is read as well.

    Raises ``DatasetNotFoundError`` when it is nowhere; ``FileNotFoundError`` when ``path`` or ``$TWOLAYER_DATA`` is
    given and not there; ``ValueError``, naming the file, for one that is truncated, damaged or something else.
    """
    if path is not None:
        return _load(as_path(path))
    if place := os.environ.get(ENVIRONMENT):
        return _load(as_path(place), called=f"${ENVIRONMENT}")
    folders = (LOCAL_FOLDER, cache_folder())
    looked = [f"${ENVIRONMENT}: not set"]
    for folder in folders:
        try:
            return _load(folder)
        except FileNotFoundError as error:
            looked.append(str(error))
    if download:
        try:
            download_mnist(folders[-1], progress=progress)
            return _load(folders[-1])
        except DownloadError as error:
            looked.append(f"download: {error}")
    raise DatasetNotFoundError("MNIST was not found. Looked in:\n" + "\n".join(f"  - {reason}" for reason in looked))


def load_mnist_or_digits(
    path: str | PathLike[str] | None = None,
    notify: Callable[[str], None] = warnings.warn,
    *,
    download: bool = True,
    progress: Progress | None = None,
) -> MNIST:
    """Return MNIST, or, when it is in none of the usual places, :func:`digits_as_mnist`, and say so to ``notify``.

    Arguments and errors are those of :func:`load_mnist`, but for ``DatasetNotFoundError``: a ``path`` or a
    ``$TWOLAYER_DATA`` that is wrong stays an error. ``ImportError`` when scikit-learn is needed and not installed.
    """
    try:
        return load_mnist(path, download=download, progress=progress)
    except DatasetNotFoundError as error:
        digits = digits_as_mnist()
        notify(f"{error}\nUsing {digits.source} instead.")
        return digits


def _load(path: Path, called: str = "") -> MNIST:
    label = f"{called}: {path}" if called else str(path)
    if path.is_dir():
        return _load_folder(path, label)
    if path.is_file():
        return _load_file(path)
    raise FileNotFoundError(f"{label}: no such file or folder")


def _load_folder(folder: Path, label: str) -> MNIST:
    found = {name: find_idx(folder, name) for name in _IDX_FILES}
    paths = [path for path in found.values() if path is not None]
    if len(paths) == len(found):
        arrays = [read_idx(path, ndim) for path, ndim in zip(paths, _IDX_FILES.values(), strict=True)]
        return checked_mnist(arrays, [str(path) for path in paths], str(folder))
    for path in (folder / "mnist.npz", folder / "mnist.npy"):
        if path.is_file():
            return _load_file(path)
    missing = [f"{name}[.gz]" for name, path in found.items() if path is None]
    raise FileNotFoundError(f"{label}: expected {', '.join(missing)}, or mnist.npz, or mnist.npy; not there")


def _load_file(path: Path) -> MNIST:
    with path.open("rb") as file:
        magic = file.read(len(_NPY_MAGIC))
    if magic.startswith(_NPZ_MAGIC):
        arrays = read_npz(path, PARTS)
    elif magic == _NPY_MAGIC:
        arrays = _four_arrays(path)
    else:
        raise ValueError(
            f"{path}: expected a .npz or .npy file, or the folder of the four IDX files; "
            f"got a file that begins {magic.hex(' ') or 'nowhere: it is empty'}"
        )
    return checked_mnist(arrays, [f"{path}: {part}" for part in PARTS], str(path))


def _four_arrays(path: Path) -> list[np.ndarray]:
    array = load_npy(path)
    items = list(array.flat) if array.dtype.kind == "O" else []
    if len(items) != len(PARTS) or not all(isinstance(item, np.ndarray) for item in items):
        expected = f"an object array of four arrays, {', '.join(PARTS)}"
        raise ValueError(f"{path}: expected {expected}; got {array.dtype}, shape {array.shape}")
    return items
