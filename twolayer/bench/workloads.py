"""What is computed: a net, its data and options, in as few words as a table's row needs, and how much work that is."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..data import DatasetNotFoundError, load_mnist
from ..programs.problem import Array, Problem, Weights
from ..reference.tutorial import regression_data

MNIST_DENSITY = 0.19  # the share of its pixels that are not zero
MNIST_ROWS = 60_000


@dataclass(frozen=True)
class Workload:
    """A task on one net; ``problem`` draws its data and weights.

    ``data``: "dense" normal numbers; "digits", MNIST's raw pixels or as sparse random ones; "regression", the
    tutorial's. ``pool`` is how many rows are drawn, of which the first are used, so that workloads can share them.
    """

    task: str  # fit; forward, backward, step, infer: of one batch
    layers: tuple[int, int, int]  # in, hidden, out
    batch: int
    batches: int = 1
    data: str = "dense"
    activation: str = "sigmoid"
    loss: str = "cross_entropy"
    lr: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.0
    scale: float = 1.0  # of the inputs
    dtype: str = "float32"
    pool: int = 0

    @property
    def rows(self) -> int:
        return self.batch * self.batches

    def problem(self, seed: int, threads: int = 1) -> Problem:
        """The problem with data and weights drawn from ``seed``; x and y hold the whole pool."""
        inputs, _, out = self.layers
        x, y, words = _data(self.data, inputs, out, max(self.rows, self.pool), seed)
        if self.scale != 1:
            x = x * np.float32(self.scale)
        return Problem(
            task=self.task,
            data=words,
            x=x,
            y=y,
            test=None,
            starts={"": _weights(self.layers, seed, self.data == "regression")},
            activation=self.activation,
            loss=self.loss,
            lr=self.lr,
            epochs=1,
            threads=threads,
            rounds=1,
            batch_size=self.batch,
            optimizer=self.optimizer,
            momentum=self.momentum,
            dtype=self.dtype,
        )

    def flops(self, density: float = 1.0) -> float:
        """Multiplications and additions of a step or call; ``density`` is the share of the inputs that is not zero."""
        inputs, hidden, out = self.layers
        first, second = 2 * self.batch * inputs * hidden * density, 2 * self.batch * hidden * out
        return first + second if self.task in ("forward", "infer") else 2 * first + 3 * second

    def weight_bytes(self) -> int:
        """Bytes of the two weights."""
        inputs, hidden, out = self.layers
        return (8 if self.dtype == "float64" else 4) * hidden * (inputs + out)

    def weight_passes(self) -> int:
        """How often a step or call goes through the weights: forward; backward or the update's reading; its writing."""
        return {"forward": 1, "infer": 1, "backward": 2}.get(self.task, 3)


@functools.lru_cache(maxsize=2)
def _data(kind: str, inputs: int, out: int, rows: int, seed: int) -> tuple[Array, Array, str]:
    """x (rows, inputs), y, and in words what they are."""
    draw = np.random.default_rng(seed)
    if kind == "regression":
        x, y, _, _ = regression_data(seed)
        return x, np.ascontiguousarray(np.broadcast_to(y, (len(x), len(y)))), "the tutorial's random rows"
    labels = draw.integers(0, out, rows)
    if kind == "dense":
        return draw.standard_normal((rows, inputs), dtype=np.float32), labels, "standard normal numbers"
    try:
        digits = load_mnist(download=False)
    except DatasetNotFoundError:
        inked = draw.random((rows, inputs), dtype=np.float32) < MNIST_DENSITY
        x = inked * draw.integers(1, 256, (rows, inputs), dtype=np.uint8)
        return x.astype(np.float32), labels, f"random pixels, {1 - MNIST_DENSITY:.0%} zeros: MNIST was not found"
    order = draw.permutation(len(digits.x_train))[:rows]
    x = digits.x_train[order].reshape(len(order), -1).astype(np.float32)
    return x, digits.y_train[order], "MNIST's raw pixels"


def _weights(layers: tuple[int, int, int], seed: int, as_regression: bool) -> Weights:
    if as_regression:
        _, _, w1, w2 = regression_data(seed)
        return Weights(np.ascontiguousarray(w1.T), None, np.ascontiguousarray(w2.T), None)
    inputs, hidden, out = layers
    draw = np.random.default_rng(seed + 1)

    def uniform(fan_in: int, *shape: int) -> Array:  # nn.Linear's
        return (draw.uniform(-1, 1, shape) / np.sqrt(fan_in)).astype(np.float32)

    return Weights(
        uniform(inputs, hidden, inputs), uniform(inputs, hidden), uniform(hidden, out, hidden), uniform(hidden, out)
    )
