"""What a program is given: data, initial weights and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..reference.run import OnEpoch, Run

Array = NDArray[Any]

BATCH_SIZE = 64


@dataclass(frozen=True)
class Weights:
    """Initial weights in nn.Linear's layout, float32."""

    w1: Array  # (hidden, in)
    b1: Array | None  # (hidden,)
    w2: Array  # (out, hidden)
    b2: Array | None  # (out,)

    def arrays(self) -> dict[str, Array]:
        """Those that there are, by name, in order."""
        return {name: array for name, array in vars(self).items() if array is not None}


@dataclass(frozen=True)
class Problem:
    """One training task. An epoch takes the batches in order and drops a last short one."""

    task: str
    data: str  # in words
    x: Array  # (n, in) float32
    y: Array  # (n,) int64 labels or (n, out) float32 targets
    test: tuple[Array, Array] | None  # x and labels, where accuracy means something
    starts: Mapping[str, Weights]
    activation: str
    loss: str
    lr: float
    epochs: int
    threads: int
    rounds: int  # each program runs this often, and its median time counts
    notes: tuple[str, ...] = ()
    batch_size: int = BATCH_SIZE
    optimizer: str = "sgd"
    momentum: float = 0.0
    dtype: str = "float32"  # of the programs that can train in several

    @property
    def title(self) -> str:
        return self.task[0].upper() + self.task[1:]

    @property
    def batches(self) -> int:
        return len(self.x) // self.batch_size

    @property
    def steps(self) -> int:
        return self.epochs * self.batches

    @property
    def layers(self) -> tuple[int, int, int]:
        """The sizes of input, hidden layer and output."""
        weights = next(iter(self.starts.values()))
        out, hidden = weights.w2.shape
        return weights.w1.shape[1], hidden, out

    def batch_rows(self) -> Iterator[slice]:
        """The rows of each batch of an epoch."""
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            yield slice(start, start + self.batch_size)

    @property
    def summary(self) -> str:
        sizes = "-".join(map(str, self.layers))
        length = f"{self.steps:,} steps" if self.batches == 1 else f"{self.epochs} epochs × {self.batches} steps"
        optimizer = {"sgd": "SGD", "adam": "Adam"}[self.optimizer]
        update = f"{optimizer} with lr {self.lr:g}"
        return f"{sizes}, {self.activation}, {self.loss}, {update}, batches of {self.batch_size}, {length}"

    def warm_up(self) -> Problem:
        """The same task cut to two batches and two epochs, to load and compile whatever a program needs."""
        rows = 2 * self.batch_size
        return dataclasses.replace(self, x=self.x[:rows], y=self.y[:rows], epochs=2)


class TimedRun(NamedTuple):
    """A run and its seconds, taken where it happened: in another process."""

    run: Run
    seconds: float


Train = Callable[["OnEpoch | None"], "Run | TimedRun"]
Prepare = Callable[[Problem, Weights], Train]


class Calls(NamedTuple):
    """What is timed, and the arrays by name that it gives from the initial weights, to be verified before."""

    run: Callable[[int], object]  # this often
    results: Callable[[], dict[str, Array]]


PrepareCalls = Callable[[Problem, Weights], Calls]


def run_of(losses: list[float], weights: Mapping[str, Array]) -> Run:
    return Run(losses, weights["w1"], weights.get("b1"), weights["w2"], weights.get("b2"))


def run_epochs(problem: Problem, epoch: Callable[[], float], on_epoch: OnEpoch | None) -> list[float]:
    losses = []
    for number in range(problem.epochs):
        losses.append(epoch())
        if on_epoch:
            on_epoch(number, losses[-1])
    return losses


def output_gradient(problem: Problem) -> Array:
    """(rows, out): a gradient for the outputs, the same wherever it is asked for."""
    draw = np.random.default_rng(len(problem.x))
    return draw.standard_normal((len(problem.x), problem.layers[2])).astype(problem.dtype)
