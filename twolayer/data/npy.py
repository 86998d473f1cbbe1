"""``.npy`` and ``.npz`` files, read so that no file can run code or take more memory than it has bytes."""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from .files import MAX_UNPACKED_BYTES, as_path, damage_named, read_rest
from .pickled import unpickle_array

_ENCRYPTED = 0x1  # bit of a zip member's flags
# What hostile text makes NumPy's header parser raise besides ValueError.
_HEADER_DAMAGE = (TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def load_npy(path: str | PathLike[str]) -> np.ndarray:
    """Return the array in the ``.npy`` file ``path``, also a pickled object array, and never run what is in it.

    Stands in for ``np.load(path, allow_pickle=True)``, which runs whatever code the file holds. The tutorial's file is
    an object array of four: ``x_train, y_train, x_test, y_test = load_npy("mnist.npy")``.

    An object array may hold arrays of bools, integers, floats and complex numbers, NumPy and Python numbers, text and
    None (see :mod:`twolayer.data.pickled`); anything else, and a truncated or damaged file, is a ``ValueError`` that
    names the file. Format: ``numpy.lib.format``, version 1.0, which is what ``np.save`` writes.
    """
    path = as_path(path)
    with path.open("rb") as file, damage_named(path):
        shape, fortran_order, dtype = _read_header(file)
        if dtype.kind != "O":
            return _read_data(file, shape, fortran_order, dtype)
        array = unpickle_array(file.read())
        if array.dtype.kind != "O" or array.shape != shape:
            raise ValueError(f"expected an object array of shape {shape}; got {array.dtype}, shape {array.shape}")
        return array


def read_npz(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the arrays called ``names`` in the ``.npz`` ``path``; ``ValueError`` when one is absent or damaged."""
    with damage_named(path), zipfile.ZipFile(path) as archive:
        return [_read_member(archive, name) for name in names]


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    members = {info.filename: info for info in archive.infolist()}
    info = members.get(f"{name}.npy")
    if info is None:
        found = ", ".join(sorted(members))[:200] or "an empty archive"
        raise ValueError(f"expected an array called {name}; got {found}")
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"expected {name} stored or deflated, as np.savez writes it; got another method or encryption")
    if info.header_offset < 0:
        raise ValueError(f"expected {name} inside the file; its offset is {info.header_offset}")
    if info.file_size > MAX_UNPACKED_BYTES:
        raise ValueError(f"expected at most {MAX_UNPACKED_BYTES} bytes in {name}; got {info.file_size}")
    with archive.open(info) as member:
        return _read_data(member, *_read_header(member))


def _read_data(file: IO[bytes], shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.hasobject:
        raise ValueError(f"expected an array without Python objects; got dtype {dtype}")
    data = read_rest(file, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(file)
    if version != (1, 0):  # the later versions only add headers longer than NumPy itself believes
        raise ValueError(f"expected version 1.0 of the .npy format; got {version[0]}.{version[1]}")
    try:
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
    except _HEADER_DAMAGE as error:
        raise ValueError(f"the .npy header is damaged: {type(error).__name__}") from error
    if any(size < 0 for size in shape):
        raise ValueError(f"expected a shape without negative sizes; got {shape}")
    return shape, fortran_order, dtype
