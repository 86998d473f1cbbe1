"""What ``twolayer train`` will do, checked before anything is written."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.encoding import InputEncoder, TargetEncoder
from ..data.table import Reading, Table, format_of, read_table
from ..extras import require
from ..model_file import Model
from ..numpy_net import NumpyNet
from ..tensorboard import TensorBoardLogger
from ..training.loop import split
from ..training.schedules import CosineDecay, OneCycle
from ..training.stopping import EarlyStopping
from .arguments import DEFAULT_LR
from .checkpoints import checkpoint_path, load_checkpoint
from .data_options import reading_of
from .training import TrainingRun

Array = NDArray[Any]

_HELD_OUT = 0.2  # the share of the rows, unless --validation says otherwise


@dataclass
class Plan:
    """All that training needs, checked."""

    training: TrainingRun
    checkpoint: Path
    rows: int  # to train on
    validation: tuple[Any, Array] | None  # encoded x and y, to measure the finished net on
    notes: list[str]  # what was read and decided
    log: TensorBoardLogger | None

    @property
    def held_out(self) -> int:
        """How many rows are validated on."""
        return 0 if self.validation is None else len(self.validation[1])


def make_plan(options: argparse.Namespace) -> Plan:
    """Read the data and make ready to train on them, or to go on.

    Raises ``OSError``, ``ValueError``, ``TypeError`` or ``ImportError``, of one line, where something is wrong.
    """
    require("safetensors", "a model file", "cli")
    _check_paths(options)
    reading = reading_of(options)
    table = read_table(options.data, reading, targets=True)
    share = 0.0 if options.validation_data else _HELD_OUT if options.validation is None else options.validation
    everything = np.arange(len(table))
    rows, held_out = split(len(table), share, options.seed) if share else (everything, everything[:0])
    dtype = np.float64 if options.precision == "float64" else np.float32
    try:
        inputs, target = _encoders(options, table, rows)
        x, of_fit = inputs.encode_for_training(table.inputs, dtype)
        y = target.encode(table.targets, dtype)
    except ValueError as error:
        raise ValueError(f"{options.data}: {error}") from error
    settings = {**_settings(options, target.task), "validation": share}
    of_fit |= _fit_options(options, settings)
    if options.balanced:
        of_fit["class_weight"] = _balanced(y[rows], target.features)
    validation = (x[held_out], y[held_out]) if share else None
    if options.validation_data:
        validation = _validation_data(options.validation_data, reading, inputs, target, x)
    net = NumpyNet(inputs.features, options.hidden, target.features, options.activation, seed=options.seed, dtype=dtype)
    fingerprint = _fingerprint(x, y, *(validation if options.validation_data and validation else ()))
    about = {
        **settings,
        "data": {"name": options.data.name, "rows": len(table), "sha256": fingerprint},
        "reading": _kept_reading(options, reading, table),
    }
    training = TrainingRun(
        Model(net, inputs, target, about),
        x,
        y,
        of_fit,
        validation=share or validation,
        rule=EarlyStopping(options.patience, options.min_delta, options.monitor) if options.patience else None,
    )
    plan = Plan(training, checkpoint_path(options.out), len(rows), validation, list(table.notes), None)
    plan.notes += _described(options, inputs, target, plan)
    if options.resume and plan.checkpoint.exists():
        found = load_checkpoint(plan.checkpoint)
        _check_same(about, found.model.training, plan.checkpoint)
        training.resume(found)
        plan.notes.append(f"going on from {plan.checkpoint}, which has {training.epochs} epochs")
    if options.tensorboard:
        plan.log = TensorBoardLogger(options.tensorboard)
    return plan


def _encoders(options: argparse.Namespace, table: Table, rows: Array) -> tuple[InputEncoder, TargetEncoder]:
    inputs = InputEncoder.of(
        table.inputs,
        rows,
        options.scaling,
        max_categories=options.max_categories,
        row_shape=table.row_shape,
        zero_based=table.zero_based,
    )
    return inputs, TargetEncoder.of(table.targets, rows, options.scaling, options.task)


def _check_paths(options: argparse.Namespace) -> None:
    for option, path in (("--out", options.out), ("--curve", options.curve)):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"argument {option}: there is no folder {path.parent}")
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"argument {option}: expected a file; {path} is a folder")
    for option, path in (("--out", options.out), ("--curve", options.curve)):
        if path is not None and path.resolve() == options.data.resolve():
            raise ValueError(f"argument {option}: {path} is the data")
    if options.curve:
        require("matplotlib", "--curve", "cli")
    if options.validation_data and options.validation is not None:
        raise ValueError("argument --validation: is not for --validation-data, which holds nothing out")


def _settings(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """What was asked for, and decides the result; as JSON holds it."""
    loss = options.loss or ("cross_entropy" if task == "classification" else "mse")
    if (loss == "cross_entropy") != (task == "classification"):
        raise ValueError(f"argument --loss: {loss} is not for a {task}")
    if options.balanced and task != "classification":
        raise ValueError("argument --balanced: is for classes, and the targets are values")
    names = (
        *("hidden", "activation", "precision", "batch_size", "optimizer", "lr_schedule", "momentum", "nesterov"),
        *("weight_decay", "l1", "l2", "dropout", "clip_norm", "label_smoothing", "balanced", "seed", "scaling"),
        *("patience", "min_delta", "monitor", "epochs"),
    )
    lr = DEFAULT_LR[options.optimizer] if options.lr is None else options.lr
    return {"task": task, "loss": loss, "lr": lr, **{name: getattr(options, name) for name in names}}


def _fit_options(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The same as options of ``fit``; those that were not given keep their defaults."""
    plain = (
        *("loss", "lr", "batch_size", "optimizer", "momentum", "nesterov", "weight_decay", "l1", "l2"),
        *("dropout", "clip_norm", "label_smoothing", "seed"),
    )
    chosen = {name: settings[name] for name in plain if settings[name] is not None}
    schedules = {
        "constant": None,
        "cosine": CosineDecay(options.epochs, per_step=True),
        "onecycle": OneCycle(settings["lr"], options.epochs),
    }
    chosen["lr_schedule"] = schedules[options.lr_schedule]
    chosen["precision"] = None if options.precision == "float64" else options.precision
    return {**chosen, "threads": options.threads}


def _balanced(y: Array, classes: int) -> Array:
    """Weights (classes,) with which all classes count alike; a class without rows counts 1."""
    counts = np.bincount(y, minlength=classes)
    return np.where(counts > 0, len(y) / (classes * np.maximum(counts, 1)), 1.0)


def _validation_data(
    path: Path, reading: Reading, inputs: InputEncoder, target: TargetEncoder, x: Any
) -> tuple[Any, Array]:
    """The rows of another file, encoded as those to train on are, which are ``x``."""
    reading = dataclasses.replace(reading, features=inputs.features, zero_based=inputs.zero_based)
    table = read_table(path, reading, targets=True)
    try:
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        encoded = inputs.encode_for_training(table.inputs, dtype)[0]
        if encoded.dtype != x.dtype:
            kinds = ("bytes", "other numbers") if x.dtype == np.uint8 else ("other numbers", "bytes")
            raise ValueError(f"expected inputs as those to train on, which are {kinds[0]}; got {kinds[1]}")
        return encoded, target.encode(table.targets, dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _kept_reading(options: argparse.Namespace, reading: Reading, table: Table) -> dict[str, Any]:
    """How predicting will read files of the same format."""
    format = options.format or format_of(options.data)
    targets = list(getattr(table.targets, "columns", reading.targets))
    if format == "idx" or (format == "npy" and any(Path(name).is_file() for name in targets)):
        targets = []  # a file of labels, which is no part of other data
    return {
        "format": format,
        "targets": targets,
        "drop": list(reading.drop),
        "header": reading.header,
        "separator": reading.separator,
    }


def _fingerprint(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        parts = [array] if isinstance(array, np.ndarray) else [array.data, array.indices, array.indptr]
        for part in parts:
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _check_same(now: dict[str, Any], before: dict[str, Any], path: Path) -> None:
    """Raise ``ValueError`` where what is asked for is not what the checkpoint was trained with."""
    free = {"data", "reading"} if now["lr_schedule"] != "constant" else {"data", "reading", "epochs"}
    for name in now:
        if name not in free and now[name] != before.get(name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"argument {option}: {path} was trained with {before.get(name)}; got {now[name]}. Without --resume "
                "training begins anew"
            )
    if now["data"]["sha256"] != before["data"]["sha256"]:
        raise ValueError(f"{path} was trained on other data ({before['data']['name']}, {before['data']['rows']} rows)")


def _described(options: argparse.Namespace, inputs: InputEncoder, target: TargetEncoder, plan: Plan) -> list[str]:
    """What was read, and what will be done with it, in words."""
    if inputs.columns is None:
        image = " × ".join(map(str, inputs.row_shape))
        read = f"images of {image}" if image else f"{inputs.features:,} columns of numbers"
    else:
        texts = [column for column in inputs.columns if column.categories is not None]
        read = f"{len(inputs.columns) - len(texts):,} columns of numbers"
        if texts:
            read += f", {len(texts)} of texts ({', '.join(f'{text.name}: {text.width}' for text in texts[:5])})"
    name = ", ".join(target.names) or "the target"
    if target.classes is not None:
        other = "; if they are values: --task regression" if target.reason == "whole numbers" else ""
        what = f"{name}: {len(target.classes)} classes ({target.reason}{other})"
    else:
        other = "; if they are classes: --task classification" if "whole" in target.reason else ""
        what = f"{name}: values ({target.reason}{other})"
    validated = f", {plan.held_out:,} to validate" if plan.held_out else ", none to validate"
    return [f"{options.data.name}: {read}; {what}", f"{plan.rows:,} rows to train on{validated}"]
