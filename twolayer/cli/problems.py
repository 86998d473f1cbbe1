"""What the comparison trains on: the tutorial's two tasks, with the data, initial weights and options all share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import MNIST
from ..reference import tutorial

Array = NDArray[Any]

BATCH_SIZE = 64
CLASSIFICATION_EPOCHS = 30
REGRESSION_STEPS = 500
QUICK_EPOCHS = 3
QUICK_IMAGES = 200 * BATCH_SIZE
QUICK_NOTE = (
    "A quick run: fewer repeats, images and epochs, and no torch.compile, as compiling takes longer than the run."
)


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

    @property
    def summary(self) -> str:
        sizes = "-".join(map(str, self.layers))
        length = f"{self.steps:,} steps" if self.batches == 1 else f"{self.epochs} epochs × {self.batches} steps"
        return (
            f"{sizes}, {self.activation}, {self.loss}, SGD with lr {self.lr:g}, batches of {self.batch_size}, {length}"
        )

    def warm_up(self) -> Problem:
        """The same task cut to two batches and two epochs, to load and compile whatever a program needs."""
        rows = 2 * self.batch_size
        return dataclasses.replace(self, x=self.x[:rows], y=self.y[:rows], epochs=2)


def regression(*, seed: int, steps: int | None, activation: str, threads: int, quick: bool) -> Problem:
    """The tutorial's regression of 64 random rows on one random target, without biases."""
    steps = steps or REGRESSION_STEPS
    x, y, w1, w2 = tutorial.regression_data(seed)
    notes = [QUICK_NOTE] if quick else []
    if steps != REGRESSION_STEPS:
        notes.append(f"The tutorial's figure is of {REGRESSION_STEPS} steps, not {steps}.")
    return Problem(
        task="regression",
        data=f"{len(x)} rows of {x.shape[1]} standard normal numbers, seed {seed}",
        x=x,
        y=np.ascontiguousarray(np.broadcast_to(y, (len(x), len(y)))),
        test=None,
        starts={"randn": Weights(np.ascontiguousarray(w1.T), None, np.ascontiguousarray(w2.T), None)},
        activation=activation,
        loss="mse_sum",
        lr=1e-6,
        epochs=steps,
        threads=threads,
        rounds=2 if quick else 7,
        notes=tuple(notes),
    )


def classification(mnist: MNIST, *, seed: int, epochs: int | None, threads: int, quick: bool) -> Problem:
    """The tutorial's classification of handwritten digits from raw pixels."""
    epochs = epochs or (QUICK_EPOCHS if quick else CLASSIFICATION_EPOCHS)
    images = mnist.x_train[:QUICK_IMAGES] if quick else mnist.x_train
    if len(images) < BATCH_SIZE:
        raise ValueError(f"expected at least {BATCH_SIZE} training images, one batch; got {len(images)}")
    data = f"{_name(mnist)}: {len(images):,} training and {len(mnist.x_test):,} test images, raw pixels, seed {seed}"
    notes = [QUICK_NOTE] if quick else []
    if len(images) < len(mnist.x_train):
        notes.append(f"The first {len(images):,} of {len(mnist.x_train):,} training images.")
    if epochs != CLASSIFICATION_EPOCHS or len(images) != 60_000:
        notes.append(f"The tutorial's figures are of {CLASSIFICATION_EPOCHS} epochs of MNIST's 60,000 training images.")
    return Problem(
        task="classification",
        data=data,
        x=_flat(images),
        y=mnist.y_train[: len(images)],
        test=(_flat(mnist.x_test), mnist.y_test),
        starts={
            "linear": Weights(*tutorial.linear_weights(seed)),
            "randn": Weights(*tutorial.randn_weights(seed)),
        },
        activation="sigmoid",
        loss="cross_entropy",
        lr=1e-4,
        epochs=epochs,
        threads=threads,
        rounds=1,
        notes=tuple(notes),
    )


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1).astype(np.float32)


def _name(mnist: MNIST) -> str:
    path = Path(mnist.source)
    return path.name if path.exists() else mnist.source  # a report has no use for where the files lie
