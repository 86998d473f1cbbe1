"""Fetches the four MNIST files into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from ..atomic import replacing
from .files import MAX_UNPACKED_BYTES, chunks, damage_named, open_decompressed
from .idx import find_idx

Progress = Callable[[str, int, "int | None"], None]  # file name, bytes so far, bytes in all when the server says so

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
# sha256 of each file uncompressed: mirrors may pack the same bytes differently. The order is that of dataset.PARTS.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MAX_FILE_BYTES = 32 << 20  # the largest is 10 MB


class DownloadError(OSError):
    """No mirror gave the file; the message has every mirror's reason."""


def cache_folder() -> Path:
    """Return where downloads are kept: ``twolayer/mnist`` in ``$XDG_CACHE_HOME`` or in the platform's cache folder."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification has relative paths ignored
        base = Path(xdg)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "twolayer" / "mnist"


def download_mnist(
    folder: Path, *, mirrors: Sequence[str] | None = None, progress: Progress | None = None, timeout: float = 10.0
) -> None:
    """Fetch those of the four MNIST files that ``folder`` lacks, each from the first mirror that has it right.

    A file appears under its name only when it is whole and its checksum is right. ``progress(name, done, total)`` is
    called as bytes come, ``total`` None when the server does not say. ``timeout`` is in seconds without a byte.
    ``DownloadError`` when no mirror gives a file, or ``folder`` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"cannot make the folder {folder}: {error}") from error
    for name, sha256 in SHA256.items():
        if find_idx(folder, name) is None:
            _download_file(f"{name}.gz", sha256, folder, MIRRORS if mirrors is None else mirrors, progress, timeout)


def _download_file(
    name: str, sha256: str, folder: Path, mirrors: Sequence[str], progress: Progress | None, timeout: float
) -> None:
    reasons = []
    for mirror in mirrors:
        url = f"{mirror}/{name}"
        try:
            _download_from(url, sha256, folder / name, progress, timeout)
            return
        except (OSError, HTTPException, ValueError) as error:
            reasons.append(f"{url}: {str(error) or type(error).__name__}")
    raise DownloadError("; ".join(reasons) or f"no mirror to get {name} from")


def _download_from(url: str, sha256: str, target: Path, progress: Progress | None, timeout: float) -> None:
    with replacing(target) as file, urllib.request.urlopen(url, timeout=timeout) as response:
        declared = response.headers.get("Content-Length")
        total = int(declared) if declared is not None else None
        done = 0
        for chunk in chunks(response, MAX_FILE_BYTES):
            done += file.write(chunk)
            if progress is not None:
                progress(target.name, done, total)
        if total is not None and done != total:
            raise ValueError(f"expected {total} bytes; the connection ended after {done}")
        file.flush()
        _check_sha256(Path(file.name), sha256)


def _check_sha256(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with damage_named(path), open_decompressed(path) as file:
        for chunk in chunks(file, MAX_UNPACKED_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ValueError(f"expected sha256 {expected}; got {digest.hexdigest()}")
