"""Reading tables and encoding them: what the commands' own tests do not come by."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from twolayer.data.encoding import InputEncoder, TargetEncoder
from twolayer.data.idx import read_idx
from twolayer.data.table import Reading, format_of, read_table

ROWS = np.arange(6)


@pytest.mark.parametrize(("code", "dtype"), [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_idx_of_every_element_type(code: int, dtype: str, tmp_path: Path) -> None:
    array = np.arange(12).reshape(3, 2, 2).astype(dtype)
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, code, 3, 3, 2, 2) + array.tobytes())
    assert format_of(path) == "idx"
    read = read_idx(path)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(read, array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the file is truncated"):
        read_idx(path)


def test_positions_of_columns_are_those_of_the_file(tmp_path: Path) -> None:
    array = np.arange(24.0).reshape(6, 4)
    np.save(tmp_path / "a.npy", array)
    table = read_table(tmp_path / "a.npy", Reading(targets=("1",), drop=("-1", "0")), targets=True)
    np.testing.assert_array_equal(table.inputs, array[:, [2]])
    np.testing.assert_array_equal(table.targets, array[:, 1])
    several = read_table(tmp_path / "a.npy", Reading(targets=("-1", "0")), targets=True)
    np.testing.assert_array_equal(several.targets, array[:, [3, 0]])
    for features, expected in ((3, array[:, [0, 2, 3]]), (4, array)):  # with the target among its columns, or without
        reading = Reading(targets=("1",), features=features)
        np.testing.assert_array_equal(read_table(tmp_path / "a.npy", reading, targets=False).inputs, expected)


def test_inputs_beside_targets_in_an_archive(tmp_path: Path) -> None:
    arrays = {"x_train": np.ones((3, 2)), "y_train": np.zeros(3), "x_test": np.ones((2, 2)), "y_test": np.zeros(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(read_table(tmp_path / "a.npz", Reading(), targets=True)) == 3
    assert len(read_table(tmp_path / "a.npz", Reading(targets=("y_test",)), targets=True)) == 2


def test_a_missing_number_of_an_array_is_named_beyond_the_first_chunk() -> None:
    x = np.zeros((10_000, 3), np.float32)
    x[9_000, 2] = np.nan
    with pytest.raises(ValueError, match="column 2 has no value in row 9001"):
        InputEncoder.of(x, np.arange(len(x)))


def test_scaling_is_that_of_the_training_rows_and_spares_constants() -> None:
    x = np.random.default_rng(0).normal(5.0, 3.0, (9_000, 3))
    x[:, 1] = 0.1
    training = np.arange(0, 9_000, 2)
    encoder = InputEncoder.of(x, training)
    encoded = encoder.encode(x, np.float64)
    np.testing.assert_allclose(encoded[training].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(encoded[training].std(axis=0), [1, 0, 1], atol=1e-12)
    assert encoder.scale[1] == 1
    again = InputEncoder.from_json(encoder.to_json())
    np.testing.assert_array_equal(again.encode(x, np.float64), encoded)
    with pytest.raises(ValueError, match="expected 3 columns of inputs; got 2"):
        encoder.encode(x[:, :2], np.float64)


def test_the_kinds_of_columns_that_pandas_has() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {
            "nullable": pandas.array([1, 2, 3, 4, 5, 6], dtype="Int64"),
            "flag": pandas.array([True, False] * 3, dtype="boolean"),
            "level": pandas.Categorical([2, 1, 2, 1, 2, 1]),
            "text": pandas.array(["b", "a"] * 3, dtype="string"),
        }
    )
    encoder = InputEncoder.of(table, ROWS, "none")
    assert encoder.columns is not None
    assert [column.categories for column in encoder.columns] == [None, None, ("1", "2"), ("a", "b")]
    encoded = encoder.encode(table[["text", "level", "flag", "nullable"]], np.float32)  # found by their names
    np.testing.assert_array_equal(encoded[:2], [[1, 1, 0, 1, 0, 1], [2, 0, 1, 0, 1, 0]])
    for name, classes in {"nullable": None, "flag": (False, True), "level": (1, 2), "text": ("a", "b")}.items():
        target = TargetEncoder.of(table[[name]], ROWS, "none")
        assert target.classes == classes
        if classes is not None:
            np.testing.assert_array_equal(target.decode(np.eye(2)[target.numbered(table[[name]])]), table[name])
    table.loc[3, "nullable"] = pandas.NA
    for of in (InputEncoder.of, TargetEncoder.of):
        with pytest.raises(ValueError, match="column 'nullable' has no value in row 4"):
            of(table[["nullable"]], ROWS)


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (np.array([0, 1, 0, 1, 0, 1]), (0, 1)),
        (np.array([0.0, 1, 0, 1, 0, 1]), None),
        (np.array([0.5, 1, 0, 1, 0, 1]), None),
        (np.array([1, 2, 3, 4, 5, 6]), None),  # each is alone
        (np.arange(6000) % 101, None),
        (np.arange(6000) % 100, tuple(range(100))),
        (np.array(["1", "2"] * 3), ("1", "2")),
        (np.array([True, False] * 3), (False, True)),
        (np.ones((6, 2), int), None),
    ],
)
def test_classes_or_values(targets: np.ndarray, classes: tuple[object, ...] | None) -> None:
    encoder = TargetEncoder.of(targets, ROWS)
    assert encoder.classes == classes
    assert encoder.task == ("regression" if classes is None else "classification")
    assert TargetEncoder.from_json(encoder.to_json()).classes == classes


def test_targets_that_are_neither_are_refused() -> None:
    with pytest.raises(ValueError, match="targets must be numbers, texts or truth values; got dtype datetime64"):
        TargetEncoder.of(np.array(["2020-01-01"] * 6, "datetime64[D]"), ROWS)
    with pytest.raises(ValueError, match="targets of a regression must be numbers"):
        TargetEncoder.of(np.array(["a", "b"] * 3), ROWS, task="regression")
    with pytest.raises(ValueError, match="a classification has one target"):
        TargetEncoder.of(np.ones((6, 2)), ROWS, task="classification")
    with pytest.raises(ValueError, match="targets must be finite; row 2 holds"):
        TargetEncoder.of(np.array([0.0, np.nan, 1, 2, 3, 4]), ROWS)
