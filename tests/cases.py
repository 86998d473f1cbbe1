"""The one table of cases, shapes × activation × dtype × device, for the tests and the benchmarks.

A case has seeded data and a float64 ground truth. How far a result may be from it is a number per dtype, in ``BOUNDS``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twolayer.reference import numpy as reference
from twolayer.reference import torch as torch_reference
from twolayer.registry import ACTIVATIONS, LOSSES, OPTIMIZERS
from twolayer.training.torch_optim import CLASSES as TORCH_OPTIMIZERS

Array = NDArray[Any]

PARAMETERS = ("w1", "b1", "w2", "b2")
INPUTS = ("x", *PARAMETERS)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CUDA_DTYPES = (*DTYPES, torch.float16)
TRAINED_DTYPES = (torch.float32, torch.float64)

# The largest error of any number that a kernel gives, in units of the dtype's eps times that number's magnitude: the
# sum of the absolute values of all terms that were added up to make it. About twice the largest error among 24,000
# random cases; in float64 half of it is the reference's own.
BOUNDS = {torch.float32: 4, torch.float64: 5, torch.bfloat16: 1, torch.float16: 1}

# The largest error of the losses or of a parameter of a Training: the norm of the difference over the norm. The second
# is for factors rounded to bfloat16; the third for them against a reference that rounds them too: sums in another order
# move a number across a rounding boundary now and then.
TRAINING_BOUNDS = {torch.float32: 1e-6, torch.float64: 2e-15}
BFLOAT16_COMPUTE_BOUND = 2e-1
BFLOAT16_ROUNDING_BOUND = 1e-3

# All that an engine is told beside the net, the names and the threads, where a test says nothing else.
ENGINE_DEFAULTS: dict[str, Any] = {
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": False,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "amsgrad": False,
    "eps_hat": False,
    "alpha": 0.99,
    "centered": False,
    "lr_decay": 0.0,
    "initial_accumulator_value": 0.0,
    "label_smoothing": 0.0,
    "loss_beta": 1.0,
    "ignore_index": -100,
    "l1": 0.0,
    "l2": 0.0,
    "penalty_per_row": False,
    "clip_norm": 0.0,
    "clip_value": 0.0,
    "dropout": 0.0,
    "seed": 11,
    "bfloat16_compute": False,
    "skip_zeros": "auto",
}


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

    def error_of(self, result: Tensor, eps: float | None = None) -> float:
        """The largest error among the numbers of ``result``, in ``eps``, by default the dtype's, times magnitude.

        It is infinite where one is not a number. In float16 a magnitude below its normal numbers counts as the least.
        """
        limits = torch.finfo(result.dtype)
        least = limits.smallest_normal if result.dtype is torch.float16 else 0
        difference = np.abs(result.double().cpu().numpy() - self.value)
        unit = (eps or limits.eps) * np.maximum(self.magnitude, least)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.where(difference == 0, 0, difference / unit)
        return float(np.nan_to_num(errors, nan=np.inf).max(initial=0))


CURVATURE = 2  # no activation's second derivative is larger: what an error in z1 can do to the derivative there


@functools.lru_cache(maxsize=4)
def ground_truth(case: Case, seed: int = 0) -> dict[str, Exact]:
    """The results of the forward pass, ``y`` and ``saved``, and of the backward pass, ``grad_x``, ``grad_w1``, …"""
    given = problem(case, seed)
    x, w1, b1, w2, b2, grad_y = (None if t is None else t.double().cpu().numpy() for t in given)
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
SMALL_EPS = 1e-3  # yet too large for a part of a gradient that is nothing but rounding error to become a whole step
RATES = {"sgd": 0.1, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.005, "adagrad": 0.05}  # move weights by some tenths


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
    bfloat16_compute: bool = False  # of a float32 net

    def __str__(self) -> str:
        options = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        words = (self.loss, self.optimizer, self.activation, self.precision, f"{self.rows} rows", self.shape)
        differing = (f"{name} {value}" for name, value in options.items() if value)
        return " ".join(map(str, (*words, *differing, *(f"no {bias}" for bias in self.without))))

    @property
    def precision(self) -> str:
        return "bfloat16" if self.bfloat16_compute else name_of(self.dtype)

    @property
    def bound(self) -> float:
        """How far from the truth it may be."""
        return BFLOAT16_COMPUTE_BOUND if self.bfloat16_compute else TRAINING_BOUNDS[self.dtype]

    @property
    def batches(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.rows // self.shape.batch)

    @property
    def lr(self) -> float:
        is_steep = LOSSES[self.loss].reduction == "sum" and self.optimizer == "sgd"
        return RATES[self.optimizer] * (0.02 if is_steep else 1)

    @property
    def update_rule(self) -> dict[str, Any]:
        """All options of the optimiser but the learning rate."""
        own = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        given = ENGINE_DEFAULTS | own | {"eps": SMALL_EPS}
        return {name: given[name] for name in OPTIMIZERS[self.optimizer].options if name not in ("lr", "eps_hat")}


class TrainingData(NamedTuple):
    x: Array  # (rows, in)
    y: Array  # classes (rows,), or values (rows, out)
    parameters: dict[str, Array | None]  # w1 (hidden, in), b1 (hidden,), w2 (out, hidden), b2 (out,)

    def astype(self, dtype: type) -> TrainingData:
        parameters = {name: None if p is None else p.astype(dtype) for name, p in self.parameters.items()}
        y = self.y.astype(dtype) if self.y.ndim == 2 else self.y
        return TrainingData(self.x.astype(dtype), y, parameters)


def training_data(training: Training, seed: int = 0) -> TrainingData:
    """Random data in the training's dtype; half of x is 0 or −0."""
    rows, (_, in_features, hidden, out) = training.rows, training.shape
    rng = np.random.default_rng(seed)
    dtype = np.dtype(name_of(training.dtype))

    def draw(name: str, *shape: int, fan_in: int = 1) -> Array | None:
        numbers = rng.standard_normal(shape) / fan_in**0.5
        return None if name in training.without else numbers.astype(dtype)

    x = draw("x", rows, in_features)
    if LOSSES[training.loss].targets == "classes_or_distributions":
        y = rng.integers(0, out, rows)
    else:
        y = rng.random((rows, out)).astype(dtype)  # probabilities too, as bce_with_logits wants them
    parameters = {
        "w1": draw("w1", hidden, in_features, fan_in=in_features),
        "b1": draw("b1", hidden),
        "w2": draw("w2", out, hidden, fan_in=hidden),
        "b2": draw("b2", out),
    }
    x[rng.random(x.shape) < 0.5] *= 0
    return TrainingData(x, y, parameters)


class Trained(NamedTuple):
    step_loss: Array  # (steps,)
    parameters: dict[str, Array]


def train_exactly(training: Training) -> Trained:
    """The ground truth of a training: the reference in float64."""
    x, y, exact = training_data(training).astype(np.float64)
    curves = reference.train(
        exact,
        x,
        y,
        activation=training.activation,
        loss=training.loss,
        batch_size=training.shape.batch,
        epochs=training.epochs,
        optimizer=training.optimizer,
        lr=training.lr,
        **training.update_rule,
    )
    return Trained(np.array(curves.step_loss), {name: p for name, p in exact.items() if p is not None})


class Step(NamedTuple):
    loss: float
    parameters: dict[str, Array]  # after it


def steps_of_torch(training: Training) -> Iterator[Step]:
    """What autograd and torch.optim make of the training in float64, step by step."""
    x, y, arrays = training_data(training).astype(np.float64)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    net = {name: None if a is None else torch.from_numpy(a).requires_grad_() for name, a in arrays.items()}
    trained = {name: tensor for name, tensor in net.items() if tensor is not None}
    optimizer = TORCH_OPTIMIZERS[training.optimizer](trained.values(), lr=training.lr, **training.update_rule)
    for epoch in range(training.epochs):
        order = torch.from_numpy(reference.permutation(training.rows, 0, epoch))
        for rows in order.split(training.shape.batch):
            optimizer.zero_grad()
            z = torch_reference.two_layer(x[rows], *net.values(), training.activation)
            loss = torch_reference.LOSSES[training.loss](z, y[rows])
            loss.backward()
            optimizer.step()
            yield Step(loss.item(), {name: tensor.detach().numpy().copy() for name, tensor in trained.items()})


def relative_error(result: Array, truth: Array) -> float:
    """The norm of the difference over the norm; infinite where a result is not a number."""
    error = float(np.linalg.norm(result - truth) / np.linalg.norm(truth))
    return np.inf if np.isnan(error) else error


def _every_pair() -> Iterator[Training]:
    """Every loss with every activation in every precision, the optimisers in turn: each meets each of the others."""
    precisions = [(torch.float32, False), (torch.float64, False), (torch.float32, True)]
    choices = itertools.product(*(list(enumerate(names)) for names in (LOSSES, ACTIVATIONS, precisions)))
    for (i, loss), (j, activation), (k, (dtype, bfloat16_compute)) in choices:
        optimizer = list(OPTIMIZERS)[(i + j + k) % len(OPTIMIZERS)]
        yield Training(loss, activation, dtype, optimizer=optimizer, bfloat16_compute=bfloat16_compute)


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
        *(softmax(optimizer=optimizer, weight_decay=0.1) for optimizer in OPTIMIZERS if optimizer != "sgd"),
        *(softmax(without=without) for without in (("b1",), ("b2",), ("b1", "b2"))),
    ]


TRAININGS = [
    *_every_pair(),
    *(Training(*choice) for choice in itertools.product(LOSSES, ACTIVATIONS, TRAINED_DTYPES)),
    *(training for dtype in TRAINED_DTYPES for training in _special_trainings(dtype)),
]
TRAININGS = list(dict.fromkeys(TRAININGS))  # each once
