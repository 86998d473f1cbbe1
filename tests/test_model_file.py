"""Model files: what is written is read again, and what is none is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from twolayer import NumpyNet
from twolayer.data.encoding import InputEncoder, TargetEncoder
from twolayer.model_file import Model, load_model, probabilities, save_model
from twolayer.training.results import History

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

ROWS = np.arange(20)
X = np.random.default_rng(0).normal(3.0, 5.0, (20, 4))


def model(dtype: str = "float32", bias: bool = True) -> Model:
    inputs = InputEncoder.of(X, ROWS[:15])
    target = TargetEncoder.of(np.array(["no", "yes"] * 10), ROWS)
    return Model(
        NumpyNet(4, 5, 2, "gelu", bias=bias, dtype=dtype),
        inputs,
        target,
        {"lr": 0.1},
        History(loss=[1 / 3, float("nan")], best_epoch=0),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_model_is_read_as_it_was_written(dtype: str, bias: bool, tmp_path: Path) -> None:
    written = model(dtype, bias)
    save_model(tmp_path / "m.safetensors", written, {"more": np.ones(3)})
    read = load_model(tmp_path / "m.safetensors")
    assert read.net.activation == "gelu"
    assert read.net.parameters().keys() == written.net.parameters().keys()
    for name, array in written.net.parameters().items():
        np.testing.assert_array_equal(read.net.parameters()[name], array)
        assert read.net.parameters()[name].dtype == dtype
    for name in ("mean", "scale"):
        np.testing.assert_array_equal(getattr(read.inputs, name), getattr(written.inputs, name))  # to the bit
    assert read.target.classes == ("no", "yes")
    assert (read.training, read.history.best_epoch) == ({"lr": 0.1}, 0)
    np.testing.assert_array_equal(read.history.loss, written.history.loss)
    np.testing.assert_array_equal(read.predict(X), written.predict(X))
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_predictions_are_of_scaled_inputs_and_probabilities_sum_to_one() -> None:
    found = model()
    scaled = ((X - X[:15].mean(axis=0)) / X[:15].std(axis=0)).astype(np.float32)
    np.testing.assert_allclose(found.outputs(X), found.net(scaled), rtol=1e-5)
    chances = probabilities(1000 * found.outputs(X))
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    np.testing.assert_array_equal(np.array(["no", "yes"])[chances.argmax(axis=1)], found.predict(X))


def test_sparse_rows_are_predicted_as_dense_ones() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    x = np.where(np.abs(X) > 4, X, 0)
    matrix = sparse.csr_matrix(x)
    inputs = InputEncoder.of(matrix, ROWS)
    np.testing.assert_allclose(inputs.scale, x.std(axis=0))
    assert not inputs.mean.any()  # zeros stay zeros
    found = Model(NumpyNet(4, 5, 2), inputs, model().target)
    np.testing.assert_allclose(found.outputs(matrix), found.outputs(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "pt"}, "expected a model file of twolayer's; got safetensors of something else"),
        ({"format_version": "2"}, "expected version 1 of the format; got 2: a newer twolayer's?"),
        ({"activation": "step"}, "damaged: .*activation must be one of"),
        ({"inputs": "{"}, "expected a model file; it is damaged"),
        ({"inputs": json.dumps({"features": 3, "columns": None, "mean": 0, "scale": 1})}, "it is damaged"),
        ({"history": json.dumps({"losses": []})}, "it is damaged"),
        ({"target": None}, "it is damaged: KeyError"),
    ],
)
def test_what_is_no_model_is_refused_by_name(change: dict[str, str | None], message: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "m.safetensors"
    save_model(path, model())
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    metadata = {name: text for name, text in {**metadata, **change}.items() if text is not None}
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=f"m.safetensors: .*{message}"):
        load_model(path)


def test_weights_that_do_not_meet_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "m.safetensors"
    save_model(path, model())
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for name, array in {"0.weight": np.ones((5, 3), np.float32), "2.weight": np.ones((2, 9), np.float32)}.items():
        save_file({**weights, name: array}, path, metadata)
        with pytest.raises(ValueError, match=r"m\.safetensors: expected a model file; it is damaged"):
            load_model(path)
    save_file({"0.weight": weights["0.weight"]}, path, metadata)
    with pytest.raises(ValueError, match="it has no weights"):
        load_model(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model())
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m\.safetensors: expected a model file; it is damaged, or"):
            load_model(path)
