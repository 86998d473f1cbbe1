"""Writes the files that the data readers read: whole ones, and the pieces that hostile ones are made of."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path

import numpy as np

from twolayer.data import MNIST, download
from twolayer.data.dataset import PARTS

NAMES = tuple(download.SHA256)  # the four IDX files in the order of twolayer.data.dataset.PARTS
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES
CORE = np.empty(0).__reduce__()[0].__module__  # numpy.core.multiarray before NumPy 2, numpy._core.multiarray since


def small_arrays(train: int = 7, test: int = 3) -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test as MNIST has them, but few."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 28, 28), np.uint8) for n in (train, test)]
    labels = [rng.integers(0, 10, n, np.uint8) for n in (train, test)]
    return [images[0], labels[0], images[1], labels[1]]


def idx_bytes(array: np.ndarray) -> bytes:
    assert array.dtype == np.uint8
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_folder(folder: Path, arrays: list[np.ndarray], suffix: str = ".gz", dotted: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        data = idx_bytes(array)
        path = folder / ((name.replace("-idx", ".idx") if dotted else name) + suffix)
        path.write_bytes(gzip.compress(data) if suffix == ".gz" else data)
    return folder


def object_array(items: list[object], shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array.reshape(shape or (len(items),))


def npy_of_pickle(data: bytes, shape: tuple[int, ...] = (4,)) -> bytes:
    """A ``.npy`` file that declares an object array of ``shape`` and holds the pickle ``data``."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def write_npy(path: Path, array: np.ndarray, protocol: int = 4) -> Path:
    path.write_bytes(npy_of_pickle(pickle.dumps(array, protocol), array.shape))
    return path


def plain_npy(array: np.ndarray, header: dict[str, object] | None = None) -> bytes:
    """A ``.npy`` of numbers, its header replaced by ``header``."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header or np.lib.format.header_data_from_array_1_0(array))
    return file.getvalue() + array.tobytes()


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position:][1:]


def assert_holds(data: MNIST, arrays: list[np.ndarray]) -> None:
    for part, expected in zip(PARTS, arrays, strict=True):
        array = getattr(data, part)
        assert array.dtype == (np.uint8 if part.startswith("x") else np.int64)
        np.testing.assert_array_equal(array, expected)
