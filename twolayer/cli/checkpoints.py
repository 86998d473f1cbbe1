"""Checkpoints: a training run in one file, from which it goes on to the same bits.

A checkpoint is a model file, so that one can predict with it, and holds besides the optimiser's arrays and the weights
of the best epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..model_file import Model, read_model, save_model

Array = NDArray[Any]

_BEST = "best"
_OPTIMIZER = "optimizer"


@dataclass
class Checkpoint:
    """``model`` as it was after an epoch, its trainer's ``state_dict``, and the weights of the best epoch so far."""

    model: Model
    state: dict[str, Any]
    best: dict[str, Array] | None  # by the net's names: w1, b1, w2, b2


def checkpoint_path(model: Path) -> Path:
    """Where the checkpoint of a training lies whose model file is to be ``model``."""
    return model.with_name(f"{model.stem}.checkpoint{model.suffix or '.safetensors'}")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it, at once. ``OSError`` when it cannot be written."""
    state = checkpoint.state
    arrays: dict[str, Mapping[str, Array]] = {f"{_OPTIMIZER}.{name}": of for name, of in state["state"].items()}
    if checkpoint.best is not None:
        arrays[_BEST] = checkpoint.best
    extra = {f"{kind}.{name}": array for kind, named in arrays.items() for name, array in named.items()}
    counts = {name: value for name, value in state.items() if name != "state"}
    model = checkpoint.model
    training = {**model.training, "counts": counts}
    save_model(path, Model(model.net, model.inputs, model.target, training, model.history), extra)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote. ``ValueError``, naming the file, when it is no checkpoint."""
    model, extra = read_model(path)
    counts = model.training.pop("counts", None)
    if counts is None:
        raise ValueError(f"{path}: expected a checkpoint; got a finished model")
    state: dict[str, dict[str, Array]] = {}
    best: dict[str, Array] = {}
    for key, array in extra.items():
        kind, _, name = key.rpartition(".")
        if kind == _BEST:
            best[name] = array
        else:
            state.setdefault(kind.removeprefix(f"{_OPTIMIZER}."), {})[name] = array
    return Checkpoint(model, {**counts, "state": state}, best or None)
