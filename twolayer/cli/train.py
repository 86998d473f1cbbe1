"""``twolayer train``: a net from a file of one's own, with checkpoints from which a killed run goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.encoding import MAX_CATEGORIES, SCALINGS, TASKS
from ..registry import ACTIVATIONS, LOSSES, OPTIMIZERS
from ..reporting.strict_json import dumps
from ..training.stopping import MONITORS
from .arguments import natural, not_negative, positive_float, positive_int, seed, share
from .data_options import DATA_HELP, Refused, add_data_options

if TYPE_CHECKING:
    from ..model_file import Model
    from ..training.results import History
    from .planning import Plan

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


def run(options: argparse.Namespace) -> int:
    """Train and save; returns 0, or 1 when the loss was not finite or a file could not be written.

    ``Refused`` when an option or the data is wrong; nothing was written then.
    """
    from ..atomic import remove_leftovers
    from ..model_file import load_model, save_model
    from ..training.results import NonFiniteLossError
    from .checkpoints import save_checkpoint
    from .planning import make_plan

    try:
        plan = make_plan(options)
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


def _draw(path: Path, history: History) -> None:
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
            "rows": {"training": plan.rows, "validation": plan.held_out},
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


def _measured(model: Model, validation: tuple[Any, Array]) -> dict[str, Any]:
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
