"""The options of training, checked once and with their names resolved."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from .. import _native
from ..registry import LOSSES, OPTIMIZERS, Loss, Optimizer, lookup
from .checks import boolean, integer, number
from .schedules import Schedule, as_schedule

PARAMETER_NAMES = ("w1", "b1", "w2", "b2")
PRECISIONS = (None, "float32", "float64", "bfloat16")


class TrainOptions(NamedTuple):
    """What ``fit`` and ``Trainer`` share, as documented at :func:`twolayer.fit`."""

    loss: Loss
    optimizer: Optimizer
    lr: float
    update_rule: dict[str, Any]  # the optimiser's other options, by torch.optim's names
    label_smoothing: float
    loss_beta: float
    ignore_index: int
    l1: float
    l2: float
    penalty_per_row: bool
    clip_norm: float
    clip_value: float
    dropout: float
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    lr_schedule: Schedule
    input_scale: float
    input_shift: float
    skip_zeros: str  # as the engines call it: "auto", "always", "never"
    stop_if_not_finite: bool
    precision: str | None
    threads: int


def check_options(
    *,
    loss: str = "cross_entropy",
    optimizer: str = "sgd",
    lr: float = 1e-2,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    amsgrad: bool = False,
    eps_hat: bool = False,
    alpha: float = 0.99,
    centered: bool = False,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    label_smoothing: float = 0.0,
    loss_beta: float = 1.0,
    ignore_index: int = -100,
    l1: float = 0.0,
    l2: float = 0.0,
    penalty_per_row: bool = False,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    dropout: float = 0.0,
    batch_size: int = 64,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    lr_schedule: Any = None,
    input_scale: float = 1.0,
    input_shift: float = 0.0,
    skip_zeros: bool | None = None,
    nonfinite: str = "raise",
    precision: str | None = None,
    threads: int | None = None,
) -> TrainOptions:
    """Return the options; raise ``TypeError`` or ``ValueError`` that names the one that is wrong."""
    if boolean("nesterov", nesterov) and (momentum == 0 or dampening != 0):
        raise ValueError(f"nesterov needs a momentum above 0 and no dampening; got {momentum=}, {dampening=}")
    if nonfinite not in ("raise", "continue"):
        raise ValueError(f"nonfinite must be 'raise' or 'continue'; got {nonfinite!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be None, 'float32', 'float64' or 'bfloat16'; got {precision!r}")
    update_rule = {
        "momentum": number("momentum", momentum, 0.0),
        "dampening": number("dampening", dampening, 0.0, 1.0),
        "nesterov": nesterov,
        "weight_decay": number("weight_decay", weight_decay, 0.0),
        "betas": _betas(betas),
        "eps": number("eps", eps, 0.0),
        "amsgrad": boolean("amsgrad", amsgrad),
        "eps_hat": boolean("eps_hat", eps_hat),
        "alpha": number("alpha", alpha, 0.0, 1.0),
        "centered": boolean("centered", centered),
        "lr_decay": number("lr_decay", lr_decay, 0.0),
        "initial_accumulator_value": number("initial_accumulator_value", initial_accumulator_value, 0.0),
    }
    loss_options: dict[str, Any] = {
        "label_smoothing": number("label_smoothing", label_smoothing, 0.0, 1.0),
        "loss_beta": number("loss_beta", loss_beta, 0.0),
        "ignore_index": integer("ignore_index", ignore_index, minimum=-(2**63)),
    }
    update_row, loss_row = lookup(OPTIMIZERS, optimizer, "optimizer"), lookup(LOSSES, loss, "loss")
    _refuse_foreign(update_rule, update_row.options, f"optimizer {optimizer!r}")
    of_loss = ["loss_beta" if name == "beta" else name for name in loss_row.options]
    _refuse_foreign(loss_options, of_loss, f"loss {loss!r}")
    if loss == "huber" and loss_beta == 0:
        raise ValueError("loss_beta must be above 0 for loss 'huber'; got 0")
    return TrainOptions(
        loss=loss_row,
        optimizer=update_row,
        lr=number("lr", lr, 0.0),
        update_rule=update_rule,
        **loss_options,
        l1=number("l1", l1, 0.0),
        l2=number("l2", l2, 0.0),
        penalty_per_row=boolean("penalty_per_row", penalty_per_row),
        clip_norm=_limit("clip_norm", clip_norm),
        clip_value=_limit("clip_value", clip_value),
        dropout=_dropout(dropout),
        batch_size=integer("batch_size", batch_size, minimum=1),
        shuffle=boolean("shuffle", shuffle),
        drop_last=boolean("drop_last", drop_last),
        seed=integer("seed", seed, minimum=0),
        lr_schedule=as_schedule(lr_schedule),
        input_scale=number("input_scale", input_scale, -math.inf),
        input_shift=number("input_shift", input_shift, -math.inf),
        skip_zeros="auto" if skip_zeros is None else "always" if boolean("skip_zeros", skip_zeros) else "never",
        stop_if_not_finite=nonfinite == "raise",
        precision=precision,
        threads=_native.num_threads() if threads is None else integer("threads", threads, minimum=1, bits=31),
    )


def _refuse_foreign(given: dict[str, Any], own: Collection[str], owner: str) -> None:
    """Raise ``ValueError`` for an option that ``owner`` does not have, unless it has its default."""
    defaults = inspect.signature(check_options).parameters
    for name, value in given.items():
        if name not in own and value != defaults[name].default:
            raise ValueError(f"{name} is not an option of {owner}; got {name}={value}")


def refuse_unknown(options: dict[str, Any], callers: Iterable[str] = ()) -> None:
    """Raise ``TypeError`` for a keyword that no option has, with the nearest that there is or that the caller has."""
    known = [*inspect.signature(check_options).parameters, "class_weight"]
    for name in options:
        if name not in known:
            import difflib  # not above, where every import would pay for it

            near = difflib.get_close_matches(name, [*known, *callers], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(f"there is no training option {name!r}{hint}")


def _betas(betas: object) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers; got {betas!r}")
    for beta in betas:
        if number("betas", beta, 0.0, 1.0) == 1.0:
            raise ValueError(f"betas must be below 1; got {betas!r}")
    return float(betas[0]), float(betas[1])


def _limit(name: str, value: float | None) -> float:
    """Return 0 for None; a limit must be above 0."""
    if value is None:
        return 0.0
    if number(name, value, 0.0) == 0.0:
        raise ValueError(f"{name} must be above 0, or None for no clipping; got {value}")
    return float(value)


def _dropout(value: float) -> float:
    if number("dropout", value, 0.0, 1.0) == 1.0:
        raise ValueError(f"dropout must be below 1; got {value}")
    return float(value)
