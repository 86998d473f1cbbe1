"""The command line, from its options to the files it writes."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twolayer
from twolayer import cli
from twolayer._native import core
from twolayer.cli import measure, methods, own_data, plots, problems, report, torchless
from twolayer.cli.progress import BarProgress, LineProgress
from twolayer.data import MNIST
from twolayer.reference import numpy as numpy_reference
from twolayer.reference.run import Run
from twolayer.reporting import labels

ROW_KEYS = {
    "name",
    "final_loss",
    "tutorial_loss",
    "accuracy",
    "max_deviation",
    "us_per_step",
    "seconds",
    "speedup",
    "error",
}
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
needs_native = pytest.mark.skipif(core is None, reason="the native library is not built")


# ---------------------------------------------------------------------------------------------------------------------
# A small data set and the command in a process of its own.


def digits(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    labels = rng.integers(0, 10, rows)
    images = rng.integers(0, 40, (rows, 28, 28)).astype(np.uint8)
    images[np.arange(rows), 2 * labels] += 200  # a line at a height that tells the class
    return images, labels.astype(np.uint8)


def small_mnist() -> MNIST:
    (x_train, y_train), (x_test, y_test) = digits(300), digits(100)
    return MNIST(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), "a test's digits")


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-digits", numbered=False)
    for prefix, rows in (("train", 300), ("t10k", 100)):
        images, labels = digits(rows)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def max_deviation(name: str) -> float:
    """What a few epochs on small data must keep to: rounding to 24 bits, or in products to 8."""
    return 2e-3 if name == "twolayer.fit bfloat16" else 1e-5


@dataclass(frozen=True)
class Comparison:
    """What a finished ``twolayer compare`` left."""

    exit_code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def json(self) -> dict[str, Any]:
        return json.loads((self.out / "compare.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)

    @property
    def markdown(self) -> str:
        return (self.out / "compare.md").read_text(encoding="utf-8")

    def rows(self, task: str) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for found in self.json["tasks"] if found["task"] == task for row in found["rows"]}


def compare(
    folder: Path, *options: object, missing: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> Comparison:
    """Run ``twolayer compare --quick`` in ``folder``, as if the ``missing`` packages were not installed."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from twolayer.cli import main; sys.exit(main())"
    )
    root = str(Path(twolayer.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, "compare", "--quick", "--threads", "1", "--out", "report", *map(str, options)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8", **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    return Comparison(done.returncode, done.stdout, done.stderr, folder / "report")


@pytest.fixture(scope="module")
def whole(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(tmp_path_factory.mktemp("whole"), "--data", idx_folder, "--steps", 20, "--epochs", 2)


# ---------------------------------------------------------------------------------------------------------------------
# End to end.


@needs_native
def test_a_comparison_succeeds_quietly(whole: Comparison) -> None:
    assert whole.exit_code == 0, whole.stdout + whole.stderr
    assert whole.stderr == ""


def test_json_has_the_documented_shape(whole: Comparison) -> None:
    assert set(whole.json) == {"machine", "tasks"}
    assert whole.json["machine"]["threads"] == 1
    assert [task["task"] for task in whole.json["tasks"]] == ["regression", "classification"]
    for task in whole.json["tasks"]:
        assert {"task", "data", "rows"} <= set(task)
        for row in task["rows"]:
            assert set(row) == ROW_KEYS
    assert "small-digits: 300 training and 100 test images" in whole.json["tasks"][1]["data"]


@needs_native
def test_every_row_has_its_figures(whole: Comparison) -> None:
    for task, steps in (("regression", 20), ("classification", 2 * 4)):
        rows = whole.rows(task)
        assert set(rows) == {method.name for method in methods.TABLES[task].methods if not method.compiles}
        for name, row in rows.items():
            assert row["error"] is None, (name, row["error"])
            assert row["final_loss"] > 0
            assert (row["accuracy"] is None) == (task == "regression")
            assert 0 <= row["max_deviation"] < max_deviation(name), name
            assert math.isclose(row["us_per_step"], row["seconds"] / steps * 1e6)
        baseline = rows[methods.TABLES[task].baseline]
        assert baseline["speedup"] == 1
        assert math.isclose(rows["twolayer.fit"]["speedup"], baseline["seconds"] / rows["twolayer.fit"]["seconds"])
        assert rows["NumPy, float64"]["max_deviation"] == 0
    classification = whole.rows("classification")
    assert classification["twolayer.fit NumpyNet"]["final_loss"] == classification["twolayer.fit"]["final_loss"]
    assert whole.rows("classification")["optim.SGD"]["tutorial_loss"] == 0.8116


def test_table_and_markdown_say_the_same(whole: Comparison) -> None:
    for task in ("regression", "classification"):
        for name, row in whole.rows(task).items():
            loss = f"{row['final_loss']:.4g}"
            assert any(line.startswith(f"| {name} | {loss} |") for line in whole.markdown.splitlines())
            assert any(line.split(name)[-1].split()[:1] == [loss] for line in whole.stdout.splitlines() if name in line)
    for heading in ("tutorial printed", "test accuracy", "largest deviation", "× torch autograd", "× nn.Linear"):
        assert heading in whole.markdown


def test_a_quick_run_and_a_short_one_say_so(whole: Comparison) -> None:
    assert problems.QUICK_NOTE in whole.stdout
    assert "The tutorial's figure is of 500 steps, not 20." in whole.stdout
    assert "The tutorial's figures are of 30 epochs" in whole.markdown


def test_pictures_are_written_and_shown(whole: Comparison) -> None:
    for name in ("loss_curves.png", "speed.png"):
        assert (whole.out / name).read_bytes().startswith(PNG_MAGIC)
        assert f"]({name})" in whole.markdown


def test_without_the_native_library_its_row_says_why_and_the_exit_code_is_1(tmp_path: Path) -> None:
    without = {"TWOLAYER_DISABLE_NATIVE": "1", "TWOLAYER_REQUIRE_NATIVE": "0"}
    run = compare(tmp_path, "--task", "regression", "--steps", 5, environment=without)
    assert run.exit_code == 1
    rows = run.rows("regression")
    assert "TWOLAYER_DISABLE_NATIVE is set" in rows["twolayer.fit"]["error"]
    assert rows["twolayer.fit"]["final_loss"] is None
    assert [name for name, row in rows.items() if row["error"]] == ["twolayer.fit"]
    assert "twolayer.fit failed: RuntimeError: the native library is not loaded" in run.markdown


@needs_native
def test_without_the_demo_extra_it_works_and_says_what_is_missing(idx_folder: Path, tmp_path: Path) -> None:
    missing = ("rich", "matplotlib", "sklearn", "threadpoolctl")
    run = compare(tmp_path, "--task", "classification", "--data", idx_folder, "--epochs", 1, missing=missing)
    assert run.exit_code == 0, run.stdout + run.stderr
    assert "no pictures were drawn: matplotlib is not installed (pip install 'twolayer[demo]')" in run.stdout
    assert "sklearn" in run.rows("classification")["scikit-learn MLP"]["error"]
    assert sorted(path.name for path in run.out.iterdir()) == ["compare.json", "compare.md"]
    assert any(line.startswith("nn.Linear ") and line.endswith(" 1.00") for line in run.stdout.splitlines())


def test_without_mnist_and_network_it_says_so_and_takes_digits(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**nowhere, "no_proxy": "", "XDG_CACHE_HOME": str(tmp_path / "cache"), "TWOLAYER_DATA": ""}
    run = compare(tmp_path, "--task", "classification", "--epochs", 1, environment=environment)
    assert "MNIST was not found" in run.stdout
    assert "scikit-learn's 8×8 digits" in run.json["tasks"][0]["data"]


# ---------------------------------------------------------------------------------------------------------------------
# A task of one's own data.


def own_rows(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of very different scales, and classes 3, 5 and 9 that hang on the first."""
    rng = np.random.default_rng(seed)
    y = rng.choice([3, 5, 9], rows)
    return rng.standard_normal((rows, 4)) * [1, 100, 1e-3, 0] + np.stack([4.0 * y, *np.zeros((3, rows))], axis=1), y


def write_csv(path: Path, x: np.ndarray, y: np.ndarray, header: str = "") -> Path:
    lines = [",".join(map(str, [*row, target])) for row, target in zip(x.tolist(), y.tolist(), strict=True)]
    path.write_text("\n".join([header, *lines, ""]) if header else "\n".join(lines), encoding="utf-8")
    return path


@needs_native
def test_a_csv_of_ones_own_is_a_classification(tmp_path: Path) -> None:
    write_csv(tmp_path / "flowers.csv", *own_rows(200), header='"a","b","c","d","kind"')
    run = compare(tmp_path, "--task", "flowers.csv", "--epochs", 40, "--lr", 0.1, "--hidden", 8, "--activation", "tanh")
    assert run.exit_code == 0, run.stdout + run.stderr
    rows = run.rows("classification of flowers.csv")
    assert set(rows) == {
        "NumPy, float64",
        "NumPy, float32",
        "torch autograd",
        "scikit-learn MLP",
        "TwoLayerNet autograd",
        "twolayer.fit",
        "twolayer.fit bfloat16",
    }
    for name, row in rows.items():
        assert row["error"] is None, (name, row["error"])
        assert row["max_deviation"] < max_deviation(name), name
        assert row["accuracy"] > 0.9
    task = run.json["tasks"][0]
    assert "4-8-3, tanh, cross_entropy, SGD with lr 0.1, batches of 64, 40 epochs × 2 steps" in run.markdown
    assert "160 training and 40 test rows" in task["data"]
    assert any("held out" in note for note in task["notes"])
    assert any("standardised" in note for note in task["notes"])
    assert (run.out / "speed.png").read_bytes().startswith(PNG_MAGIC)


@needs_native
def test_an_npz_of_ones_own_is_a_regression(tmp_path: Path) -> None:
    x, y = own_rows(100)
    np.savez(tmp_path / "prices.npz", x=x.astype(np.float32), y=y * 1e6 + 0.5)
    options = ("--optimizer", "adam", "--batch-size", 16, "--epochs", 40)
    run = compare(tmp_path, "--task", "prices.npz", *options)
    assert run.exit_code == 0, run.stdout + run.stderr
    rows = run.rows("regression of prices.npz")
    assert "scikit-learn MLP" not in rows
    for name, row in rows.items():
        assert row["error"] is row["accuracy"] is None
        assert row["max_deviation"] < 10 * max_deviation(name), name
        assert row["final_loss"] < 0.5  # of targets with variance 1
    assert "4-100-1, relu, mse, Adam with lr 0.001, batches of 16" in run.markdown


def test_rows_of_ones_own_are_split_shuffled_and_standardised() -> None:
    x, y = own_rows(100)
    data = own_data.OwnData(own_data.Rows(x, np.searchsorted([3, 5, 9], y)), None, 3)
    own = problems.own(data, "mine", problems.OwnOptions(batch_size=10), seed=2, threads=1, quick=False)
    assert own.test is not None
    assert (len(own.x), len(own.test[0])) == (80, 20)
    np.testing.assert_allclose(own.x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(own.x.std(axis=0), [1, 1, 1, 0], atol=1e-5)
    order = np.random.default_rng(2).permutation(100)
    np.testing.assert_array_equal(np.concatenate([own.test[1], own.y]), data.train.y[order])
    test, train = x[order[:20], :3], x[order[20:], :3]  # the last input is constant
    np.testing.assert_allclose(own.test[0][:, :3], (test - train.mean(axis=0)) / train.std(axis=0), rtol=1e-4)


def test_what_the_file_says_of_classes_and_test_rows(tmp_path: Path) -> None:
    x, y = own_rows(60)
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x[:7], y_test=y[:7])
    data = own_data.load(tmp_path / "a.npz")
    assert data.class_count == 3
    np.testing.assert_array_equal(np.array([3, 5, 9])[data.train.y], y)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.y, data.train.y[:7])
    np.testing.assert_array_equal(data.test.x, x[:7])

    plain, named = write_csv(tmp_path / "b.csv", x, y), write_csv(tmp_path / "c.csv", x, y, header="\ufeffa,b,c,d,e")
    for path in (plain, named):
        read = own_data.load(path)
        np.testing.assert_array_equal(read.train.x, x)
        np.testing.assert_array_equal(read.train.y, data.train.y)
    values = own_data.load(write_csv(tmp_path / "d.csv", x, y.astype(float)))
    assert (values.class_count, values.train.y.shape) == (0, (60, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected rows of numbers separated by commas; got none"),
        ("a,b\n", "expected rows of numbers separated by commas; got none"),
        ("1\n2\n", "expected at least 2 columns; row 1 has 1"),
        ("1,2\n3\n", "expected 2 columns, as in the first row; row 2 has 1"),
        ("a,b\n1,2\n3,four\n", "expected numbers; row 2 holds 'four'"),
        ("1,2\n3,\n", "expected numbers; row 2 holds ''"),
        ("1,2.5\nnan,3.5\n", "the columns of x must be finite; row 2 is not"),
        ("1,2.5\n1,inf\n", "the last column must be finite; row 2 is not"),
        ("1,2\n3,2\n3,2\n", "y must hold at least 2 classes, of 2 rows or more on average; got 1"),
        ("1,2\n3,4\n5,6\n", "got 3 different whole numbers in 3 rows"),
        ("1,1\n3,2\n5,1\n7,2\n", "expected at least 64 training rows, one batch (--batch-size); got 3"),
        ("\udcff1,2", "can't decode byte 0xff"),
    ],
)
def test_a_malformed_csv_gets_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(["--task", str(path), "--out", str(tmp_path)], "own.csv: ", message, capsys)


X, Y = np.ones((8, 2)), np.arange(8) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "expected an array called y; got x.npy"),
        ({"x": X, "y": Y, "x_test": X}, "expected an array called y_test"),
        ({"x": X[0], "y": Y}, "x must be of shape (rows, inputs); got (2,)"),
        ({"x": X, "y": Y[:7]}, "y must have the 8 rows of x, and one or two dimensions; got (7,)"),
        ({"x": X, "y": np.stack([Y, Y], axis=1)}, "y of whole numbers, which are classes, must be of shape (8,)"),
        ({"x": X + 1j, "y": Y}, "x must hold real numbers; got dtype complex128"),
        ({"x": X, "y": Y.astype(str)}, "y must hold real numbers; got dtype <U"),
        ({"x": X, "y": Y.astype(object)}, "expected an array without Python objects"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "y_test must hold classes of y; row 2 holds 2"),
        ({"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y}, "x_test and y_test must be as x (8, 2) and y (8,)"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 0.5}, "x_test and y_test must be as x (8, 2) and y (8,)"),
    ],
)
def test_a_malformed_npz_gets_one_line(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    assert_refused(["--task", str(tmp_path / "own.npz"), "--out", str(tmp_path)], "own.npz: ", message, capsys)


def test_a_file_that_is_no_npz_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.npz").write_bytes(b"text")
    assert_refused(["--task", str(tmp_path / "own.npz"), "--out", str(tmp_path)], "own.npz: ", "not a zip", capsys)
    assert_refused(["--task", "none.csv", "--out", str(tmp_path)], "No such file", "none.csv", capsys)


def assert_refused(options: list[str], start: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *options])
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("twolayer")]
    assert len(errors) == 1
    assert start in errors[0]
    assert message in errors[0]


# ---------------------------------------------------------------------------------------------------------------------
# Options and exit codes.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["compare", "--threads", "0"], "argument --threads: expected a whole number from 1 to"),
        (
            ["compare", "--epochs", "few"],
            "argument --epochs: expected a whole number from 1 to 9223372036854775807, got 'few'",
        ),
        (["compare", "--steps", "1.5"], "argument --steps: expected a whole number"),
        (["compare", "--seed", "-1"], "argument --seed: expected a whole number from 0 to"),
        (["compare", "--task", "ranking"], "argument --task: expected all, regression, classification, or a .npz or"),
        (["compare", "--activation", "than"], "argument --activation: invalid choice: 'than'"),
        (["compare", "--activation", "tanh"], "argument --activation: the regression takes relu or identity; got"),
        (["compare", "--hidden", "9"], "argument --hidden: is for a file of your own, and --task is all"),
        (["compare", "--task", "own.csv", "--steps", "9"], "argument --steps: is for the tutorial's tasks, and --task"),
        (["compare", "--lr", "0"], "argument --lr: expected a positive number, got '0'"),
        (["compare", "--optimizer", "rmsprop"], "argument --optimizer: invalid choice: 'rmsprop'"),
        (["compare", "--data", "no-such-folder", "--out", "report"], "no-such-folder"),
        (["compare", "--out", "a-file"], "a-file"),
        ([], "required"),
    ],
)
def test_a_wrong_option_gets_one_line_and_exit_code_2(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    with pytest.raises(SystemExit) as stopped:
        cli.main(options)
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("twolayer")]
    assert len(errors) == 1
    assert message in errors[0]


def test_a_wrong_environment_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TWOLAYER_NUM_THREADS", "many")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["info"])
    assert stopped.value.code == 2
    assert "TWOLAYER_NUM_THREADS must be a positive integer; got 'many'" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"twolayer {twolayer.__version__}\n"


def test_an_interrupt_ends_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(twolayer, "info", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "twolayer: interrupted\n"


def test_help_and_version_do_not_import_torch() -> None:
    program = "import sys, twolayer.cli; twolayer.cli.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )


def test_python_dash_m_is_the_command_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(twolayer.__file__).parents[1])}
    command = [sys.executable, "-m", "twolayer", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == f"twolayer {twolayer.__version__}\n"


# ---------------------------------------------------------------------------------------------------------------------
# info.


def test_info_as_json_is_twolayer_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == twolayer.info()


def test_info_names_every_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    facts = twolayer.info()
    assert f"twolayer {twolayer.__version__}, python " in lines["versions"]
    assert lines["threads"].strip() == str(facts["threads"])
    assert lines["cpu"].strip() == facts["cpu"]
    cuda = facts["native"]["_cuda"]
    assert lines["_cuda"].strip() == ("loaded" if cuda["loaded"] else f"not loaded: {cuda['reason']}")


def test_info_tells_why_a_library_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = {
        "versions": {"twolayer": "0", "compiler": None},
        "cpu": "a CPU",
        "threads": 3,
        "isa": {"in_use": None, "available": [], "compiled": []},
        "native": {"_core": {"loaded": False, "reason": "it was never built", "path": None}},
    }
    monkeypatch.setattr(twolayer, "info", lambda: without)
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "not loaded: it was never built" in printed
    assert "twolayer 0\n" in printed


# ---------------------------------------------------------------------------------------------------------------------
# The programs and how they are measured.


def problem(task: str, activation: str = "relu") -> problems.Problem:
    if task == "regression":
        return problems.regression(seed=1, steps=20, activation=activation, threads=1, quick=True)
    return problems.classification(small_mnist(), seed=1, epochs=3, threads=1, quick=True)


EVERY_PROGRAM = [
    pytest.param(task, activation, method, marks=pytest.mark.slow if method.compiles else ())
    for task, activation in (("regression", "relu"), ("regression", "identity"), ("classification", "sigmoid"))
    for method in methods.TABLES[task].methods
]


def run_of(train: methods.Train, on_epoch: Callable[[int, float], object] | None = None) -> Run:
    outcome = train(on_epoch)
    return outcome.run if isinstance(outcome, methods.TimedRun) else outcome


@pytest.mark.parametrize(
    ("task", "activation", "method"), EVERY_PROGRAM, ids=lambda value: getattr(value, "name", value)
)
def test_every_program_draws_the_references_curve(task: str, activation: str, method: methods.Method) -> None:
    if core is None and method.name.startswith("twolayer.fit"):
        pytest.skip("the native library is not built")
    task_problem = problem(task, activation)
    assert task_problem.activation == activation
    start = task_problem.starts[method.start]
    table = methods.TABLES[task]
    reference = dataclasses.replace(table.named(table.reference), start=method.start, update=method.update)
    truth = run_of(reference.prepared(task_problem))
    untouched = {name: array.copy() for name, array in start.arrays().items()}

    epochs: list[int] = []
    run = run_of(method.prepared(task_problem), lambda epoch, loss: epochs.append(epoch))

    assert epochs == list(range(task_problem.epochs))
    bound = max_deviation(method.name)
    assert measure.deviation(run.losses, truth.losses, task_problem.loss).max() < bound
    for name, array in untouched.items():
        np.testing.assert_allclose(getattr(run, name), getattr(truth, name), rtol=100 * bound, atol=10 * bound)
        np.testing.assert_array_equal(start.arrays()[name], array)


@pytest.mark.parametrize("update", [None, methods.Update("adam", 1e-3)])
def test_the_numpy_program_is_the_reference(update: methods.Update | None) -> None:
    task_problem = problem("classification")
    run = run_of(methods.Method("NumPy", methods.numpy_program(np.float64), update=update).prepared(task_problem))
    params = {name: array.astype(np.float64) for name, array in task_problem.starts["linear"].arrays().items()}
    optimizer, lr = update or ("sgd", task_problem.lr)
    curves = numpy_reference.train(
        params,
        task_problem.x,
        task_problem.y,
        activation="sigmoid",
        loss="cross_entropy",
        optimizer=optimizer,
        lr=lr,
        batch_size=64,
        epochs=3,
        shuffle=False,
        drop_last=True,
    )
    assert run.losses == curves.last_batch_loss
    for name, array in params.items():
        np.testing.assert_array_equal(getattr(run, name), array)


@needs_native
def test_the_numpy_door_trains_without_torch_and_tells_what_fails() -> None:
    task_problem = problem("classification")
    weights = task_problem.starts["linear"].arrays()
    options = {"batch_size": 64, "lr": 1e-4, "shuffle": False, "epochs": 2}
    trained = torchless.train(weights, task_problem.x, task_problem.y, "sigmoid", options)
    net = twolayer.NumpyNet(784, 100, 10)
    for name, array in weights.items():
        setattr(net, name, array.copy())
    history = twolayer.fit(net, task_problem.x, task_problem.y, **options)
    assert trained.losses == history.last_batch_loss
    assert trained.seconds > 0
    for name, array in net.parameters().items():
        np.testing.assert_array_equal(trained.weights[name], array)
    with pytest.raises(RuntimeError, match="the process without torch failed: ValueError: lr must"):
        torchless.train(weights, task_problem.x, task_problem.y, "sigmoid", {**options, "lr": -1.0})


def test_a_torch_that_is_imported_after_all_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import torch", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    small = problem("classification").warm_up()
    options = {"batch_size": 64, "lr": 1e-4}
    with pytest.raises(RuntimeError, match="torch was imported"):
        torchless.train(small.starts["linear"].arrays(), small.x, small.y, "sigmoid", options)


def program(train: Callable[[], list[float]]) -> methods.Prepare:
    def prepare(problem: problems.Problem, start: problems.Weights) -> methods.Train:
        return lambda on_epoch: Run(train(), start.w1, start.b1, start.w2, start.b2)

    return prepare


def table_of(**programs: Callable[[], list[float]]) -> methods.MethodTable:
    rows = tuple(methods.Method(name, program(train), "linear") for name, train in programs.items())
    return methods.MethodTable(rows, reference="truth", baseline="truth", native="native")


def raises() -> list[float]:
    raise RuntimeError("no luck\nand a long story")


def test_a_failing_program_is_a_row_and_the_others_run() -> None:
    table = table_of(
        truth=lambda: [4.0, 2.0], native=raises, blows_up=lambda: [4.0, math.nan], other=lambda: [4.0, 3.0]
    )
    result = measure.run_task(problem("classification"), table, LineProgress())
    truth, native, blows_up, other = result.rows
    assert native == measure.Row("native", error="RuntimeError: no luck")
    assert result.native_error == "RuntimeError: no luck"
    assert blows_up.error == "FloatingPointError: the loss became nan in epoch 2"
    assert other.max_deviation == 0.25
    assert other.error is truth.error is None
    assert set(result.losses) == {"truth", "other"}


def test_without_its_reference_a_program_still_has_its_times() -> None:
    table = table_of(truth=raises, native=lambda: [4.0])
    result = measure.run_task(problem("classification"), table, LineProgress())
    native = result.rows[1]
    assert native.us_per_step is not None
    assert native.max_deviation is native.speedup is native.error is None


def test_json_holds_no_nan() -> None:
    table = table_of(truth=lambda: [4.0], native=lambda: [4.0])
    row = measure.Row("truth", final_loss=math.nan, speedup=math.inf, seconds=1.5)
    result = measure.TaskResult(problem("classification"), table, (row,), (), {}, {})
    found = json.loads(report.as_json({}, [result]), parse_constant=pytest.fail)["tasks"][0]["rows"][0]
    assert (found["final_loss"], found["speedup"], found["seconds"]) == (None, None, 1.5)


def test_a_further_start_has_a_reference_of_its_own() -> None:
    raw = methods.Method("raw", program(lambda: [8.0]), "randn")
    table = table_of(truth=lambda: [4.0], native=lambda: [4.0])
    table = methods.MethodTable((*table.methods, raw), table.reference, table.baseline, table.native)
    result = measure.run_task(problem("classification"), table, LineProgress())
    assert [str(course) for course in result.references] == ["randn", "linear"]
    assert result.rows[2].max_deviation == 1.0


def test_a_run_timed_elsewhere_counts_what_it_took_there() -> None:
    def prepare(problem: problems.Problem, start: problems.Weights) -> methods.Train:
        return lambda on_epoch: methods.TimedRun(Run([4.0], start.w1, start.b1, start.w2, start.b2), 123.0)

    table = methods.MethodTable((methods.Method("truth", prepare),), "truth", "truth", "truth")
    assert measure.run_task(problem("classification"), table, LineProgress()).rows[0].seconds == 123.0


def test_time_spent_reporting_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def spend(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def prepare(problem: problems.Problem, start: problems.Weights) -> methods.Train:
        def train(on_epoch: Callable[[int, float], object] | None) -> Run:
            spend(2.0)
            if on_epoch:
                on_epoch(0, 4.0)
            return Run([4.0], start.w1, start.b1, start.w2, start.b2)

        return train

    class SlowProgress(LineProgress):
        def update(self, name: str, epochs: int, status: str) -> None:
            spend(5.0)

    monkeypatch.setattr(measure, "perf_counter", lambda: clock)
    table = methods.MethodTable((methods.Method("truth", prepare, "linear"),), "truth", "truth", "truth")
    assert measure.run_task(problem("classification"), table, SlowProgress()).rows[0].seconds == 2.0


def test_deviation_of_a_sum_of_squares_is_that_of_its_root() -> None:
    assert measure.deviation([100.0, 1.0], [100.0, 4.0], "mse_sum").tolist() == [0.0, 0.1]
    assert measure.deviation([5.0, 2.0], [4.0, 2.0], "cross_entropy").tolist() == [0.25, 0.0]


def test_bars_follow_the_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with BarProgress() as bars:
        bars.begin(["first", "second"], total=4)
        bars.update("first", 1, "loss 2.3")
        bars.finish("first", "12 µs/step")
    printed = capsys.readouterr().out
    assert "25%" in printed
    assert "12 µs/step" in printed


def test_every_program_has_a_colour() -> None:
    names = {method.name for table in methods.TABLES.values() for method in table.methods}
    assert names == set(plots.COLORS)


def test_too_few_images_are_refused() -> None:
    images, labels = digits(10)
    few = MNIST(images, labels.astype(np.int64), images, labels.astype(np.int64), "a test's digits")
    with pytest.raises(ValueError, match="at least 64 training images, one batch; got 10"):
        problems.classification(few, seed=0, epochs=None, threads=1, quick=False)


def test_labels_that_would_overlap_are_moved_apart() -> None:
    heights = labels._apart([0.0, 0.5, 0.5, 0.5, 0.8, 1.0, 1.0])
    assert np.diff(heights).min() >= labels.LABEL_GAP - 1e-12
    assert heights[0] >= 0.0
    assert heights[-1] <= 1.0
    assert heights[2] == pytest.approx(0.5)
    assert heights[4] == pytest.approx(0.8)


def test_curves_that_end_alike_share_a_label() -> None:
    assert plots._groups({"a": 2.0, "b": 2e-7, "c": 2.1}) == [["b"], ["a", "c"]]


def test_curves_of_different_courses_do_not_share_a_label() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    result = measure.run_task(problem("classification"), table_of_two_updates(), LineProgress())
    axes = figure.subplots()
    plots._draw_losses(axes, result)
    assert {text.get_text() for text in axes.texts} == {"2 programs on one curve", "twolayer.fit Adam"}


def table_of_two_updates() -> methods.MethodTable:
    names = {"NumPy, float64": None, "twolayer.fit": None, "twolayer.fit Adam": methods.Update("adam", 1e-5)}
    rows = tuple(methods.Method(name, program(lambda: [4.0, 2.0]), update=update) for name, update in names.items())
    return methods.MethodTable(rows, "NumPy, float64", "NumPy, float64", "twolayer.fit")
