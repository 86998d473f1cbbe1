"""The IDX format of the original MNIST files, plain or gzipped.

A file is a big-endian header, two zero bytes, the element type, the number of dimensions and one uint32 per dimension,
and then the elements in C order. Source: https://yann.lecun.com/exdb/mnist ("The IDX file format").
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from .files import MAX_UNPACKED_BYTES, Readable, damage_named, open_decompressed, read_rest

_UNSIGNED_BYTE = 0x08
_DTYPES = {_UNSIGNED_BYTE: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CONTENT = {1: "labels", 3: "images"}  # what a file of so many dimensions holds


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file called ``name`` (such as ``train-images-idx3-ubyte``) in one of its usual spellings, or None."""
    dotted = name.replace("-idx", ".idx")
    candidates = (folder / (spelling + suffix) for spelling in (name, dotted) for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path, ndim: int | None = None) -> np.ndarray:
    """Return the array in the IDX file ``path``: any, or, with ``ndim``, bytes of so many dimensions as MNIST's are.

    ``ValueError`` when it holds another, or is truncated.
    """
    with damage_named(path), open_decompressed(path) as file:
        shape, dtype = _read_header(file, ndim)
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_UNPACKED_BYTES:
            raise ValueError(f"expected at most {MAX_UNPACKED_BYTES} bytes of data; got {size}, shape {shape}")
        array = np.frombuffer(read_rest(file, size), dtype).reshape(shape)
        return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _read_header(file: Readable, ndim: int | None) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        expected = "00 00, a type and a number of dimensions" if ndim is None else f"00 00 08 {ndim:02x}"
        raise ValueError(f"expected an IDX header, {expected}; got {magic.hex(' ') or 'an empty file'}")
    if ndim is not None:
        _check_mnist(magic, ndim)
    if magic[2] not in _DTYPES:
        known = ", ".join(f"0x{code:02x}" for code in _DTYPES)
        raise ValueError(f"expected elements of a type of {known}; got type 0x{magic[2]:02x}")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"expected {4 * magic[3]} bytes of dimensions; got {len(sizes)}: the file is truncated")
    return struct.unpack(f">{magic[3]}I", sizes), np.dtype(_DTYPES[magic[2]])


def _check_mnist(magic: bytes, ndim: int) -> None:
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(f"expected elements of type 0x08 (unsigned byte); got type 0x{magic[2]:02x}")
    if magic[3] != ndim:
        came = _CONTENT.get(magic[3], "neither images nor labels")
        raise ValueError(f"expected {ndim} dimensions ({_CONTENT[ndim]}); got {magic[3]} ({came})")
