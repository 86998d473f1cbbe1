"""The options of training, checked once and with their names resolved."""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import dataclass
from typing import Any

from .. import _native
from ..registry import LOSSES, OPTIMIZERS, Loss, Optimizer, lookup
from .schedules import Schedule, as_schedule

PARAMETER_NAMES = ("w1", "b1", "w2", "b2")
PRECISIONS = (None, "float32", "float64", "bfloat16")


@dataclass(frozen=True)
class TrainOptions:
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
    alpha: float = 0.99,
    centered: bool = False,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    label_smoothing: float = 0.0,
    loss_beta: float = 1.0,
    ignore_index: int = -100,
    l1: float = 0.0,
    l2: float = 0.0,
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
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(f"nesterov needs a momentum above 0 and no dampening; got {momentum=}, {dampening=}")
    if nonfinite not in ("raise", "continue"):
        raise ValueError(f"nonfinite must be 'raise' or 'continue'; got {nonfinite!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be None, 'float32', 'float64' or 'bfloat16'; got {precision!r}")
    if loss == "huber" and loss_beta == 0:
        raise ValueError("loss_beta must be above 0 for loss 'huber'; got 0")
    update_rule = {
        "momentum": number("momentum", momentum, 0.0),
        "dampening": number("dampening", dampening, 0.0, 1.0),
        "nesterov": boolean("nesterov", nesterov),
        "weight_decay": number("weight_decay", weight_decay, 0.0),
        "betas": _betas(betas),
        "eps": number("eps", eps, 0.0),
        "amsgrad": boolean("amsgrad", amsgrad),
        "alpha": number("alpha", alpha, 0.0, 1.0),
        "centered": boolean("centered", centered),
        "lr_decay": number("lr_decay", lr_decay, 0.0),
        "initial_accumulator_value": number("initial_accumulator_value", initial_accumulator_value, 0.0),
    }
    row = lookup(OPTIMIZERS, optimizer, "optimizer")
    defaults = inspect.signature(check_options).parameters
    for name, value in update_rule.items():
        if name not in row.options and value != defaults[name].default:
            raise ValueError(f"{name} is not an option of optimizer {optimizer!r}; got {name}={value}")
    return TrainOptions(
        loss=lookup(LOSSES, loss, "loss"),
        optimizer=row,
        lr=number("lr", lr, 0.0),
        update_rule=update_rule,
        label_smoothing=number("label_smoothing", label_smoothing, 0.0, 1.0),
        loss_beta=number("loss_beta", loss_beta, 0.0),
        ignore_index=_signed("ignore_index", ignore_index),
        l1=number("l1", l1, 0.0),
        l2=number("l2", l2, 0.0),
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
        threads=_native.num_threads() if threads is None else integer("threads", threads, minimum=1),
    )


def refuse_unknown(options: dict[str, Any]) -> None:
    """Raise ``TypeError`` for a keyword that no option has, with the nearest that there is."""
    known = inspect.signature(check_options).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(f"there is no training option {name!r}{hint}")


def number(name: str, value: object, minimum: float, maximum: float = math.inf) -> float:
    """Return ``value`` as a float; it must be finite and in [minimum, maximum]."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    result = float(value)
    if not (math.isfinite(result) and minimum <= result <= maximum):
        bound = "" if math.isinf(minimum) else f" and at least {minimum:g}"
        bound += "" if math.isinf(maximum) else f" and at most {maximum:g}"
        raise ValueError(f"{name} must be finite{bound}; got {result}")
    return result


def integer(name: str, value: object, *, minimum: int) -> int:
    result = _signed(name, value)
    if not minimum <= result < 2**63:
        raise ValueError(f"{name} must be at least {minimum} and below 2**63; got {result}")
    return result


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def _signed(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    return int(value.__index__())


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
