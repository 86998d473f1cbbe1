"""The programs that the comparison runs: one table of rows per task.

A program is prepared outside the clock, by ``prepare(problem, start)``, and gives back its training loop, which is what
the clock sees. Every loop trains float32 (the reference: float64) from ``start``, by the problem's optimiser, on its
batches in order.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..programs.native import fit_options, native_program, require_native
from ..programs.numpy_loop import numpy_program
from ..programs.problem import Prepare, Problem, TimedRun, Train, Weights, run_of
from ..programs.scikit_learn import SKLEARN_ACTIVATIONS, sklearn_program
from ..programs.torch_loops import compiled_program, module_program, sequential_program
from ..programs.tutorial_loops import classification_program, regression_program
from ..reference import tutorial
from ..reference.run import OnEpoch
from . import torchless


class Update(NamedTuple):
    """What a program updates by, instead of the problem's."""

    optimizer: str
    lr: float


class Course(NamedTuple):
    """What programs share that draw the same loss curve."""

    start: str
    update: Update | None

    def __str__(self) -> str:
        return f"{self.start}, {self.update.optimizer}" if self.update else self.start


@dataclass(frozen=True)
class Method:
    """One row; ``start`` names the initial weights among ``Problem.starts``."""

    name: str
    prepare: Prepare
    start: str = "linear"
    printed: float | None = None  # the final loss that the tutorial printed
    compiles: bool = False  # its warm-up takes seconds, which are told apart
    note: str | None = None
    update: Update | None = None

    @property
    def course(self) -> Course:
        return Course(self.start, self.update)

    def prepared(self, problem: Problem) -> Train:
        """The program's training loop on ``problem``."""
        if self.update:
            problem = dataclasses.replace(problem, **self.update._asdict())
        return self.prepare(problem, problem.starts[self.start])


@dataclass(frozen=True)
class MethodTable:
    """A task's rows, and the names of those that the others are measured against."""

    methods: tuple[Method, ...]
    reference: str  # its loss curve is the ground truth
    baseline: str  # its time is the unit of the speed-up
    native: str  # the exit code hangs on it

    def named(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def without_compiling(self) -> MethodTable:
        return dataclasses.replace(self, methods=tuple(method for method in self.methods if not method.compiles))


def torchless_program(problem: Problem, start: Weights) -> Train:
    """``twolayer.fit`` of a ``NumpyNet``, in a process of its own, where torch is never imported."""
    require_native()

    def train(on_epoch: OnEpoch | None) -> TimedRun:
        options = fit_options(problem)
        trained = torchless.train(start.arrays(), problem.x, problem.y, problem.activation, options)
        if on_epoch:
            for epoch, loss in enumerate(trained.losses):
                on_epoch(epoch, loss)
        return TimedRun(run_of(trained.losses, trained.weights), trained.seconds)

    return train


# ---------------------------------------------------------------------------------------------------------------------
# The tables, the ground truth first.

_PRINTED = tutorial.PRINTED
_SKLEARN_NOTE = (
    "MLPClassifier, given full batches only, as it cannot drop a short one, and an epoch's last batch in a call of its "
    "own, so that its loss can be read"
)
_BFLOAT16_NOTE = "rounds the factors of products to bfloat16, 8 significant bits; weights and sums stay float32"
_ADAM = Update("adam", 1e-5)
_ADAM_NOTE = (
    f"by Adam with lr {_ADAM.lr:g} instead of SGD, compared with a float64 run by Adam, not in the table; dividing "
    "gradients by their size, Adam enlarges rounding errors as training goes on"
)

_REGRESSION = MethodTable(
    methods=(
        Method(
            "NumPy, float64",
            regression_program(tutorial.regression_numpy, np.float64),
            "randn",
            _PRINTED["regression"],
        ),
        Method("NumPy, float32", regression_program(tutorial.regression_numpy), "randn", _PRINTED["regression"]),
        Method("torch, by hand", regression_program(tutorial.regression_torch), "randn", _PRINTED["regression"]),
        Method("torch autograd", regression_program(tutorial.regression_autograd), "randn", _PRINTED["regression"]),
        Method("torch.compile", compiled_program, "randn", compiles=True),
        Method("TwoLayerNet autograd", module_program, "randn"),
        Method("twolayer.fit", native_program(), "randn"),
    ),
    reference="NumPy, float64",
    baseline="torch autograd",
    native="twolayer.fit",
)

_CLASSIFICATION = MethodTable(
    methods=(
        Method("NumPy, float64", numpy_program(np.float64)),
        Method("NumPy, float32", numpy_program(np.float32)),
        Method(
            "raw Parameters",
            classification_program(tutorial.classification_parameters),
            "randn",
            _PRINTED["parameters"],
            note="starts, like a float64 reference of its own, from standard normal weights, as in the tutorial; they "
            "make sums of thousands, whose rounding error in float32, about 0.001, training then enlarges",
        ),
        Method("nn.Linear", classification_program(tutorial.classification_linear), printed=_PRINTED["linear"]),
        Method(
            "optim.SGD",
            classification_program(tutorial.classification_optim),
            printed=_PRINTED["optim"],
            note="the tutorial's figure is of 34 epochs, which its loop in fact ran",
        ),
        Method("torch.compile", compiled_program, compiles=True),
        Method(
            "scikit-learn MLP",
            sklearn_program,
            note=_SKLEARN_NOTE,
        ),
        Method("TwoLayerNet autograd", module_program),
        Method("twolayer.fit", native_program()),
        Method("twolayer.fit bfloat16", native_program("bfloat16"), note=_BFLOAT16_NOTE),
        Method(
            "twolayer.fit NumpyNet",
            torchless_program,
            note="NumPy arrays in a process of its own, in which torch is never imported and fit alone is timed",
        ),
        Method("torch.optim.Adam", sequential_program, update=_ADAM, note=_ADAM_NOTE),
        Method("twolayer.fit Adam", native_program(), update=_ADAM, note=_ADAM_NOTE),
    ),
    reference="NumPy, float64",
    baseline="nn.Linear",
    native="twolayer.fit",
)

TABLES = {"regression": _REGRESSION, "classification": _CLASSIFICATION}


def table_for(problem: Problem) -> MethodTable:
    """The task's table, or for one's own data that of the programs which can train it."""
    return TABLES.get(problem.task) or _own_table(problem)


def _own_table(problem: Problem) -> MethodTable:
    methods = [
        Method("NumPy, float64", numpy_program(np.float64)),
        Method("NumPy, float32", numpy_program(np.float32)),
        Method("torch autograd", sequential_program),
        Method("TwoLayerNet autograd", module_program),
        Method("twolayer.fit", native_program()),
        Method("twolayer.fit bfloat16", native_program("bfloat16"), note=_BFLOAT16_NOTE),
    ]
    if problem.optimizer == "sgd":
        methods.insert(3, Method("torch.compile", compiled_program, compiles=True))
        if problem.loss == "cross_entropy" and problem.layers[2] > 2 and problem.activation in SKLEARN_ACTIVATIONS:
            methods.insert(
                4, Method("scikit-learn MLP", sklearn_program, note=_SKLEARN_NOTE)
            )  # of two, it has one output
    return MethodTable(tuple(methods), reference="NumPy, float64", baseline="torch autograd", native="twolayer.fit")
