"""Logging to TensorBoard: what is in its files is what the history has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from native_runs import subprocess_environment

from twolayer import NumpyNet, cli, fit
from twolayer.tensorboard import TensorBoardLogger

X, Y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3


class Recorder:
    """A writer that keeps what it is told."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append((step, value))

    def flush(self) -> None:
        pass


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in the folder's files: step and value, by tag."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, float(tensor_util.make_ndarray(value.tensor))))
    return found


def test_a_writer_gets_each_epochs_figures():
    writer = Recorder()
    with TensorBoardLogger(writer) as log:
        history = fit(NumpyNet(4, 5, 3), X, Y, epochs=3, validation=0.2, callback=log)
    assert writer.scalars["loss/training"] == list(enumerate(history.loss, start=1))
    assert writer.scalars["loss/validation"] == list(enumerate(history.val_loss, start=1))
    assert writer.scalars["accuracy/validation"] == list(enumerate(history.val_accuracy, start=1))
    writer = Recorder()
    fit(NumpyNet(4, 5, 3), X, Y, epochs=2, callback=TensorBoardLogger(writer))
    assert set(writer.scalars) == {"loss/training", "seconds"}


def test_a_folder_gets_files_that_tensorboard_reads(tmp_path: Path):
    pytest.importorskip("tensorboard")
    with TensorBoardLogger(tmp_path / "run") as log:
        history = fit(NumpyNet(4, 5, 3), X, Y, epochs=3, validation=0.2, callback=log)
    found = logged(tmp_path / "run")
    assert found["loss/training"] == list(enumerate(np.float32(history.loss).tolist(), start=1))
    assert len(found["accuracy/validation"]) == 3


def test_the_command_logs_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=X, y=Y)
    assert cli.main(["train", "data.npz", "--epochs", "4", "--tensorboard", "runs"]) == 0
    assert [step for step, _ in logged(tmp_path / "runs")["loss/validation"]] == [1, 2, 3, 4]


def test_neither_torch_nor_tensorflow_is_imported(tmp_path: Path):
    pytest.importorskip("tensorboard")
    program = (
        "import sys; from twolayer.tensorboard import TensorBoardLogger; TensorBoardLogger(sys.argv[1]).close(); "
        "sys.exit(bool({'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], env=subprocess_environment(), timeout=60)
    assert done.returncode == 0


def test_what_is_neither_folder_nor_writer_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TypeError, match="to must be a folder or a writer with add_scalar; got int"):
        TensorBoardLogger(3)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match=r"needs tensorboard: pip install 'twolayer\[tensorboard\]'"):
        TensorBoardLogger("runs")
