"""Where MNIST is looked for, the digits that stand in for it, and the download."""

from __future__ import annotations

import gzip
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from data_files import (
    NAMES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    assert_holds,
    flipped,
    idx_bytes,
    small_arrays,
    write_idx_folder,
)

from twolayer.data import (
    DatasetNotFoundError,
    DownloadError,
    cache_folder,
    digits_as_mnist,
    download,
    download_mnist,
    load_mnist,
    load_mnist_or_digits,
    load_npy,
)
from twolayer.data.dataset import PARTS
from twolayer.data.digits import enlarged


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, an empty cache, no ``$TWOLAYER_DATA`` and no mirrors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TWOLAYER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "MIRRORS", ())
    return tmp_path


# --- the search -----------------------------------------------------------------------------------


def test_search_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(cache_folder(), small_arrays(5))
    assert load_mnist().source == str(nowhere / "cache" / "twolayer" / "mnist")
    write_idx_folder(nowhere / "data" / "mnist", small_arrays(6))
    assert load_mnist().source == str(Path("data", "mnist"))
    monkeypatch.setenv("TWOLAYER_DATA", str(write_idx_folder(nowhere / "environment", small_arrays(7))))
    assert load_mnist().source == str(nowhere / "environment")
    explicit = write_idx_folder(nowhere / "explicit", small_arrays(8))
    assert load_mnist(explicit).source == str(explicit)
    assert load_mnist(str(explicit)).x_train.shape == (8, 28, 28)


def test_nothing_above_the_current_directory_is_read(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(nowhere / "data" / "mnist", small_arrays())
    (nowhere / "below").mkdir()
    monkeypatch.chdir(nowhere / "below")
    with pytest.raises(DatasetNotFoundError):
        load_mnist(download=False)


def test_not_found_lists_every_place_and_reason(nowhere: Path) -> None:
    incomplete = write_idx_folder(nowhere / "data" / "mnist", small_arrays())
    (incomplete / f"{TEST_LABELS}.gz").unlink()
    with pytest.raises(DatasetNotFoundError) as error:
        load_mnist()
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  - $TWOLAYER_DATA: not set",
        f"  - {Path('data', 'mnist')}: expected {TEST_LABELS}[.gz], or mnist.npz, or mnist.npy; not there",
        f"  - {cache_folder()}: no such file or folder",
        f"  - download: no mirror to get {TRAIN_IMAGES}.gz from",
    ]


def test_a_given_path_that_is_not_there_is_an_error(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(nowhere / "data" / "mnist", small_arrays())
    for load in (load_mnist, load_mnist_or_digits):
        with pytest.raises(FileNotFoundError, match="absent: no such file or folder") as error:
            load(nowhere / "absent")
        assert not isinstance(error.value, DatasetNotFoundError)
    monkeypatch.setenv("TWOLAYER_DATA", str(nowhere / "absent"))
    for load in (load_mnist, load_mnist_or_digits):
        with pytest.raises(FileNotFoundError, match=r"^\$TWOLAYER_DATA: .*absent: no such file or folder"):
            load()


def test_a_found_folder_that_is_damaged_is_an_error_not_skipped(nowhere: Path) -> None:
    write_idx_folder(cache_folder(), small_arrays())
    folder = write_idx_folder(nowhere / "data" / "mnist", small_arrays(), "")
    (folder / TRAIN_LABELS).write_bytes(b"damage")
    with pytest.raises(ValueError, match=TRAIN_LABELS):
        load_mnist_or_digits()


@pytest.mark.parametrize("load", [load_mnist, load_npy])
def test_path_of_a_wrong_type(load: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="path must be a string or a path; got int"):
        load(3)


def test_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert cache_folder().is_absolute()
    assert "somewhere" not in cache_folder().parts


# --- the digits that stand in ---------------------------------------------------------------------


def test_digits_are_stratified_whole_and_fixed() -> None:
    data, again, other = digits_as_mnist(), digits_as_mnist(), digits_as_mnist(seed=1)
    assert data.x_train.shape == (len(data.y_train), 28, 28)
    assert len(data.y_train) + len(data.y_test) == 1797
    total = np.bincount(np.concatenate([data.y_train, data.y_test]))
    np.testing.assert_allclose(np.bincount(data.y_test) / total, 0.2, atol=0.003)
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(data, part), getattr(again, part))
    assert not np.array_equal(data.y_train, other.y_train)


def test_digits_are_enlarged_bilinearly() -> None:
    flat, ramp = np.full((8, 8), 16.0), np.tile(np.arange(8.0), (8, 1))
    large_flat, large_ramp = enlarged(np.stack([flat, ramp]))
    assert (large_flat == 255).all()
    centres = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)  # on a ramp, the value is the place
    np.testing.assert_array_equal(large_ramp, np.tile(np.rint(centres * 255 / 16), (28, 1)))
    np.testing.assert_array_equal(enlarged(ramp.T[None])[0], large_ramp.T)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install 'twolayer\[demo\]'"):
        digits_as_mnist()


def test_digits_are_used_aloud(nowhere: Path) -> None:
    said: list[str] = []
    data = load_mnist_or_digits(notify=said.append)
    assert len(data.y_train) + len(data.y_test) == 1797
    (message,) = said
    assert message.startswith("MNIST was not found. Looked in:\n  - $TWOLAYER_DATA: not set\n")
    assert message.endswith("Using scikit-learn's 8×8 digits, scaled to 28×28 instead.")
    with pytest.warns(UserWarning, match="MNIST was not found"):
        load_mnist_or_digits()


def test_digits_are_not_used_where_mnist_is(nowhere: Path) -> None:
    write_idx_folder(nowhere / "data" / "mnist", small_arrays())
    assert_holds(load_mnist_or_digits(notify=pytest.fail), small_arrays())


# --- the download ---------------------------------------------------------------------------------


class Mirrors(ThreadingHTTPServer):
    """Serves the small data set, one folder per way a mirror can behave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.files = {f"{name}.gz": gzip.compress(idx_bytes(a)) for name, a in zip(NAMES, small_arrays(), strict=True)}
        self.requests: list[str] = []
        self.closing = threading.Event()

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}"


class MirrorHandler(BaseHTTPRequestHandler):
    server: Mirrors

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        _, behaviour, file = self.path.split("/")
        body = self.server.files[file]
        if behaviour == "missing":
            return self.send_error(404)
        if behaviour == "silent":
            self.server.closing.wait(20)
            return None
        if behaviour == "other":
            body = gzip.compress(b"another file")
        elif behaviour == "damaged":
            body = flipped(body, len(body) - 5)
        self.send_response(200)
        if behaviour != "unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if behaviour == "cut" else body)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: pytest shows failures, not requests."""


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirrors]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sums = [hashlib.sha256(idx_bytes(array)).hexdigest() for array in small_arrays()]
    monkeypatch.setattr(download, "SHA256", dict(zip(NAMES, sums, strict=True)))
    server = Mirrors()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_then_cache(nowhere: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MIRRORS", (mirrors.url("good"),))
    seen: list[tuple[str, int, int | None]] = []
    assert_holds(load_mnist(progress=lambda *args: seen.append(args)), small_arrays())
    whole = [(file, len(body), len(body)) for file, body in mirrors.files.items()]
    assert [entry for entry in seen if entry[1] == entry[2]] == whole
    assert sorted(path.name for path in cache_folder().iterdir()) == sorted(mirrors.files)
    asked = len(mirrors.requests)
    assert_holds(load_mnist(), small_arrays())
    assert len(mirrors.requests) == asked == 4


def test_download_only_what_is_missing(nowhere: Path, mirrors: Mirrors) -> None:
    write_idx_folder(nowhere / "folder", small_arrays())
    (nowhere / "folder" / f"{TEST_LABELS}.gz").unlink()
    download_mnist(nowhere / "folder", mirrors=[mirrors.url("good")])
    assert mirrors.requests == [f"/good/{TEST_LABELS}.gz"]


def test_download_is_not_tried_when_refused(nowhere: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MIRRORS", (mirrors.url("good"),))
    with pytest.raises(DatasetNotFoundError):
        load_mnist(download=False)
    assert mirrors.requests == []


BAD_MIRRORS = {
    "missing": "404",
    "other": "expected sha256 [0-9a-f]{64}; got",
    "damaged": "CRC check failed",
    "cut": "the connection ended after|IncompleteRead",
    "silent": "timed out",
}


@pytest.mark.parametrize("behaviour", BAD_MIRRORS)
def test_bad_mirror_is_named_and_leaves_nothing(nowhere: Path, mirrors: Mirrors, behaviour: str) -> None:
    with pytest.raises(DownloadError, match=BAD_MIRRORS[behaviour]) as error:
        download_mnist(nowhere / "folder", mirrors=[mirrors.url(behaviour)], timeout=0.2)
    assert str(error.value).startswith(mirrors.url(behaviour))
    assert list((nowhere / "folder").iterdir()) == []


@pytest.mark.parametrize("behaviour", BAD_MIRRORS)
def test_next_mirror_is_asked(nowhere: Path, mirrors: Mirrors, behaviour: str) -> None:
    download_mnist(nowhere / "folder", mirrors=[mirrors.url(behaviour), mirrors.url("good")], timeout=0.2)
    assert_holds(load_mnist(nowhere / "folder"), small_arrays())


def test_server_that_does_not_say_the_size(nowhere: Path, mirrors: Mirrors) -> None:
    totals = set()
    download_mnist(nowhere, mirrors=[mirrors.url("unsized")], progress=lambda _, __, total: totals.add(total))
    assert totals == {None}
    assert_holds(load_mnist(nowhere), small_arrays())


def test_endless_answer_is_cut_off(nowhere: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 100)
    with pytest.raises(DownloadError, match="ended after 100"):
        download_mnist(nowhere / "folder", mirrors=[mirrors.url("good")])


def test_download_failure_names_every_mirror(nowhere: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MIRRORS", (mirrors.url("missing"), mirrors.url("other")))
    with pytest.raises(DatasetNotFoundError, match=r"download: .*/missing/.*404.*/other/.*expected sha256"):
        load_mnist()


def test_folder_that_cannot_be_made(nowhere: Path) -> None:
    (nowhere / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot make the folder"):
        download_mnist(nowhere / "file" / "folder", mirrors=[])


def test_interrupted_download_leaves_nothing(nowhere: Path, mirrors: Mirrors) -> None:
    def interrupt(name: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_mnist(nowhere / "folder", mirrors=[mirrors.url("good")], progress=interrupt)
    assert list((nowhere / "folder").iterdir()) == []
