"""Trains a ``NumpyNet`` in a process of its own, in which torch is never imported, and tells what ``fit`` took there.

The process is ``python -m twolayer.cli.torchless FOLDER``: it reads what is given from the folder and its standard
input, and leaves what it has trained in the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import NumpyNet, fit

Array = NDArray[Any]


class Trained(NamedTuple):
    """The loss of each epoch's last batch, the weights by name, and the seconds of ``fit`` alone."""

    losses: list[float]
    weights: dict[str, Array]
    seconds: float


def train(weights: Mapping[str, Array], x: Array, y: Array, activation: str, options: Mapping[str, Any]) -> Trained:
    """Train in a new process from ``weights`` (w1, b1, w2, b2) on x (n, in) and y; ``options`` are those of ``fit``.

    Raises ``RuntimeError`` with the last line of what the process wrote to its standard error when it fails.
    """
    with TemporaryDirectory(prefix="twolayer-") as name:
        folder = Path(name)
        _save(folder / "weights.npz", weights)
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        done = subprocess.run(
            [sys.executable, "-m", __name__, name],
            input=json.dumps({"activation": activation, "options": dict(options)}),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            capture_output=True,
            encoding="utf-8",
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(f"the process without torch failed: {lines[-1]}")
        with np.load(folder / "trained.npz") as trained:
            return Trained(**json.loads(done.stdout), weights=dict(trained))


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _net(folder: Path, activation: str) -> NumpyNet:
    with np.load(folder / "weights.npz") as arrays:
        weights = dict(arrays)
    (hidden, inputs), outputs = weights["w1"].shape, len(weights["w2"])
    net = NumpyNet(inputs, hidden, outputs, activation, bias="b1" in weights)
    for name, array in weights.items():
        setattr(net, name, array)
    return net


def main(folder: Path) -> None:
    """Train what ``train`` has left in ``folder``; print losses and seconds as JSON."""
    given = json.load(sys.stdin)
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    rows = 2 * given["options"]["batch_size"]
    fit(_net(folder, given["activation"]), x[:rows], y[:rows], **{**given["options"], "epochs": 1})  # warm-up
    net = _net(folder, given["activation"])
    started = perf_counter()
    history = fit(net, x, y, **given["options"])
    seconds = perf_counter() - started
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported")
    _save(folder / "trained.npz", net.parameters())
    json.dump({"losses": history.last_batch_loss, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
