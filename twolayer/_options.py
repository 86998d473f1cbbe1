"""The options of training, checked once and with their names resolved."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from typing import Any

from . import _native
from .registry import LOSSES, OPTIMIZERS, Loss, Optimizer, lookup

# Options of the fixed interface that this version does not have yet: no other value than this is taken.
_NOT_YET = {
    "l1": 0.0,
    "l2": 0.0,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "validation": None,
    "early_stopping": None,
    "lr_schedule": None,
    "precision": None,
}


@dataclass(frozen=True)
class TrainOptions:
    """What ``fit`` and ``Trainer`` share, as documented at :func:`twolayer.fit`."""

    loss: Loss
    optimizer: Optimizer
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    threads: int

    @property
    def update_rule(self) -> dict[str, Any]:
        """The optimiser's own options, by torch.optim's names."""
        return {name: getattr(self, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}


def check_options(
    *,
    loss: str = "cross_entropy",
    optimizer: str = "sgd",
    lr: float = 1e-2,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    threads: int | None = None,
    **others: Any,
) -> TrainOptions:
    """Return the options; raise ``TypeError`` or ``ValueError`` that names the one that is wrong."""
    _refuse(others)
    options = TrainOptions(
        loss=lookup(LOSSES, loss, "loss"),
        optimizer=lookup(OPTIMIZERS, optimizer, "optimizer"),
        lr=non_negative("lr", lr),
        momentum=non_negative("momentum", momentum),
        nesterov=boolean("nesterov", nesterov),
        weight_decay=non_negative("weight_decay", weight_decay),
        batch_size=integer("batch_size", batch_size, minimum=1),
        shuffle=boolean("shuffle", shuffle),
        drop_last=boolean("drop_last", drop_last),
        seed=integer("seed", seed, minimum=0),
        threads=_native.num_threads() if threads is None else integer("threads", threads, minimum=1),
    )
    if options.nesterov and options.momentum == 0:
        raise ValueError("nesterov needs a momentum above 0; got momentum=0")
    return options


def _refuse(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name in _NOT_YET:
            if value != _NOT_YET[name]:
                raise ValueError(f"{name} is not available in this version of twolayer; got {name}={value!r}")
            continue
        known = [*(field.name for field in fields(TrainOptions)), *_NOT_YET]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TypeError(f"there is no training option {name!r}{hint}")


def non_negative(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0; got {value}")
    return float(value)


def integer(name: str, value: object, *, minimum: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    number = value.__index__()
    if not minimum <= number < 2**63:
        raise ValueError(f"{name} must be at least {minimum} and below 2**63; got {number}")
    return int(number)


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value
