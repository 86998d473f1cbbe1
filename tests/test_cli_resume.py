"""``twolayer train`` killed at any moment: no file is half-written, and ``--resume`` ends with the same bits."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_runs import subprocess_environment

from twolayer import cli
from twolayer.model_file import load_model

pytest.importorskip("safetensors")
from safetensors.numpy import load_file

MODEL, CHECKPOINT = Path("model.safetensors"), Path("model.checkpoint.safetensors")
RULES = {
    "sgd": ["--optimizer", "sgd", "--momentum", "0.9"],
    "adam": ["--dropout", "0.2"],
    "rmsprop": ["--optimizer", "rmsprop", "--lr-schedule", "cosine"],
    "early stopping": ["--patience", "3", "--lr", "0.02"],
    "no validation": ["--validation", "0", "--precision", "float64"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 12)).astype(np.float32)
    np.savez("data.npz", x=x, y=(x[:, 0] * x[:, 1] + draw.normal(size=400) > 0).astype(np.int64))
    return tmp_path


def train(*options: object) -> int:
    return cli.main(["train", "data.npz", "--hidden", "20", *map(str, options)])


def assert_same_run(one: Path, other: Path) -> None:
    """The same tensors, and the same history but for the time it took."""
    found, expected = load_file(one), load_file(other)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    histories = [{**vars(load_model(path).history), "seconds": None} for path in (one, other)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(
    rule: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from twolayer.cli import checkpoints

    whole = Path("whole.safetensors")
    assert train(*rule, "--epochs", 12, "--out", whole) == 0
    epochs = len(load_model(whole).history.loss)
    assert epochs == 12 or "--patience" in rule
    save = checkpoints.save_checkpoint

    def save_until(stop: int, path: Path, checkpoint: Any) -> None:
        save(path, checkpoint)
        if checkpoint.state["epochs"] == stop:
            raise KeyboardInterrupt

    for stop in (1, epochs // 2, epochs - 1):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_checkpoint", functools.partial(save_until, stop))
            assert train(*rule, "--epochs", 12) == 130
        assert len(load_model(CHECKPOINT).history.loss) == stop
        assert train(*rule, "--epochs", 12, "--resume") == 0
        assert_same_run(MODEL, whole)
    assert_same_run(CHECKPOINT, Path("whole.checkpoint.safetensors"))


def test_a_finished_run_is_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 9, "--out", "whole.safetensors") == 0
    assert train("--epochs", 5, "--resume") == 0  # there is nothing to resume
    assert train("--epochs", 5, "--resume") == 0  # there is nothing left to do
    assert len(load_model(MODEL).history.loss) == 5
    capsys.readouterr()
    assert train("--epochs", 9, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_from"] == 5
    assert_same_run(MODEL, Path("whole.safetensors"))


def test_a_checkpoint_can_be_evaluated_and_is_written_as_often_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 5, "--checkpoint-every", 0) == 0
    assert not CHECKPOINT.exists()
    written = []
    for every in (1, 3):
        CHECKPOINT.unlink(missing_ok=True)
        assert train("--epochs", 5, "--checkpoint-every", every) == 0
        written.append(len(load_model(CHECKPOINT).history.loss))
    assert written == [5, 5]  # the last epoch's always
    capsys.readouterr()
    assert cli.main(["evaluate", str(CHECKPOINT), "data.npz", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert cli.main(["evaluate", str(MODEL), "data.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "0.5"], "argument --lr: model.checkpoint.safetensors was trained with 0.001; got 0.5"),
        (["--hidden", "21"], "argument --hidden: model.checkpoint.safetensors was trained with 20; got 21"),
        (["--batch-size", "7"], "argument --batch-size: model.checkpoint.safetensors was trained with 64; got 7"),
        (["--validation", "0.3"], "argument --validation: model.checkpoint.safetensors was trained with 0.2; got 0.3"),
        (["--patience", "3"], "argument --patience: model.checkpoint.safetensors was trained with None; got 3"),
    ],
)
def test_a_resumed_run_must_be_the_same(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 2) == 0
    before = CHECKPOINT.read_bytes()
    assert train("--epochs", 4, "--resume", *options) == 2
    assert message in capsys.readouterr().err
    assert CHECKPOINT.read_bytes() == before


def test_a_resumed_run_must_be_on_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 2) == 0
    with np.load("data.npz") as data:
        x, y = data["x"].copy(), data["y"]
    x[17, 3] += 1e-3
    np.savez("data.npz", x=x, y=y)
    assert train("--epochs", 4, "--resume") == 2
    assert "was trained on other data (data.npz, 400 rows)" in capsys.readouterr().err


def test_a_schedule_over_the_epochs_fixes_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 2, "--lr-schedule", "cosine") == 0
    assert train("--epochs", 4, "--lr-schedule", "cosine", "--resume") == 2
    assert "argument --epochs: model.checkpoint.safetensors was trained with 2; got 4" in capsys.readouterr().err


def test_a_model_is_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 1) == 0
    shutil.copy(MODEL, CHECKPOINT)
    assert train("--epochs", 2, "--resume") == 2
    assert "expected a checkpoint; got a finished model" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_random_moments_it_ends_as_if_never_killed() -> None:
    options = ["--hidden", "20", "--epochs", "150", "--patience", "150", "--lr", "0.01"]
    command = [sys.executable, "-m", "twolayer", "train", "data.npz", *options, "--resume"]
    assert cli.main(["train", "data.npz", *options, "--out", "whole.safetensors"]) == 0
    draw = random.Random(0)
    kills, done, resumed = 0, 0, set()
    deadline = time.monotonic() + 40
    while not MODEL.exists():
        assert time.monotonic() < deadline, f"not done after {kills} kills"
        process = subprocess.Popen(command, env=subprocess_environment(), stdout=subprocess.DEVNULL)
        before = CHECKPOINT.stat().st_mtime_ns if CHECKPOINT.exists() else 0
        if kills < 6:
            while process.poll() is None and (not CHECKPOINT.exists() or CHECKPOINT.stat().st_mtime_ns == before):
                time.sleep(0.001)  # until it trains: starting takes longer, and writes nothing
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        if CHECKPOINT.exists():  # whole, and never behind the one before
            epochs = len(load_model(CHECKPOINT).history.loss)
            assert epochs >= done
            done = epochs
            resumed.add(epochs)
    assert kills >= 3
    assert len(resumed) >= 3
    assert_same_run(MODEL, Path("whole.safetensors"))
    assert subprocess.run(command, env=subprocess_environment(), stdout=subprocess.DEVNULL).returncode == 0
    assert sorted(os.listdir()) == sorted(
        ["data.npz", MODEL.name, CHECKPOINT.name, "whole.safetensors", "whole.checkpoint.safetensors"]
    )  # nor is anything left of files that were begun
