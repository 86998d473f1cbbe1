"""``twolayer train``: a net from a file of one's own, with checkpoints from which a killed run goes on."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.encoding import MAX_CATEGORIES, SCALINGS, TASKS
from ..registry import ACTIVATIONS, LOSSES, OPTIMIZERS
from ..reporting.strict_json import dumps
from ..training.stopping import MONITORS
from .arguments import DEFAULT_LR, natural, not_negative, positive_float, positive_int, seed, share
from .data_options import DATA_HELP, Refused, add_data_options, reading_of

Array = NDArray[Any]

SCHEDULES = ("constant", "cosine", "onecycle")


def add_command(commands: Any) -> None:
    """Add ``train`` to the argparse subcommands."""
    parser = commands.add_parser(
        "train",
        help="train a net on a file of your own and save it",
        usage="twolayer train DATA --target COLUMN [--out MODEL] [options]",
        description="Train a two-layer net on a file of your own and save it, with all that predicting takes. After "
        "each epoch a checkpoint is written; a run that was killed goes on with --resume and ends with the same bits.",
    )
    parser.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    add_data_options(
        parser,
        target="what to learn: a column's name or position, repeatedly for several values; of .npz the array (default: "
        "y); of images a file of labels (default: MNIST's beside it); not for svmlight",
    )
    add = parser.add_argument_group("what to learn").add_argument
    add("--task", choices=TASKS, help="default: texts and whole numbers are classes, other numbers values")
    add(
        "--scaling",
        choices=SCALINGS,
        default="auto",
        help="of numbers: mean 0 and deviation 1, over 255, or none (default: auto: pixels for bytes, else standard)",
    )
    add(
        "--max-categories",
        type=positive_int,
        default=MAX_CATEGORIES,
        metavar="N",
        help="that a column of texts may have, each an input of its own (default: %(default)s)",
    )
    add("--validation", type=share, metavar="SHARE", help="of the rows to hold out (default: 0.2)")
    add("--validation-data", type=Path, metavar="FILE", help="validate on this file instead")
    add = parser.add_argument_group("the net").add_argument
    add("--hidden", type=positive_int, default=100, metavar="N", help="units in the hidden layer (default: 100)")
    add("--activation", choices=tuple(ACTIVATIONS), default="relu", metavar="NAME", help=_names(ACTIVATIONS, "relu"))
    add("--precision", choices=("float32", "float64", "bfloat16"), default="float32", help="default: float32")
    _add_training(parser)
    _add_output(parser)
    parser.set_defaults(run=run)


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int, default=30, metavar="N", help="default: 30")
    add("--batch-size", type=positive_int, default=64, metavar="N", help="default: 64")
    add("--optimizer", choices=tuple(OPTIMIZERS), default="adam", metavar="NAME", help=_names(OPTIMIZERS, "adam"))
    add("--lr", type=positive_float, metavar="RATE", help="learning rate (default: 0.001 by adam and adamw, else 0.01)")
    add("--lr-schedule", choices=SCHEDULES, default="constant", help="over the epochs (default: constant)")
    losses = [name for name in LOSSES if name != "bce_with_logits"]
    add("--loss", choices=losses, metavar="NAME", help=f"{', '.join(losses)} (default: cross_entropy for classes, mse)")
    add("--momentum", type=share, metavar="M", help="of sgd and rmsprop")
    add("--nesterov", action="store_true", help="of sgd, with --momentum")
    add("--weight-decay", type=not_negative, metavar="W", help="as torch.optim's")
    add("--l1", type=not_negative, metavar="L", help="adds L times the sum of the weights' absolute values to the loss")
    add("--l2", type=not_negative, metavar="L", help="adds L/2 times the sum of the weights' squares to the loss")
    add("--dropout", type=share, metavar="P", help="of hidden values, while training")
    add("--clip-norm", type=positive_float, metavar="N", help="the largest norm of a gradient")
    add("--label-smoothing", type=share, metavar="S", help="of cross_entropy")
    add("--balanced", action="store_true", help="rows of rare classes count for more, so that all classes count alike")
    add("--seed", type=seed, default=0, metavar="N", help="of initial weights, order and split (default: 0)")
    add("--threads", type=positive_int, metavar="N", help="default: all cores this process may use")
    add = parser.add_argument_group("stopping early").add_argument
    add("--patience", type=positive_int, metavar="N", help="stop after so many epochs without getting better")
    add("--min-delta", type=not_negative, default=0.0, metavar="D", help="what counts as better (default: 0)")
    add("--monitor", choices=MONITORS, default="val_loss", help="what is to get better (default: val_loss)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is written").add_argument
    add("--out", type=Path, default=Path("model.safetensors"), metavar="MODEL", help="default: model.safetensors")
    add("--resume", action="store_true", help="go on from the checkpoint of MODEL, or begin if there is none")
    add("--checkpoint-every", type=natural, default=1, metavar="N", help="epochs (default: 1; 0: no checkpoints)")
    add("--curve", type=Path, metavar="PICTURE", help="draw the learning curve (.png, .svg, .pdf)")
    add("--tensorboard", type=Path, metavar="FOLDER", help="log every epoch for TensorBoard")
    add("--json", action="store_true", help="print the result as JSON, and nothing else")


def _names(table: Any, default: str) -> str:
    return f"{', '.join(table)} (default: {default})"


@dataclass
class Plan:
    """All that training needs, checked."""

    training: Any  # a TrainingRun
    checkpoint: Path
    validation: tuple[Any, Array] | None  # encoded x and y, to measure on at the end
    counts: tuple[int, int]  # rows trained on, rows validated on
    notes: list[str]
    log: Any  # a TensorBoardLogger, or None


def run(options: argparse.Namespace) -> int:
    """Train and save; returns 0, or 1 when the loss was not finite or a file could not be written.

    ``Refused`` when an option or the data is wrong; nothing was written then.
    """
    from ..atomic import remove_leftovers
    from ..model_file import load_model, save_model
    from ..training.results import NonFiniteLossError
    from .checkpoints import save_checkpoint

    try:
        plan = _prepare(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise Refused(str(error)) from error
    say: Callable[[str], None] = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    for note in plan.notes:
        say(note)
    training, every = plan.training, options.checkpoint_every
    begun = training.epochs

    def on_epoch() -> None:
        history = training.model.history
        if every and (training.epochs % every == 0 or training.epochs == options.epochs or history.stopped_early):
            save_checkpoint(plan.checkpoint, training.checkpoint())
        if plan.log is not None:
            plan.log(training.epochs - 1, history)

    try:
        for path in (options.out, plan.checkpoint):
            remove_leftovers(path)
        if not options.resume:
            plan.checkpoint.unlink(missing_ok=True)  # an earlier run's, which nobody is to take for this one's
        training.run(options.epochs, on_epoch, progress=sys.stderr is not None and sys.stderr.isatty())
        training.take_best()
        save_model(options.out, training.model)
        if options.curve:
            _draw(options.curve, training.model.history)
    except KeyboardInterrupt:
        if plan.checkpoint.exists():
            saved = len(load_model(plan.checkpoint).history.loss)
            print(
                f"twolayer train: interrupted; {plan.checkpoint} has {saved} epochs: the same command with --resume "
                f"goes on, and with --resume --epochs {saved} makes a model of it as it is",
                file=sys.stderr,
            )
        raise
    except NonFiniteLossError as error:
        found = f"the loss was not finite at step {error.step}, in epoch {training.epochs + 1}"
        print(f"twolayer train: error: {found}; try a smaller --lr, or --clip-norm", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"twolayer train: error: {error}", file=sys.stderr)
        return 1
    finally:
        if plan.log is not None:
            plan.log.close()
    _tell(options, plan, begun)
    return 0


def _prepare(options: argparse.Namespace) -> Plan:
    from ..data.encoding import InputEncoder, TargetEncoder
    from ..data.table import format_of, read_table
    from ..extras import require
    from ..model_file import Model
    from ..numpy_net import NumpyNet
    from ..training.loop import split
    from ..training.stopping import EarlyStopping
    from .checkpoints import checkpoint_path, load_checkpoint
    from .training import TrainingRun

    require("safetensors", "a model file", "cli")
    _check_paths(options)
    reading = reading_of(options)
    table = read_table(options.data, reading, targets=True)
    notes = list(table.notes)
    share_held_out = 0.0 if options.validation_data else 0.2 if options.validation is None else options.validation
    everything = np.arange(len(table))
    rows, held_out = split(len(table), share_held_out, options.seed) if share_held_out else (everything, everything[:0])
    try:
        inputs = InputEncoder.of(
            table.inputs,
            rows,
            options.scaling,
            max_categories=options.max_categories,
            row_shape=table.row_shape,
            zero_based=table.zero_based,
        )
        target = TargetEncoder.of(table.targets, rows, options.scaling, options.task)
        dtype = np.float64 if options.precision == "float64" else np.float32
        x, extra = inputs.encode_for_training(table.inputs, dtype)
        y = target.encode(table.targets, dtype)
    except ValueError as error:
        raise ValueError(f"{options.data}: {error}") from error
    net = NumpyNet(inputs.features, options.hidden, target.features, options.activation, seed=options.seed, dtype=dtype)
    settings = _settings(options, target.task)
    chosen = _fit_options(options, settings, extra)
    if options.balanced:
        chosen["class_weight"] = _balanced(y[rows], target)
    validation: Any = share_held_out or None
    measured = (x[held_out], y[held_out]) if share_held_out else None
    if options.validation_data:
        validation = measured = _validation_data(options, reading, inputs, target, dtype)
    model = Model(net, inputs, target)
    fingerprint = _fingerprint(x, y, *(validation if options.validation_data else ()))
    drawn = {**settings, "validation": share_held_out}
    model.training = {
        **drawn,
        "data": {"name": options.data.name, "rows": len(table), "sha256": fingerprint},
        "reading": _kept_reading(options, reading, table, options.format or format_of(options.data)),
    }
    rule = None
    if options.patience:
        rule = EarlyStopping(options.patience, options.min_delta, options.monitor)
    training = TrainingRun(model, x, y, chosen, validation=validation, rule=rule)
    checkpoint = checkpoint_path(options.out)
    notes += _described(options, inputs, target, len(rows), 0 if measured is None else len(measured[1]))
    if options.resume and checkpoint.exists():
        found = load_checkpoint(checkpoint)
        _check_same(model.training, found.model.training, checkpoint)
        training.resume(found)
        notes.append(f"going on from {checkpoint}, which has {training.epochs} epochs")
    log = None
    if options.tensorboard:
        from ..tensorboard import TensorBoardLogger

        log = TensorBoardLogger(options.tensorboard)
    counts = len(rows), 0 if measured is None else len(measured[1])
    return Plan(training, checkpoint, measured, counts, notes, log)


def _check_paths(options: argparse.Namespace) -> None:
    from ..extras import require

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


def _fit_options(options: argparse.Namespace, settings: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The same as options of ``fit``; those that were not given keep their defaults."""
    from ..training.schedules import CosineDecay, OneCycle

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
    return {**chosen, "threads": options.threads, **extra}


def _balanced(y: Array, target: Any) -> Array:
    """Weights (classes,) with which all classes count alike; a class without rows counts 1."""
    counts = np.bincount(y, minlength=target.features)
    return np.where(counts > 0, len(y) / (target.features * np.maximum(counts, 1)), 1.0)


def _validation_data(
    options: argparse.Namespace, reading: Any, inputs: Any, target: Any, dtype: Any
) -> tuple[Any, Array]:
    from dataclasses import replace

    from ..data.table import read_table

    path = options.validation_data
    reading = replace(reading, features=inputs.features, zero_based=inputs.zero_based)
    table = read_table(path, reading, targets=True)
    try:
        return inputs.encode_for_training(table.inputs, dtype)[0], target.encode(table.targets, dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _kept_reading(options: argparse.Namespace, reading: Any, table: Any, format: str) -> dict[str, Any]:
    """How predicting will read files of the same format."""
    targets = list(table.targets.columns) if hasattr(table.targets, "columns") else list(reading.targets)
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


def _described(options: argparse.Namespace, inputs: Any, target: Any, rows: int, held_out: int) -> list[str]:
    """What was read, and what will be done with it, in words."""
    if inputs.columns is None:
        read = f"{inputs.features:,} columns of numbers"
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
    validated = f", {held_out:,} to validate" if held_out else ", none to validate"
    return [f"{options.data.name}: {read}; {what}", f"{rows:,} rows to train on{validated}"]


def _draw(path: Path, history: Any) -> None:
    from ..plotting import learning_curve
    from .pictures import save_picture

    save_picture(path, learning_curve(history))


def _tell(options: argparse.Namespace, plan: Plan, begun: int) -> None:
    """Print what came of it."""
    from .in_words import metrics_line

    model = plan.training.model
    history = model.history
    measured = _measured(model, plan.validation) if plan.validation is not None else None
    if options.json:
        found = {
            "model": str(options.out),
            "checkpoint": str(plan.checkpoint) if options.checkpoint_every else None,
            "task": model.target.task,
            "classes": None if model.target.classes is None else list(model.target.classes),
            "inputs": model.inputs.features,
            "rows": {"training": plan.counts[0], "validation": plan.counts[1]},
            "epochs": plan.training.epochs,
            "resumed_from": begun,
            "stopped_early": history.stopped_early,
            "best_epoch": history.best_epoch,
            "steps": history.steps,
            "seconds": history.seconds,
            "loss": history.loss,
            "val_loss": history.val_loss,
            "val_accuracy": history.val_accuracy,
            "validation": measured,
            "notes": plan.notes,
        }
        print(dumps(found, indent=None))
        return
    stopped = ", stopped early" if history.stopped_early else ""
    best = "" if history.best_epoch is None else f", the best of them {history.best_epoch + 1}"
    print(f"{plan.training.epochs} epochs in {history.seconds:.3g} s{stopped}{best}; loss {history.loss[-1]:.4g}")
    if measured is not None:
        print(f"on the rows held out: {metrics_line(measured)}")
    written = [str(path) for path in (options.out, options.curve) if path]
    print(f"written: {', '.join(written)}")


def _measured(model: Any, validation: tuple[Any, Array]) -> dict[str, Any]:
    """How good the finished net is on the rows held out."""
    from ..metrics import class_metrics, confusion_counts, value_metrics

    x, y = validation
    if isinstance(x, np.ndarray) and x.dtype == np.uint8:
        x = model.inputs.encode(x, model.net.w1.dtype)
    outputs = model.outputs_of_encoded(x)
    if model.target.classes is not None:
        counts = confusion_counts(y, outputs.argmax(axis=1), len(model.target.classes))
        return {"accuracy": class_metrics(counts)["accuracy"]}
    return value_metrics(y * model.target.scale + model.target.mean, model.target.decode(outputs))
