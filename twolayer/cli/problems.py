"""What the comparison trains on: the tutorial's two tasks, or one's own data; with the initial weights and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import MNIST
from ..data.encoding.scaling import scaling_of
from ..programs.problem import BATCH_SIZE, Problem, Weights
from ..reference import tutorial
from .arguments import DEFAULT_LR
from .own_data import OwnData, Rows

Array = NDArray[Any]

CLASSIFICATION_EPOCHS = 30
REGRESSION_STEPS = 500
QUICK_EPOCHS = 3
OWN_EPOCHS = 30
OWN_HELD_OUT = 0.2  # the share of one's own rows to test on, where the file has none for that
FEW_STEPS = 10_000  # a run of so few takes a second or so, and is repeated
QUICK_ROWS = 200 * BATCH_SIZE
QUICK_NOTE = (
    "A quick run: fewer repeats, data and epochs, and no torch.compile, as compiling takes longer than the run."
)


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
    images = mnist.x_train[:QUICK_ROWS] if quick else mnist.x_train
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


@dataclass(frozen=True)
class OwnOptions:
    """How to train on one's own data."""

    hidden: int = 100
    activation: str = "relu"
    optimizer: str = "sgd"
    lr: float | None = None  # DEFAULT_LR
    batch_size: int = BATCH_SIZE
    epochs: int | None = None  # OWN_EPOCHS, or QUICK_EPOCHS


def own(data: OwnData, name: str, options: OwnOptions, *, seed: int, threads: int, quick: bool) -> Problem:
    """A classification or regression of one's own ``data``, called ``name``: rows shuffled, numbers standardised."""
    train, test, notes = _own_split(data, seed)
    if quick:
        notes.insert(0, QUICK_NOTE)
        if len(train) > QUICK_ROWS:
            notes.append(f"The first {QUICK_ROWS:,} of {len(train):,} training rows.")
            train = train[:QUICK_ROWS]
    if len(train) < options.batch_size:
        raise ValueError(
            f"{name}: expected at least {options.batch_size} training rows, one batch (--batch-size); got {len(train)}"
        )
    x, standardised = _standardised(train.x)
    notes.append("Each input was standardised: less its mean in the training rows, over its standard deviation there.")
    y = train.y
    if not data.class_count:
        y, _ = _standardised(train.y)
        notes.append("So were the targets; the loss is of the standardised ones.")
    epochs = options.epochs or (QUICK_EPOCHS if quick else OWN_EPOCHS)
    few = epochs * (len(x) // options.batch_size) <= FEW_STEPS
    weights = tutorial.linear_weights(seed, x.shape[1], options.hidden, data.class_count or y.shape[1])
    return Problem(
        task=f"{'classification' if data.class_count else 'regression'} of {name}",
        data=f"{name}: {len(x):,} training{f' and {len(test):,} test' if test else ''} rows, seed {seed}",
        x=x,
        y=y,
        test=(standardised(test.x), test.y) if test else None,
        starts={"linear": Weights(*weights)},
        activation=options.activation,
        loss="cross_entropy" if data.class_count else "mse",
        lr=DEFAULT_LR[options.optimizer] if options.lr is None else options.lr,
        epochs=epochs,
        threads=threads,
        rounds=(2 if quick else 7) if few else 1,
        notes=tuple(notes),
        batch_size=options.batch_size,
        optimizer=options.optimizer,
    )


def _own_split(data: OwnData, seed: int) -> tuple[Rows, Rows | None, list[str]]:
    """The shuffled training rows, the rows to test classes on, and in words what was done."""
    train = data.train[np.random.default_rng(seed).permutation(len(data.train))]
    notes = ["The rows were shuffled once, before all else."]
    if not data.class_count:
        if data.test:
            notes.append("The test rows were left out: a regression has no accuracy.")
        return train, None, notes
    if data.test:
        return train, data.test, notes
    held_out = round(OWN_HELD_OUT * len(train))
    notes.append(f"{held_out:,} of the {len(train):,} rows were then held out to test on.")
    return train[held_out:], train[:held_out], notes


def _standardised(train: Array) -> tuple[Array, Callable[[Array], Array]]:
    """``train`` (n, numbers) with mean 0 and standard deviation 1 by column, float32, and what does the same to others.

    A constant column becomes 0.
    """
    mean, scale = scaling_of(train, np.arange(len(train)), "standard")

    def standardise(numbers: Array) -> Array:
        return ((numbers - mean) / scale).astype(np.float32)

    return standardise(train), standardise


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1).astype(np.float32)


def _name(mnist: MNIST) -> str:
    path = Path(mnist.source)
    return path.name if path.exists() else mnist.source  # a report has no use for where the files lie
