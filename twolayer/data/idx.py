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
_CONTENT = {1: "labels", 3: "images"}  # what a file of so many dimensions holds


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file called ``name`` (such as ``train-images-idx3-ubyte``) in one of its usual spellings, or None."""
    dotted = name.replace("-idx", ".idx")
    candidates = (folder / (spelling + suffix) for spelling in (name, dotted) for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the uint8 array of ``ndim`` dimensions in the IDX file ``path``; ``ValueError`` when it holds another."""
    with damage_named(path), open_decompressed(path) as file:
        shape = _read_shape(file, ndim)
        size = math.prod(shape)
        if size > MAX_UNPACKED_BYTES:
            raise ValueError(f"expected at most {MAX_UNPACKED_BYTES} bytes of data; got {size}, shape {shape}")
        return np.frombuffer(read_rest(file, size), np.uint8).reshape(shape)


def _read_shape(file: Readable, ndim: int) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(f"expected an IDX header, 00 00 08 {ndim:02x}; got {magic.hex(' ') or 'an empty file'}")
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(f"expected elements of type 0x08 (unsigned byte); got type 0x{magic[2]:02x}")
    if magic[3] != ndim:
        came = _CONTENT.get(magic[3], "neither images nor labels")
        raise ValueError(f"expected {ndim} dimensions ({_CONTENT[ndim]}); got {magic[3]} ({came})")
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(f"expected {4 * ndim} bytes of dimensions; got {len(sizes)}: the file is truncated")
    return struct.unpack(f">{ndim}I", sizes)
