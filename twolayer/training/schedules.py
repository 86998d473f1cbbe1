"""Learning-rate schedules: what ``fit(..., lr_schedule=...)`` takes.

A schedule gives the learning rate of each step of an epoch. A plain function ``epoch -> lr`` (epochs count from 0) is
one too. The formulas are those of ``torch.optim.lr_scheduler``, stepped once per epoch, or per step where that is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .checks import boolean, integer, number

Rates = NDArray[np.float64]


class Schedule(Protocol):
    """``rates`` returns the learning rate of steps [first, first + count) of an epoch that has ``steps_per_epoch``.

    In the first epoch on an iterable without a length, ``steps_per_epoch`` is 0.
    """

    def rates(self, lr: float, epoch: int, first: int, count: int, steps_per_epoch: int) -> Rates: ...


class _PerEpoch:
    def factor(self, epoch: float) -> float:
        raise NotImplementedError

    def rates(self, lr: float, epoch: int, first: int, count: int, steps_per_epoch: int) -> Rates:
        return np.full(count, lr * self.factor(epoch))


@dataclass(frozen=True)
class StepDecay(_PerEpoch):
    """lr · gamma^⌊epoch / every⌋ (``StepLR``)."""

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        integer("every", self.every, minimum=1)
        number("gamma", self.gamma, 0.0)

    def factor(self, epoch: float) -> float:
        return self.gamma ** (int(epoch) // self.every)


@dataclass(frozen=True)
class ExponentialDecay(_PerEpoch):
    """lr · gamma^epoch (``ExponentialLR``)."""

    gamma: float

    def __post_init__(self) -> None:
        number("gamma", self.gamma, 0.0)

    def factor(self, epoch: float) -> float:
        return float(self.gamma**epoch)


@dataclass(frozen=True)
class CosineDecay:
    """From lr to ``min_lr`` along half a cosine over ``epochs`` (``CosineAnnealingLR``); per step when ``per_step``."""

    epochs: int
    min_lr: float = 0.0
    per_step: bool = False

    def __post_init__(self) -> None:
        integer("epochs", self.epochs, minimum=1)
        number("min_lr", self.min_lr, 0.0)
        boolean("per_step", self.per_step)

    def rates(self, lr: float, epoch: int, first: int, count: int, steps_per_epoch: int) -> Rates:
        time = np.full(count, float(epoch))
        if self.per_step:
            time += (first + np.arange(count)) / _known(steps_per_epoch)
        share = np.minimum(time / self.epochs, 1.0)
        return self.min_lr + (lr - self.min_lr) * (1 + np.cos(np.pi * share)) / 2


@dataclass(frozen=True)
class OneCycle:
    """Up to ``max_lr`` and down again over ``epochs``, by step, along cosines (``OneCycleLR``); ``lr`` is not used.

    It starts at max_lr / div_factor, is at max_lr after the share ``pct_start`` of the steps, and ends at
    max_lr / (div_factor · final_div_factor).
    """

    max_lr: float
    epochs: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        number("max_lr", self.max_lr, 0.0)
        integer("epochs", self.epochs, minimum=1)
        number("pct_start", self.pct_start, 0.0, 1.0)
        for name in ("div_factor", "final_div_factor"):
            if number(name, getattr(self, name), 0.0) == 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")

    def rates(self, lr: float, epoch: int, first: int, count: int, steps_per_epoch: int) -> Rates:
        total = self.epochs * _known(steps_per_epoch)
        step = np.minimum(epoch * steps_per_epoch + first + np.arange(count), total - 1)
        start = self.max_lr / self.div_factor
        top = self.pct_start * total - 1
        up = _between(start, self.max_lr, step / top if top > 0 else np.ones(count))
        down = _between(self.max_lr, start / self.final_div_factor, (step - top) / (total - 1 - top or 1))
        return np.where(step <= top, up, down)


@dataclass(frozen=True)
class WarmUp:
    """lr rises linearly from ``start_factor`` · lr over the first ``steps`` steps; then ``then``, or lr as it is."""

    steps: int
    start_factor: float = 0.0
    then: Schedule | Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        integer("steps", self.steps, minimum=1)
        number("start_factor", self.start_factor, 0.0, 1.0)
        as_schedule(self.then, "then")

    def rates(self, lr: float, epoch: int, first: int, count: int, steps_per_epoch: int) -> Rates:
        rates = as_schedule(self.then).rates(lr, epoch, first, count, steps_per_epoch)
        share = np.minimum((epoch * steps_per_epoch + first + np.arange(count)) / self.steps, 1.0)
        return rates * (self.start_factor + (1 - self.start_factor) * share)


@dataclass(frozen=True)
class Constant(_PerEpoch):
    """lr, always."""

    def factor(self, epoch: float) -> float:
        return 1.0


@dataclass(frozen=True)
class _Function:
    function: Callable[[int], float]

    def rates(self, lr: float, epoch: int, first: int, count: int, steps_per_epoch: int) -> Rates:
        return np.full(count, number(f"lr_schedule({epoch})", self.function(epoch), 0.0))


def as_schedule(value: Any, name: str = "lr_schedule") -> Schedule:
    """Return None as :class:`Constant`, a function of the epoch as a schedule, and a schedule as it is."""
    if value is None:
        return Constant()
    if hasattr(value, "rates"):
        return value
    if callable(value):
        return _Function(value)
    raise TypeError(f"{name} must be a schedule, a function epoch -> lr, or None; got {type(value).__name__}")


def _known(steps_per_epoch: int) -> int:
    if steps_per_epoch == 0:
        raise ValueError("lr_schedule needs the number of steps in an epoch; x, an iterable, has no length to tell it")
    return steps_per_epoch


def _between(start: float, end: float, share: Any) -> Rates:
    return np.asarray(end + (start - end) / 2.0 * (1 + np.cos(np.pi * np.clip(share, 0.0, 1.0))))
