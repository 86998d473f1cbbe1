"""What every reader shares: opening a file gzipped or not, bounded reads, and errors that name the file."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
MAX_UNPACKED_BYTES = 1 << 30  # per array: a small compressed file must not be able to fill the memory; MNIST has 47 MB

# NotImplementedError is what zipfile says to a version or an encryption that no zip has.
_DAMAGE = (ValueError, EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError)


class Readable(Protocol):
    """The one method the readers need of a file, a gzip or zip member, or an HTTP response."""

    def read(self, size: int, /) -> bytes: ...


def as_path(path: str | PathLike[str]) -> Path:
    """Return ``path`` as a :class:`Path` with ``~`` expanded; ``TypeError`` when it is something else."""
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be a string or a path; got {type(path).__name__}")
    return Path(path).expanduser()


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes the readers raise into one ``ValueError`` that begins with its path."""
    try:
        yield
    except _DAMAGE as error:
        message = str(error).strip()
        raise ValueError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from error


@contextmanager
def open_decompressed(path: Path) -> Iterator[Readable]:
    """Open ``path`` for reading; gzip is told by its first two bytes, since browsers unpack a .gz and keep its name."""
    with path.open("rb") as raw:
        if raw.peek(2)[:2] == GZIP_MAGIC:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
        else:
            yield raw


def chunks(file: Readable, limit: int) -> Iterator[bytes]:
    """Yield the bytes of ``file`` a chunk at a time, ``limit`` bytes at most."""
    while limit > 0 and (chunk := file.read(min(limit, CHUNK_BYTES))):
        limit -= len(chunk)
        yield chunk


def read_rest(file: Readable, size: int) -> bytearray:
    """Return the rest of ``file``, which must be ``size`` bytes. What is not there is never allocated."""
    data = bytearray()
    for chunk in chunks(file, size + 1):  # the byte more finds trailing bytes, and makes gzip check its CRC at the end
        data += chunk
    if len(data) < size:
        raise ValueError(f"expected {size} bytes of data; got {len(data)}: the file is truncated")
    if len(data) > size:
        raise ValueError(f"expected {size} bytes of data; got more: bytes trail")
    return data
