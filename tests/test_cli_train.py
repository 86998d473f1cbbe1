"""``twolayer train``, ``predict``, ``evaluate``, ``plot`` and ``info MODEL``, as users meet them with their files."""

from __future__ import annotations

import gzip
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_runs import subprocess_environment

from twolayer import cli
from twolayer.model_file import load_model

pandas = pytest.importorskip("pandas")
pytest.importorskip("safetensors")

ROWS = 240
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def frame(rows: int = ROWS, seed: int = 0) -> Any:
    """Passengers, of whom sex, class and age decide who survived and, less clearly, the fare."""
    draw = np.random.default_rng(seed)
    table = pandas.DataFrame(
        {
            "sex": draw.choice(["female", "male"], rows),
            "age": draw.integers(1, 80, rows).astype(float),
            "class": draw.choice([1, 2, 3], rows),
            "married": draw.random(rows) < 0.5,
        }
    )
    likely = 2.0 * (table["sex"] == "female") + (table["class"] == 1) - table["age"] / 60
    table["fare"] = np.round(100 / table["class"] + table["age"] / 4, 2)
    table["survived"] = np.where(likely > 0.7, "yes", "no")
    return table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    frame().to_csv("train.csv", index=False)
    frame(80, seed=1).to_csv("test.csv", index=False)
    return tmp_path


def command(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What the command prints with ``--json``, which must be all that it prints."""
    capsys.readouterr()
    assert command(*arguments, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out, parse_constant=pytest.fail)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr with which the command refuses, with exit code 2."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    try:
        code = command(*arguments)
    except SystemExit as stopped:  # argparse's
        code = stopped.code
    assert code == 2
    assert sorted(Path().rglob("*")) == before
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("twolayer")]
    assert len(errors) == 1
    return errors[0]


def in_own_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "twolayer", *map(str, arguments)]
    return subprocess.run(
        program, env=subprocess_environment(), capture_output=True, encoding="utf-8", timeout=120, **options
    )


def tensors(path: Path | str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def assert_same_tensors(one: Path | str, other: Path | str) -> None:
    found, expected = tensors(one), tensors(other)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# The road of a new user.


def test_classes_from_a_csv_to_predictions_in_another_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(
        capsys, "train", "train.csv", "--target", "survived", "--drop", "fare", "--epochs", 200, "--lr", 0.01
    )
    assert (found["task"], found["classes"], found["inputs"]) == ("classification", ["no", "yes"], 5)
    assert found["rows"] == {"training": 192, "validation": 48}
    assert len(found["loss"]) == len(found["val_loss"]) == len(found["val_accuracy"]) == found["epochs"] == 200
    assert found["validation"]["accuracy"] == found["val_accuracy"][-1] > 0.85

    done = in_own_process("predict", "model.safetensors", "test.csv", "--out", "predictions.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    predicted = pandas.read_csv("predictions.csv")
    assert list(predicted.columns) == ["survived"]
    truth = pandas.read_csv("test.csv")["survived"]
    accuracy = float((predicted["survived"] == truth).mean())

    measured = as_json(capsys, "evaluate", "model.safetensors", "test.csv", "--picture", "confusion.png")
    assert measured["accuracy"] == accuracy > 0.85
    assert np.sum(measured["confusion"]) == 80
    assert measured["recall"][1] == pytest.approx(float((predicted["survived"] == "yes")[truth == "yes"].mean()))
    assert (folder / "confusion.png").read_bytes().startswith(PNG_MAGIC)


def test_values_are_learnt_standardised_and_predicted_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--target", "fare", "--drop", "survived", "--epochs", 200, "--lr", 0.01, "--patience", 20)
    found = as_json(capsys, "train", "train.csv", *options)
    assert (found["task"], found["classes"]) == ("regression", None)
    assert found["val_accuracy"] == []
    assert found["best_epoch"] <= found["epochs"] - 1
    assert found["validation"]["r2"] > 0.9
    measured = as_json(capsys, "evaluate", "model.safetensors", "test.csv", "--picture", "fares.png")
    assert measured["r2"] > 0.9
    assert (folder / "fares.png").read_bytes().startswith(PNG_MAGIC)
    assert command("predict", "model.safetensors", "test.csv", "--out", "p.parquet") == 0
    predicted, truth = pandas.read_parquet("p.parquet")["fare"], pandas.read_csv("test.csv")["fare"]
    assert float(np.sqrt(((predicted - truth) ** 2).mean())) == pytest.approx(measured["rmse"])


def test_the_weights_load_in_torch_under_its_own_names(folder: Path) -> None:
    from torch import nn, no_grad, tensor

    from twolayer import TwoLayerNet

    torch_files = pytest.importorskip("safetensors.torch")
    assert command("train", "train.csv", "--target", "survived", "--hidden", 7, "--activation", "tanh") == 0
    weights = torch_files.load_file("model.safetensors")
    net = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 2))
    net.load_state_dict(weights)
    TwoLayerNet(6, 7, 2, activation="tanh").load_state_dict(weights)
    model, test = load_model("model.safetensors"), pandas.read_csv("test.csv")
    with no_grad():
        outputs = net(tensor(model.inputs.encode(test, np.float32))).numpy()
    np.testing.assert_allclose(outputs, model.outputs(test), rtol=1e-5, atol=1e-6)


def test_what_train_prints_says_what_was_read_and_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "train.csv", "--target", "survived", "--epochs", 2, "--curve", "curve.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train.csv: 4 columns of numbers, 1 of texts (sex: 2); survived: 2 classes (texts)"
    assert lines[1] == "192 rows to train on, 48 to validate"
    assert lines[2].startswith("2 epochs in ")
    assert lines[3].startswith("on the rows held out: accuracy ")
    assert lines[4] == "written: model.safetensors, curve.png"
    assert (folder / "curve.png").read_bytes().startswith(PNG_MAGIC)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("curve.png", "model.checkpoint.safetensors", "model.safetensors", "test.csv", "train.csv")
    ]


def test_probabilities_are_those_of_the_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "train.csv", "--target", "survived") == 0
    capsys.readouterr()
    assert command("predict", "model.safetensors", "test.csv", "--probabilities") == 0
    Path("p.csv").write_text(capsys.readouterr().out, encoding="utf-8")
    predicted = pandas.read_csv("p.csv")
    assert list(predicted.columns) == ["survived", "probability no", "probability yes"]
    np.testing.assert_allclose(predicted["probability no"] + predicted["probability yes"], 1)
    np.testing.assert_array_equal(predicted["survived"] == "yes", predicted["probability yes"] > 0.5)


def test_info_and_plot_tell_what_a_model_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "train.csv", "--target", "survived", "--hidden", 9, "--epochs", 3) == 0
    capsys.readouterr()
    assert command("info", "model.safetensors") == 0
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["net"].strip() == "6 → 9 relu → 2, float32"
    assert facts["inputs"].strip() == "sex (2 texts), age, class, married, fare"
    assert facts["target"].strip() == "survived: 2 classes: no, yes"
    found = as_json(capsys, "info", "model.safetensors")
    assert (found["activation"], found["training"]["optimizer"], len(found["history"]["loss"])) == ("relu", "adam", 3)
    assert command("plot", "model.safetensors", "--out", "pictures") == 0
    assert (folder / "pictures" / "learning_curve.png").read_bytes().startswith(PNG_MAGIC)
    assert [path.name for path in (folder / "pictures").iterdir()] == ["learning_curve.png"]  # no images, no tiles


# ---------------------------------------------------------------------------------------------------------------------
# Formats.


def digits(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (rows, 6, 5) uint8 with a bright line at the height of their class, and classes (rows,) uint8."""
    draw = np.random.default_rng(seed)
    classes = draw.integers(0, 3, rows)
    images = draw.integers(0, 60, (rows, 6, 5))
    images[np.arange(rows), 2 * classes] += 180
    return images.astype(np.uint8), classes.astype(np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()) if path.suffix == ".gz" else header + array.tobytes())


def write_files(name: str, rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Write the data in that format; return the arguments of training on it, and of evaluating on it."""
    images, classes = digits(rows, seed)
    flat = images.reshape(rows, -1)
    if name == "idx":
        write_idx(Path(f"{seed}-images-idx3-ubyte.gz"), images)
        write_idx(Path(f"{seed}-labels-idx1-ubyte"), classes)
        Path(f"{seed}-labels-idx1-ubyte").rename(f"{seed}-labels-idx1-ubyte.gz")  # unpacked by a browser, say
        return [f"{seed}-images-idx3-ubyte.gz"], []
    if name == "npz":
        np.savez(f"{seed}.npz", x=images, y=classes)
        return [f"{seed}.npz"], []
    if name == "npz by name":
        np.savez(f"{seed}.npz", pictures=flat, label=classes.astype(str), other=flat)
        options = ["--target", "label", "--inputs", "pictures"]
        return [f"{seed}.npz", *options], options
    if name == "npy":
        np.save(f"{seed}.npy", np.column_stack([classes, flat]))
        return [f"{seed}.npy", "--target", "0"], []
    if name == "npy with labels":
        np.save(f"{seed}.npy", images.astype(np.float64))
        np.save(f"{seed}-y.npy", classes)
        return [f"{seed}.npy", "--target", f"{seed}-y.npy"], ["--target", f"{seed}-y.npy"]
    if name == "svmlight":
        lines = [
            f"{k} " + " ".join(f"{i + 1}:{v}" for i, v in enumerate(row) if v)
            for k, row in zip(classes, flat, strict=True)
        ]
        Path(f"{seed}.svm").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [f"{seed}.svm"], []
    table = pandas.DataFrame(flat, columns=[f"pixel {i}" for i in range(flat.shape[1])]).assign(digit=classes)
    if name == "parquet":
        table.to_parquet(f"{seed}.parquet")
        return [f"{seed}.parquet", "--target", "digit"], []
    if name == "tsv":
        table.to_csv(f"{seed}.tsv.gz", sep="\t", index=False)
        return [f"{seed}.tsv.gz", "--target", "digit"], []
    assert name == "csv without names"
    table.to_csv(f"{seed}.txt", sep=";", index=False, header=False)
    return [f"{seed}.txt", "--target", "-1", "--separator", ";", "--no-header"], []


FORMATS = (*("idx", "npz", "npz by name", "npy", "npy with labels", "svmlight", "parquet", "tsv", "csv without names"),)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_trained_on_evaluated_and_predicted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    training, _ = write_files(name, 200, seed=1)
    (data, *_), options = write_files(name, 90, seed=2)
    found = as_json(capsys, "train", *training, "--epochs", 60, "--lr", 0.01)
    assert (found["task"], found["inputs"]) == ("classification", 30)
    assert [str(name) for name in found["classes"]] == ["0", "1", "2"]
    assert found["validation"]["accuracy"] == 1.0
    measured = as_json(capsys, "evaluate", "model.safetensors", data, *options)
    assert (measured["rows"], measured["accuracy"]) == (90, 1.0)
    of_inputs = ["--inputs", "pictures"] if "--inputs" in options else []
    assert command("predict", "model.safetensors", data, "--out", "p.npy", *of_inputs) == 0
    np.testing.assert_array_equal(np.load("p.npy").astype(int), digits(90, seed=2)[1])


def test_bytes_are_trained_as_bytes_and_measured_as_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, classes = digits(200, seed=1)
    np.savez("bytes.npz", x=images, y=classes)
    np.savez("floats.npz", x=images.astype(np.float64), y=classes)
    as_bytes = as_json(capsys, "train", "bytes.npz", "--epochs", 3)
    as_floats = as_json(capsys, "train", "floats.npz", "--epochs", 3, "--scaling", "pixels", "--out", "floats.st")
    np.testing.assert_allclose(as_bytes["val_loss"], as_floats["val_loss"], rtol=1e-4)
    assert as_bytes["notes"][0].startswith("bytes.npz: images of 6 × 5; the target: 3 classes (whole numbers")
    message = refusal(capsys, "train", "bytes.npz", "--validation-data", "floats.npz")
    assert "floats.npz: expected inputs as those to train on, which are bytes; got other numbers" in message
    assert as_bytes["validation"]["accuracy"] == as_bytes["val_accuracy"][-1]
    assert command("plot", "model.safetensors", "--out", "pictures") == 0
    assert (tmp_path / "pictures" / "first_layer_weights.png").read_bytes().startswith(PNG_MAGIC)


def test_validation_data_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(
        capsys, "train", "train.csv", "--target", "survived", "--validation-data", "test.csv", "--epochs", 20
    )
    assert found["rows"] == {"training": 240, "validation": 80}
    measured = as_json(capsys, "evaluate", "model.safetensors", "test.csv")
    assert found["validation"]["accuracy"] == found["val_accuracy"][-1] == measured["accuracy"]


def test_several_values_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(
        capsys, "train", "train.csv", "--target", "fare", "--target", "age", "--drop", "survived", "--epochs", 5
    )
    assert found["task"] == "regression"
    assert command("predict", "model.safetensors", "test.csv", "--out", "p.csv") == 0
    assert list(pandas.read_csv("p.csv").columns) == ["fare", "age"]


def test_rows_numbers_that_pandas_wrote_are_no_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame().sample(frac=0.5, random_state=0).to_csv("part.csv")
    assert command("train", "part.csv", "--target", "survived", "--epochs", 1) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "left out the first column, which has no name and numbers the rows"
    assert "4 columns of numbers, 1 of texts" in second


# ---------------------------------------------------------------------------------------------------------------------
# Options that change the training.


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "sgd", "--momentum", "0.9", "--nesterov", "--lr-schedule", "cosine"],
        ["--optimizer", "adamw", "--weight-decay", "0.1", "--lr-schedule", "onecycle"],
        ["--optimizer", "rmsprop", "--clip-norm", "1", "--dropout", "0.1"],
        ["--balanced", "--label-smoothing", "0.1", "--l1", "1e-4", "--l2", "1e-4"],
        ["--precision", "float64", "--activation", "gelu", "--batch-size", "16"],
        ["--precision", "bfloat16", "--scaling", "none"],
        ["--validation", "0", "--patience", "2", "--monitor", "loss"],
    ],
)
def test_options_of_training(options: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = as_json(capsys, "train", "train.csv", "--target", "survived", "--epochs", 8, "--out", "plain.safetensors")
    found = as_json(capsys, "train", "train.csv", "--target", "survived", "--epochs", 8, *options)
    assert found["loss"] != plain["loss"]
    assert found["loss"][-1] < found["loss"][0]
    weights = tensors("model.safetensors")["0.weight"]
    assert weights.dtype == (np.float64 if "float64" in options else np.float32)


def test_balanced_classes_count_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    classes = (draw.random(500) < 0.05).astype(np.uint8)
    np.savez("rare.npz", x=draw.normal(size=(500, 2)) + classes[:, None], y=classes)
    for options in ([], ["--balanced"]):
        assert command("train", "rare.npz", "--epochs", 20, *options) == 0
        assert command("predict", "model.safetensors", "rare.npz", "--out", f"{len(options)}.npy") == 0
    assert np.load("0.npy").mean() < classes.mean() < np.load("1.npy").mean()


def test_early_stopping_leaves_the_best_epochs_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--target", "survived", "--lr", 0.05, "--hidden", 200)
    stopped = as_json(capsys, "train", "train.csv", *options, "--epochs", 300, "--patience", 4, "--out", "s.st")
    assert stopped["stopped_early"]
    assert stopped["epochs"] == stopped["best_epoch"] + 1 + 4
    best = stopped["best_epoch"] + 1
    assert command("train", "train.csv", *options, "--epochs", best, "--out", "best.st") == 0
    assert_same_tensors("s.st", "best.st")


def test_the_task_is_told_from_the_target_or_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def task(*options: object) -> str:
        return as_json(capsys, "train", "train.csv", *options, "--drop", "sex", "--epochs", 1)["task"]

    assert task("--target", "class") == "classification"  # whole numbers, few
    assert task("--target", "age") == "regression"  # a decimal point
    assert task("--target", "married") == "classification"  # truth values
    assert task("--target", "class", "--task", "regression", "--drop", "survived") == "regression"
    found = as_json(capsys, "train", "train.csv", "--target", "age", "--task", "classification", "--epochs", 1)
    assert (found["task"], found["classes"][0]) == ("classification", 1)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.csv"], "train.csv: --target must name the column to be learnt; there are sex, age, class"),
        (["train.csv", "--target", "survive"], "there is no column 'survive' (did you mean 'survived'?); there are"),
        (["train.csv", "--target", "9"], "there is no column '9'"),
        (["train.csv", "--target", "age", "--drop", "age"], "column 'age' is the target and cannot be dropped"),
        (["none.csv", "--target", "y"], "none.csv: no such file"),
        ([".", "--target", "y"], ".: expected a file, or a folder of Parquet files; got another folder"),
        (["train.csv", "--target", "survived", "--task", "regression"], "column 'survived' must hold numbers; row 1"),
        (["train.csv", "--target", "survived", "--loss", "mse"], "argument --loss: mse is not for a classification"),
        (["train.csv", "--target", "age", "--balanced"], "argument --balanced: is for classes"),
        (["train.csv", "--target", "age", "--inputs", "x"], "--inputs is for npz; the file is csv"),
        (["train.csv", "--target", "survived", "--validation", "1"], "argument --validation: expected a number from 0"),
        (["train.csv", "--target", "survived", "--nesterov"], "nesterov needs a momentum above 0"),
        (["train.csv", "--target", "survived", "--momentum", "0.5"], "momentum is not an option of optimizer 'adam'"),
        (["train.csv", "--target", "survived", "--out", "no/m.st"], "argument --out: there is no folder no"),
        (["train.csv", "--target", "survived", "--out", "."], "argument --out: expected a file; . is a folder"),
        (["train.csv", "--target", "survived", "--out", "./train.csv"], "argument --out: train.csv is the data"),
        (["train.csv", "--target", "survived", "--curve", "no/c.png"], "argument --curve: there is no folder no"),
        (["train.csv", "--target", "survived", "--validation", "0", "--patience", "3"], "which needs validation"),
        (["train.csv", "--target", "survived", "--max-categories", "1"], "column 'sex' has 2 different texts, such as"),
        (
            ["train.csv", "--target", "survived", "--lr", "fast"],
            "argument --lr: expected a positive number, got 'fast'",
        ),
        (["missing.csv", "--target", "survived"], "column 'age' has no value in row 3, one of 2 such rows"),
        (["missing.csv", "--target", "age", "--drop", "class"], "column 'age' has no value in row 3"),
        (["infinite.csv", "--target", "survived"], "column 'age' must hold finite numbers; row 2 holds inf"),
        (["marked.csv", "--target", "survived"], "column 'age' holds numbers, but '?' in row 4"),
        (["semicolons.csv", "--target", "survived"], "expected columns separated by ','; got ';': --separator ';'"),
        (["dates.parquet", "--target", "survived"], "column 'when' must hold numbers or texts; row 1 holds a"),
        (["nan.npy", "--target", "-1"], "nan.npy: column 1 has no value in row 3"),
        (["nan.npy", "--target", "5"], "--target must be the position of a column, from -3 to 2; got '5'"),
        (
            ["ragged.csv", "--target", "y"],
            "error: ragged.csv: Error tokenizing data. C error: Expected 2 fields",
        ),
        (["wide.csv", "--target", "y"], "expected rows of 2 columns, as the header names; the first row has more"),
        (["empty.csv", "--target", "y"], "empty.csv: expected at least one row; got none"),
        (["cut-images-idx3-ubyte.gz"], "error: cut-images-idx3-ubyte.gz: Compressed file ended before"),
        (["one.npz"], "expected at least 2 classes as targets; all rows have 1"),
        (["one.npz", "--target", "z"], "--target must be one of its arrays, x, y; got z"),
        (["short.npz"], "targets must have the 6 rows of the inputs"),
    ],
)
def test_what_is_wrong_gets_one_line_and_nothing_is_written(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(row: int, value: object) -> Any:
        table = frame(20)
        table["age"] = table["age"].astype(object)
        table.loc[row, "age"] = value
        return table

    table = changed(2, None)
    table.loc[9, "age"] = None
    table.to_csv("missing.csv", index=False)
    changed(1, np.inf).to_csv("infinite.csv", index=False)
    changed(3, "?").to_csv("marked.csv", index=False)
    frame(20).to_csv("semicolons.csv", sep=";", index=False)
    frame(20).assign(when=pandas.Timestamp("2020-01-01")).to_parquet("dates.parquet")
    array = np.arange(18.0).reshape(6, 3)
    Path("ragged.csv").write_text("x,y\n1,2\n1,2,3\n", encoding="utf-8")
    Path("wide.csv").write_text("x,y\n1,2,3\n1,2,3\n", encoding="utf-8")
    Path("empty.csv").write_text("x,y\n", encoding="utf-8")
    write_idx(Path("cut-images-idx3-ubyte.gz"), digits(9, seed=1)[0])
    Path("cut-images-idx3-ubyte.gz").write_bytes(Path("cut-images-idx3-ubyte.gz").read_bytes()[:-20])
    write_idx(Path("cut-labels-idx1-ubyte.gz"), digits(9, seed=1)[1])
    np.savez("one.npz", x=array, y=np.ones(6, int))
    np.savez("short.npz", x=array, y=np.ones(5, int))
    array[2, 1] = np.nan
    np.save("nan.npy", array)
    assert message in refusal(capsys, "train", *arguments)


def test_data_that_do_not_fit_the_model_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "train.csv", "--target", "survived", "--epochs", 1) == 0
    table = frame(20)
    table.drop(columns="class").to_csv("without.csv", index=False)
    table.assign(sex=["female"] * 7 + ["other"] * 13).to_csv("other.csv", index=False)
    table.assign(age="old").to_csv("texts.csv", index=False)
    table.assign(survived="perhaps").to_csv("perhaps.csv", index=False)
    np.save("array.npy", np.ones((4, 6)))
    Path("text.safetensors").write_text("a text", encoding="utf-8")

    def predicted(path: str) -> str:
        return refusal(capsys, "predict", "model.safetensors", path)

    assert "without.csv: there is no column 'class', which the net was trained on" in predicted("without.csv")
    assert "column 'sex' holds 'other' in row 8, which no row had when the net was trained" in predicted("other.csv")
    assert "column 'age' must hold numbers; row 1 holds 'old'" in predicted("texts.csv")
    assert "array.npy: expected columns with names, as some hold texts; got an array" in predicted("array.npy")
    assert "expected a model file" in refusal(capsys, "predict", "text.safetensors", "test.csv")
    assert "no such file" in refusal(capsys, "evaluate", "none.safetensors", "test.csv")
    message = refusal(capsys, "evaluate", "model.safetensors", "perhaps.csv")
    assert "the target in row 1 is 'perhaps', none of the net's 2 classes: no, yes" in message
    for read in ("test.csv", "model.safetensors"):
        message = refusal(capsys, "predict", "model.safetensors", "test.csv", "--out", read)
        assert f"argument --out: {read} is what is read" in message
    assert "argument --json: needs --out" in refusal(capsys, "predict", "model.safetensors", "test.csv", "--json")


def test_a_missing_package_is_named_with_its_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = refusal(capsys, "train", "train.csv", "--target", "survived")
    assert "a model file needs safetensors: pip install 'twolayer[cli]'" in message
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "pandas", None)
    message = refusal(capsys, "train", "train.csv", "--target", "survived")
    assert "reading CSV needs pandas: pip install 'twolayer[cli]'" in message


# ---------------------------------------------------------------------------------------------------------------------
# Exit codes.


def test_a_run_that_diverges_fails_and_leaves_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--optimizer", "sgd", "--lr", 1e30, "--scaling", "none")
    assert command("train", "train.csv", "--target", "fare", "--drop", "survived", *options) == 1
    assert "error: the loss was not finite at step 1, in epoch 1; try a smaller --lr" in capsys.readouterr().err
    assert not Path("model.safetensors").exists()


def test_an_interrupt_names_what_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from twolayer.cli import checkpoints

    save = checkpoints.save_checkpoint

    def save_two(path: Path, checkpoint: Any) -> None:
        if checkpoint.state["epochs"] == 3:
            raise KeyboardInterrupt
        save(path, checkpoint)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_two)
    train = ("train", "train.csv", "--target", "survived")
    assert command(*train, "--epochs", 9) == 130
    assert "has 2 epochs: the same command with --resume goes on" in capsys.readouterr().err
    assert not Path("model.safetensors").exists()
    assert command(*train, "--epochs", 2, "--out", "two.safetensors") == 0
    assert as_json(capsys, *train, "--resume", "--epochs", 2)["resumed_from"] == 2  # as it is
    assert_same_tensors("model.safetensors", "two.safetensors")


def test_ctrl_c_during_an_epoch_ends_with_130(folder: Path) -> None:
    program = [sys.executable, "-m", "twolayer", "train", "train.csv", "--target", "survived", "--epochs", "100000000"]
    with subprocess.Popen(program, env=subprocess_environment(), stderr=subprocess.PIPE, encoding="utf-8") as process:
        while not Path("model.checkpoint.safetensors").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "twolayer: interrupted"
    assert "--resume goes on" in errors


def test_a_file_that_cannot_be_written_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "train.csv", "--target", "survived", "--epochs", 1) == 0
    Path("taken").mkdir()
    assert command("predict", "model.safetensors", "test.csv", "--out", "taken") == 1
    assert "twolayer predict: error: " in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(folder: Path) -> None:
    assert command("train", "train.csv", "--target", "survived", "--epochs", 1) == 0
    pandas.concat([frame()] * 200).to_csv("long.csv", index=False)
    program = f"{sys.executable} -m twolayer predict model.safetensors long.csv | head -n 2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", program], env=subprocess_environment(), capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "survived"


# ---------------------------------------------------------------------------------------------------------------------
# torch is not needed, nor pandas where there are no columns.

WITHOUT = """
import sys
from twolayer.cli import main
assert main(["train", "digits.npz", "--epochs", "2", "--json"]) == 0
assert main(["predict", "model.safetensors", "digits.npz", "--out", "p.csv"]) == 0
assert main(["evaluate", "model.safetensors", "digits.npz", "--json"]) == 0
assert main(["info", "model.safetensors"]) == 0
print(*sorted({"torch", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""


def test_arrays_are_trained_and_predicted_without_torch_or_pandas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images, classes = digits(100, seed=1)
    np.savez("digits.npz", x=images, y=classes)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=subprocess_environment(), capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "\n")


def test_a_csv_is_trained_and_predicted_without_torch(folder: Path) -> None:
    program = (
        "import sys; from twolayer.cli import main; "
        "assert main(['train', 'train.csv', '--target', 'survived', '--epochs', '2']) == 0; "
        "assert main(['predict', 'model.safetensors', 'test.csv', '--out', 'p.csv']) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=subprocess_environment(), timeout=60)
    assert done.returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Progress and completion.


def test_progress_is_shown_on_a_terminal_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("train", "train.csv", "--target", "survived", "--epochs", 3)
    assert command(*train) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert command(*train) == 0
    assert "epoch 3/3  100%" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_files(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert command("completion", shell) == 0
    script = capsys.readouterr().out
    for word in ("train", "predict", "evaluate", "--patience", "leaky_relu"):
        assert word in script
    if shell == "bash":
        assert "_twolayer_train_pos_0_COMPGEN=_shtab_compgen_files" in script
        done = subprocess.run(["bash", "-n"], input=script, encoding="utf-8", capture_output=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
