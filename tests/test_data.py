"""The data readers: every format they read, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_files import (
    CORE,
    NAMES,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    assert_holds,
    flipped,
    idx_bytes,
    npy_of_pickle,
    object_array,
    plain_npy,
    small_arrays,
    write_idx_folder,
    write_npy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from twolayer.data import (
    download,
    load_mnist,
    load_npy,
)
from twolayer.data.dataset import PARTS
from twolayer.data.idx import read_idx

FEW = settings(max_examples=100, deadline=None, derandomize=True)


# --- the formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
def test_idx_folder(tmp_path: Path, suffix: str, dotted: bool) -> None:
    arrays = small_arrays()
    data = load_mnist(write_idx_folder(tmp_path, arrays, suffix, dotted))
    assert_holds(data, arrays)
    assert data.source == str(tmp_path)


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    arrays = small_arrays()
    write_idx_folder(tmp_path, arrays)
    unpacked = tmp_path / f"{TRAIN_IMAGES}.gz"
    unpacked.write_bytes(gzip.decompress(unpacked.read_bytes()))
    assert_holds(load_mnist(tmp_path), arrays)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("as_folder", [False, True])
def test_npz(tmp_path: Path, save: Callable[..., None], as_folder: bool) -> None:
    arrays = small_arrays()
    path = tmp_path / "mnist.npz"
    save(path, **dict(zip(PARTS, arrays, strict=True)))
    assert_holds(load_mnist(tmp_path if as_folder else path), arrays)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_tutorial_npy(tmp_path: Path, protocol: int, shape: tuple[int, ...]) -> None:
    arrays = small_arrays()
    path = write_npy(tmp_path / "mnist.npy", object_array(list(arrays), shape), protocol)
    assert_holds(load_mnist(path), arrays)
    for array, expected in zip(load_npy(path).flat, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_np_save_itself(tmp_path: Path) -> None:
    arrays = small_arrays()
    np.save(tmp_path / "mnist.npy", object_array(list(arrays)), allow_pickle=True)
    assert_holds(load_mnist(tmp_path), arrays)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickles_of_both_numpy_generations(tmp_path: Path, module: bytes) -> None:
    arrays = small_arrays()
    data = pickle.dumps(object_array(list(arrays)), 2).replace(CORE.encode(), module)
    path = tmp_path / "mnist.npy"
    path.write_bytes(npy_of_pickle(data))
    assert_holds(load_mnist(path), arrays)


def test_flat_images_and_other_number_types(tmp_path: Path) -> None:
    arrays = small_arrays()
    stored = [
        arrays[0].reshape(-1, 784).astype(np.float32),
        arrays[1].astype(">i4"),
        arrays[2].astype(np.int64),
        arrays[3],
    ]
    assert_holds(load_mnist(write_npy(tmp_path / "mnist.npy", object_array(stored))), arrays)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "file"


@FEW
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=9)), st.booleans())
def test_idx_round_trip(scratch: Path, array: np.ndarray, packed: bool) -> None:
    scratch.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    result = read_idx(scratch, array.ndim)
    assert result.shape == array.shape
    np.testing.assert_array_equal(result, array)


NUMBERS = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes(sizes=(16, 32, 64))
)
ARRAYS = hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@FEW
@given(ARRAYS, st.sampled_from("CF"))
def testplain_npy_round_trip(scratch: Path, array: np.ndarray, order: str) -> None:
    with scratch.open("wb") as file:
        np.save(file, np.asarray(array, order=order))
    assert_same(load_npy(scratch), array)


@FEW
@given(
    st.lists(ARRAYS | st.integers(-(2**40), 2**40) | st.none() | st.text(max_size=5) | ARRAYS.map(lambda a: a.sum())),
    st.sampled_from([2, 3, 4]),
    st.sampled_from("CF"),
)
def test_object_npy_round_trip(scratch: Path, items: list[object], protocol: int, order: str) -> None:
    items = [np.asarray(item, order=order) if isinstance(item, np.ndarray) else item for item in items]
    result = load_npy(write_npy(scratch, object_array(items), protocol))
    assert result.shape == (len(items),)
    for item, expected in zip(result, object_array(items), strict=True):
        assert type(item) is type(expected)
        if isinstance(expected, (np.ndarray, np.generic)):
            assert_same(item, expected)
        else:
            assert item == expected


def assert_same(array: np.ndarray | np.generic, expected: np.ndarray | np.generic) -> None:
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert array.tobytes() == expected.tobytes()  # NaNs and signed zeros too


def test_fortran_ordered_object_array(tmp_path: Path) -> None:
    array = np.asfortranarray(object_array([1, 2, 3, 4, 5, 6], (2, 3)))
    np.testing.assert_array_equal(load_npy(write_npy(tmp_path / "f.npy", array)), array)


def test_loaded_arrays_can_be_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros(3))
    plain = load_npy(tmp_path / "plain.npy")
    (nested,) = load_npy(write_npy(tmp_path / "object.npy", object_array([np.zeros(3)])))
    for array in (plain, nested):
        array += 1
        np.testing.assert_array_equal(array, np.ones(3))


def test_real_mnist() -> None:
    if not os.environ.get("TWOLAYER_DATA"):
        pytest.skip("TWOLAYER_DATA does not say where MNIST is")
    data = load_mnist()
    assert data.x_train.shape == (60000, 28, 28)
    assert data.x_test.shape == (10000, 28, 28)
    assert np.bincount(data.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    for name, array in zip(NAMES, (data.x_train, data.y_train, data.x_test, data.y_test), strict=True):
        assert hashlib.sha256(idx_bytes(array.astype(np.uint8))).hexdigest() == download.SHA256[name]


# --- files that are wrong -------------------------------------------------------------------------

GOOD_IMAGES, GOOD_LABELS = (idx_bytes(array) for array in small_arrays()[:2])
WRONG_IDX = {
    "empty": (TRAIN_IMAGES, b"", "got an empty file"),
    "not IDX": (TRAIN_IMAGES, b"<html>not found</html>", "expected an IDX header"),
    "labels for images": (TRAIN_IMAGES, GOOD_LABELS, r"expected 3 dimensions \(images\); got 1 \(labels\)"),
    "images for labels": (TRAIN_LABELS, GOOD_IMAGES, r"expected 1 dimensions \(labels\); got 3 \(images\)"),
    "float elements": (TRAIN_IMAGES, GOOD_IMAGES[:2] + b"\x0d" + GOOD_IMAGES[3:], "expected elements of type 0x08"),
    "half a header": (TRAIN_IMAGES, GOOD_IMAGES[:9], "expected 12 bytes of dimensions; got 5"),
    "truncated": (TRAIN_IMAGES, GOOD_IMAGES[:-1], "expected 5488 bytes of data; got 5487: the file is truncated"),
    "trailing": (TRAIN_LABELS, GOOD_LABELS + b"\0", "expected 7 bytes of data; got more"),
    "27 by 28": (TRAIN_IMAGES, idx_bytes(np.zeros((7, 27, 28), np.uint8)), r"got shape \(7, 27, 28\)"),
    "no image": (TRAIN_IMAGES, idx_bytes(np.zeros((0, 28, 28), np.uint8)), r"n > 0; got shape \(0, 28, 28\)"),
    "fewer labels": (TRAIN_LABELS, idx_bytes(np.zeros(6, np.uint8)), "expected 7 labels, one per image; got 6"),
    "label 10": (TRAIN_LABELS, idx_bytes(np.array([0, 1, 2, 10, 4, 5, 6], np.uint8)), "0 to 9; got 10 at index 3"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("case", WRONG_IDX)
def test_wrong_idx(tmp_path: Path, case: str, suffix: str) -> None:
    name, data, message = WRONG_IDX[case]
    write_idx_folder(tmp_path, small_arrays(), suffix)
    path = tmp_path / (name + suffix)
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(ValueError, match=message) as error:
        load_mnist(tmp_path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "damage", [lambda data: flipped(data, -6 % len(data)), lambda data: data[:-9], lambda data: data[:5]]
)
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_idx_folder(tmp_path, small_arrays()) / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_mnist(tmp_path)


WRONG_PARTS = {
    "float labels": (1, lambda y: y.astype(np.float32), "y_train: expected labels as integers; got dtype float32"),
    "negative label": (3, lambda y: y.astype(np.int8) - 100, "y_test: expected labels 0 to 9; got -"),
    "one-hot labels": (1, lambda y: np.eye(10, dtype=np.uint8)[y], r"y_train: expected labels of shape \(n,\)"),
    "scaled pixels": (0, lambda x: x / np.float32(255), "x_train: expected whole numbers 0 to 255 as pixels"),
    "pixels below 0": (0, lambda x: x.astype(np.int16) - 1, "x_train: expected pixels from 0 to 255; got -1 to 254"),
    "NaN pixels": (2, lambda x: x * np.float32("nan"), "x_test: expected pixels from 0 to 255; got nan"),
    "bool pixels": (2, lambda x: x > 0, "x_test: expected pixels as integers or floats; got dtype bool"),
    "one row": (0, np.ravel, r"x_train: expected images of shape .* got shape \(5488,\)"),
}


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("case", WRONG_PARTS)
def test_wrong_arrays(tmp_path: Path, case: str, suffix: str) -> None:
    index, change, message = WRONG_PARTS[case]
    arrays = small_arrays()
    arrays[index] = change(arrays[index])
    path = tmp_path / f"mnist.{suffix}"
    if suffix == "npz":
        np.savez(path, **dict(zip(PARTS, arrays, strict=True)))
    else:
        write_npy(path, object_array(list(arrays)))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        load_mnist(path)


def test_npz_without_a_part(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=small_arrays()[0])
    with pytest.raises(ValueError, match=r"expected an array called y_train; got x_train\.npy"):
        load_mnist(path)


def test_npz_with_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    np.savez(path, **{part: np.array([None]) for part in PARTS})
    with pytest.raises(ValueError, match="expected an array without Python objects"):
        load_mnist(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_member_that_fails_its_crc(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for part, array in zip(PARTS, small_arrays(), strict=True):
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{part}.npy", file.getvalue())
    path.write_bytes(flipped(path.read_bytes(), 3000))  # inside the pixels of x_train
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_mnist(path)


def test_npz_packed_in_another_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x_train.npy", b"")
    with pytest.raises(ValueError, match="expected x_train stored or deflated"):
        load_mnist(path)


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2)), object_array([np.zeros(2)] * 3), object_array([1, 2, 3, 4])],
    ids=["plain", "three", "numbers"],
)
def test_npy_that_is_not_four_arrays(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "mnist.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected an object array of four arrays"):
        load_mnist(path)


def test_single_idx_file_is_told_to_be_given_as_its_folder(tmp_path: Path) -> None:
    path = write_idx_folder(tmp_path, small_arrays(), "") / TRAIN_IMAGES
    with pytest.raises(ValueError, match="the folder of the four IDX files; got a file that begins 00 00 08 03"):
        load_mnist(path)


WRONG_NPY = {
    "empty": (b"", "EOF"),
    "zip": (b"PK\x03\x04 and so on", "magic string"),
    "version 3": (b"\x93NUMPY\x03\x00\x00\x00\x00\x00", "expected version 1.0 of the .npy format; got 3.0"),
    "trailing": (npy_of_pickle(pickle.dumps(object_array([1])), (1,)) + b"!", "1 bytes follow it"),
    "other shape": (
        npy_of_pickle(pickle.dumps(object_array([1])), (2,)),
        r"object array of shape \(2,\); got object, shape",
    ),
    "not an array": (npy_of_pickle(pickle.dumps("text")), "expected one NumPy array; got str"),
    "number array": (npy_of_pickle(pickle.dumps(np.zeros(4))), "expected an object array of shape"),
    "dictionary": (npy_of_pickle(pickle.dumps(object_array([{}])), (1,)), "got EMPTY_DICT"),
    "Python 2": (npy_of_pickle(b"\x80\x02U\x01a."), "got SHORT_BINSTRING"),
    "subclass": (npy_of_pickle(pickle.dumps(np.ma.masked_array([1]))), r"asks for 'numpy\.ma.*nothing was run"),
    "dates": (npy_of_pickle(pickle.dumps(object_array([np.zeros(1, "M8[s]")])), (1,)), "dtype; got 'M8'"),
}


def test_file_cut_anywhere(tmp_path: Path) -> None:
    """Wherever a file is cut, it is a ``ValueError``, never another exception and never a wrong array."""
    path = tmp_path / "mnist.npy"
    for whole in (npy_of_pickle(pickle.dumps(object_array([np.arange(9), 2])), (2,)), plain_npy(np.arange(9))):
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=re.escape(str(path))):
                load_npy(path)


@pytest.mark.parametrize("case", WRONG_NPY)
def test_wrong_npy(tmp_path: Path, case: str) -> None:
    data, message = WRONG_NPY[case]
    path = tmp_path / "wrong.npy"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_npy(path)
    assert str(error.value).startswith(f"{path}: ")


def raw_npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': __import__('os').getpid()}",
        b"{'descr': '|V0', 'fortran_order': False, 'shape': (9999999999999,)}",
        b"{[]: 1}",
        b"-" * 9000 + b"1",
        b"(" * 9000,
        b"\xff" * 50,
    ],
    ids=["negative", "objects inside", "code", "no size", "unhashable", "deep", "deeper", "binary"],
)
def test_hostile_npy_header(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "hostile.npy"
    path.write_bytes(raw_npy(header) + b"\0" * 8)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_npy(path)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with a few bytes replaced, removed or doubled."""
    edits = st.lists(
        st.tuples(
            st.integers(0, len(data) - 1), st.sampled_from(["set", "drop", "double"]), st.binary(min_size=1, max_size=1)
        )
    )

    def apply(edits: list[tuple[int, str, bytes]]) -> bytes:
        result = bytearray(data)
        for position, kind, byte in edits:
            result[position : position + 1] = {"set": byte, "drop": b"", "double": result[position : position + 1] * 2}[
                kind
            ]
        return bytes(result)

    return edits.map(apply)


def _npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **dict(zip(PARTS, small_arrays(1, 1), strict=True)))
    return file.getvalue()


@settings(FEW, max_examples=400)
@given(
    st.one_of(
        damaged(npy_of_pickle(pickle.dumps(object_array(list(small_arrays(1, 1))), 4))),
        damaged(npy_of_pickle(pickle.dumps(object_array(list(small_arrays(1, 1))), 2))),
        damaged(plain_npy(np.arange(9))),
        damaged(_npz_bytes()),
        damaged(idx_bytes(np.arange(9, dtype=np.uint8))),
        st.binary(max_size=99),
    )
)
def test_damage_is_a_value_error(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)
    for read in (load_npy, load_mnist, lambda path: read_idx(path, 1)):
        try:
            read(scratch)
        except ValueError as error:
            assert str(error).startswith(f"{scratch}: ")


def test_data_needs_no_torch() -> None:
    code = "import sys, twolayer.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
