"""The one table of cases, shapes × activation × dtype × device, for the tests and the benchmarks.

A case has seeded data and a float64 ground truth. How far a result may be from it is a number per dtype, in ``BOUNDS``.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twolayer.reference import numpy as reference
from twolayer.registry import ACTIVATIONS, LOSSES

Array = NDArray[Any]

PARAMETERS = ("w1", "b1", "w2", "b2")
INPUTS = ("x", *PARAMETERS)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
TRAINED_DTYPES = (torch.float32, torch.float64)

# The largest error of any number that a kernel gives, in units of the dtype's eps times that number's magnitude: the
# sum of the absolute values of all terms that were added up to make it. About twice the largest error among 24,000
# random cases; in float64 half of it is the reference's own.
BOUNDS = {torch.float32: 4, torch.float64: 5, torch.bfloat16: 1}

# The largest error of the losses or of a parameter of a Training: the norm of the difference over the norm.
TRAINING_BOUNDS = {torch.float32: 1e-6, torch.float64: 2e-15}


class Shape(NamedTuple):
    batch: int
    in_features: int
    hidden: int
    out: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


MNIST = Shape(64, 784, 100, 10)
SHAPES = (
    Shape(1, 1, 1, 1),
    Shape(0, 5, 7, 3),  # no rows
    Shape(1, 64, 32, 16),  # whole vectors only
    Shape(7, 17, 33, 5),  # one past whole vectors
    Shape(50, 31, 67, 65),  # more rows and columns than one chunk of work
    Shape(260, 6, 10, 3),  # a batch deeper than the products' depth
    Shape(4, 10, 300, 2),  # a hidden layer deeper than that
)


@dataclass(frozen=True)
class Case:
    shape: Shape
    activation: str
    dtype: torch.dtype
    device: str = "cpu"
    without: tuple[str, ...] = ()  # of b1 and b2

    def __str__(self) -> str:
        words = (
            self.shape,
            self.activation,
            name_of(self.dtype),
            self.device,
            *(f"no {bias}" for bias in self.without),
        )
        return " ".join(map(str, words))


CASES = [
    *(Case(*choice) for choice in itertools.product(SHAPES, ACTIVATIONS, DTYPES)),
    *(Case(MNIST, "relu", dtype) for dtype in DTYPES),
]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Problem(NamedTuple):
    """What the kernels are given."""

    x: Tensor  # (batch, in)
    w1: Tensor  # (hidden, in)
    b1: Tensor | None  # (hidden,)
    w2: Tensor  # (out, hidden)
    b2: Tensor | None  # (out,)
    grad_y: Tensor  # (batch, out)


def problem(case: Case, seed: int = 0) -> Problem:
    """Random data in the case's dtype, of a size that keeps activations where they bend."""
    batch, in_features, hidden, out = case.shape
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, *shape: int, fan_in: int = 1) -> Tensor | None:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64) / max(fan_in, 1) ** 0.5
        return None if name in case.without else numbers.to(case.device, case.dtype)

    return Problem(
        x=draw("x", batch, in_features),
        w1=draw("w1", hidden, in_features, fan_in=in_features),
        b1=draw("b1", hidden),
        w2=draw("w2", out, hidden, fan_in=hidden),
        b2=draw("b2", out),
        grad_y=draw("grad_y", batch, out),
    )


class Exact(NamedTuple):
    """A float64 result, and the magnitude in which its error is measured (see ``BOUNDS``)."""

    value: Array
    magnitude: Array

    def error_of(self, result: Tensor) -> float:
        """The largest error among the numbers of ``result``; infinite where one is not a number."""
        difference = np.abs(result.double().numpy() - self.value)
        unit = torch.finfo(result.dtype).eps * self.magnitude
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.where(difference == 0, 0, difference / unit)
        return float(np.nan_to_num(errors, nan=np.inf).max(initial=0))


CURVATURE = 2  # no activation's second derivative is larger: what an error in z1 can do to the derivative there


@functools.lru_cache(maxsize=4)
def ground_truth(case: Case, seed: int = 0) -> dict[str, Exact]:
    """The results of the forward pass, ``y`` and ``saved``, and of the backward pass, ``grad_x``, ``grad_w1``, …"""
    given = problem(case, seed)
    x, w1, b1, w2, b2, grad_y = (None if t is None else t.double().numpy() for t in given)
    _, derivative = reference.ACTIVATIONS[case.activation]
    y, z1, h = reference.forward(x, w1, b1, w2, b2, case.activation)
    gradients = reference.backward(grad_y, x, w1, w2, z1, case.activation)

    x, w1, w2, grad_y = np.abs(x), np.abs(w1), np.abs(w2), np.abs(grad_y)
    slope = np.abs(derivative(z1))
    z1_magnitude = x @ w1.T + (0 if b1 is None else np.abs(b1))
    h_magnitude = np.abs(h) + slope * z1_magnitude
    y_magnitude = h_magnitude @ w2.T + (0 if b2 is None else np.abs(b2))
    grad_z1 = (grad_y @ w2) * (slope + CURVATURE * z1_magnitude)
    saves_output = ACTIVATIONS[case.activation].saved == "output"
    magnitudes = {
        "y": y_magnitude,
        "saved": h_magnitude if saves_output else z1_magnitude,
        "grad_x": grad_z1 @ w1,
        "grad_w1": grad_z1.T @ x,
        "grad_b1": grad_z1.sum(axis=0),
        "grad_w2": grad_y.T @ h_magnitude,
        "grad_b2": grad_y.sum(axis=0),
    }
    values = {"y": y, "saved": h if saves_output else z1} | {f"grad_{name}": g for name, g in gradients.items()}
    return {name: Exact(values[name], magnitude) for name, magnitude in magnitudes.items()}


SMALL_BATCHES = Shape(8, 9, 20, 5)


@dataclass(frozen=True)
class Training:
    """A run of a training engine. ``shape.batch`` is the batch size, of which ``rows`` need not be a multiple."""

    loss: str
    activation: str
    dtype: torch.dtype
    shape: Shape = SMALL_BATCHES
    rows: int = 37
    epochs: int = 2
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    without: tuple[str, ...] = ()  # of b1 and b2

    def __str__(self) -> str:
        options = [f"{name} {value}" for name, value in self.update_rule.items() if name != "lr" and value]
        words = (self.loss, self.activation, name_of(self.dtype), f"{self.rows} rows", self.shape, *options)
        return " ".join(map(str, (*words, *(f"no {bias}" for bias in self.without))))

    @property
    def update_rule(self) -> dict[str, Any]:
        """The options of the optimiser; the learning rate moves the parameters by some tenths of their size."""
        lr = 0.002 if self.loss == "mse_sum" else 0.1
        return {"lr": lr, "momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}


class TrainingData(NamedTuple):
    x: Array  # (rows, in)
    y: Array  # classes (rows,), or values (rows, out)
    parameters: dict[str, Array | None]  # w1 (hidden, in), b1 (hidden,), w2 (out, hidden), b2 (out,)


def training_data(training: Training, seed: int = 0) -> TrainingData:
    """Random data in the training's dtype."""
    rows, (_, in_features, hidden, out) = training.rows, training.shape
    rng = np.random.default_rng(seed)
    dtype = np.dtype(name_of(training.dtype))

    def draw(name: str, *shape: int, fan_in: int = 1) -> Array | None:
        numbers = rng.standard_normal(shape) / fan_in**0.5
        return None if name in training.without else numbers.astype(dtype)

    classes = LOSSES[training.loss].targets == "classes"
    return TrainingData(
        x=draw("x", rows, in_features),
        y=rng.integers(0, out, rows) if classes else draw("y", rows, out),
        parameters={
            "w1": draw("w1", hidden, in_features, fan_in=in_features),
            "b1": draw("b1", hidden),
            "w2": draw("w2", out, hidden, fan_in=hidden),
            "b2": draw("b2", out),
        },
    )


class Trained(NamedTuple):
    step_loss: Array  # (steps,)
    parameters: dict[str, Array]


def train_exactly(training: Training) -> Trained:
    """The ground truth of a training: the reference in float64."""
    x, y, parameters = training_data(training)
    exact = {name: None if p is None else p.astype(np.float64) for name, p in parameters.items()}
    curves = reference.train(
        exact,
        x.astype(np.float64),
        y,
        activation=training.activation,
        loss=training.loss,
        batch_size=training.shape.batch,
        epochs=training.epochs,
        optimizer=training.optimizer,
        **training.update_rule,
    )
    return Trained(np.array(curves.step_loss), {name: p for name, p in exact.items() if p is not None})


def relative_error(result: Array, truth: Array) -> float:
    """The norm of the difference over the norm; infinite where a result is not a number."""
    error = float(np.linalg.norm(result - truth) / np.linalg.norm(truth))
    return np.inf if np.isnan(error) else error


def _special_trainings(dtype: torch.dtype) -> list[Training]:
    softmax = functools.partial(Training, "cross_entropy", "tanh", dtype)
    return [
        *(softmax(Shape(batch, 9, 20, 5)) for batch in (1, 37, 100)),  # one row, whole, larger than the data
        softmax(Shape(300, 9, 20, 5), rows=620),  # batches deeper than the products' depth
        Training("mse", "gelu", dtype, Shape(300, 9, 20, 5), rows=620, momentum=0.9),
        *(softmax(Shape(8, 5, hidden, out)) for hidden, out in ((16, 16), (17, 33), (300, 2))),
        Training("mse", "tanh", dtype, Shape(8, 5, 1, 1)),
        softmax(momentum=0.9),
        softmax(momentum=0.9, nesterov=True),
        softmax(weight_decay=0.1),
        softmax(momentum=0.5, nesterov=True, weight_decay=0.1),
        *(softmax(without=without) for without in (("b1",), ("b2",), ("b1", "b2"))),
    ]


TRAININGS = [
    *(Training(*choice) for choice in itertools.product(LOSSES, ACTIVATIONS, TRAINED_DTYPES)),
    *(training for dtype in TRAINED_DTYPES for training in _special_trainings(dtype)),
]
