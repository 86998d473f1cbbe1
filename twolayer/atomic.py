"""Files that appear whole or not at all, whenever the process, or the machine, is stopped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_PART = ".part"


@contextmanager
def replacing(path: Path, *, text: bool = False) -> Iterator[IO[Any]]:
    """Open a file that takes the place of ``path`` when the block ends, and is dropped when the block raises.

    Until then ``path`` holds what it held. The content reaches the disk before the name does (fsync, rename), so a
    loss of power leaves the old file or the new one too. ``text``: UTF-8, line ends as written. A link stays one.
    ``FileExistsError`` where ``path`` is a folder or a device.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: expected a file or nothing there, to write to; it is something else")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
    os.close(descriptor)
    part = Path(name)
    try:
        kind: dict[str, Any] = {"mode": "w", "encoding": "utf-8", "newline": ""} if text else {"mode": "wb"}
        with open(part, **kind) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(_usual_mode(path))
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Make ``data`` the content of ``path``, at once."""
    with replacing(path) as file:
        file.write(data)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes had begun to write for ``path``; none may be writing it now."""
    for part in path.parent.glob(f".{_literal(path.name)}.*{_PART}"):
        part.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """``name`` as a pattern of glob that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _usual_mode(path: Path) -> int:
    """The permissions of the file that is replaced, or those that the user's umask gives a new one."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        umask = os.umask(0)  # there is no way to read it alone
        os.umask(umask)
        return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    """Have the renaming itself reach the disk; Windows has no such call, and needs none."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
