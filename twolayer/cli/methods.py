"""The programs that the comparison runs: one table of rows per task.

A program is prepared outside the clock, by ``prepare(problem, start)``, and gives back its training loop, which is what
the clock sees. Every loop trains float32 (the reference: float64) from ``start``, on the problem's batches in order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from .. import History, TwoLayerNet, fit, info
from ..reference import numpy as numpy_reference
from ..reference import torch as torch_reference
from ..reference import tutorial
from ..reference.tutorial import OnEpoch, Run
from .problems import Array, Problem, Weights

Train = Callable[["OnEpoch | None"], Run]
Prepare = Callable[[Problem, Weights], Train]
Step = Callable[[Tensor, Tensor], Tensor]  # one batch's x and y -> its loss, before the update it makes


@dataclass(frozen=True)
class Method:
    """One row; ``start`` names the initial weights among ``Problem.starts``."""

    name: str
    prepare: Prepare
    start: str
    printed: float | None = None  # the final loss that the tutorial printed
    compiles: bool = False  # its warm-up takes seconds, which are told apart
    note: str | None = None


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


# ---------------------------------------------------------------------------------------------------------------------
# The tutorial's programs, and NumPy.


def regression_program(program: Callable[..., Run], dtype: DTypeLike = np.float32) -> Prepare:
    """A tutorial program of the regression, which holds weights as (in, out)."""

    def prepare(problem: Problem, start: Weights) -> Train:
        arrays = [array.astype(dtype) for array in (problem.x, problem.y, start.w1.T, start.w2.T)]
        options = {"activation": problem.activation, "lr": problem.lr, "steps": problem.epochs}
        return lambda on_epoch: program(*arrays, **options, on_epoch=on_epoch)

    return prepare


def classification_program(program: Callable[..., Run]) -> Prepare:
    """A tutorial program of the classification."""

    def prepare(problem: Problem, start: Weights) -> Train:
        arrays = [problem.x, problem.y, *start.arrays().values()]
        options = {"lr": problem.lr, "epochs": problem.epochs, "batch_size": problem.batch_size}
        return lambda on_epoch: program(*arrays, **options, on_epoch=on_epoch)

    return prepare


def numpy_classification(dtype: DTypeLike) -> Prepare:
    """The NumPy reference, trained in ``dtype``."""

    def prepare(problem: Problem, start: Weights) -> Train:
        params = {name: array.astype(dtype) for name, array in start.arrays().items()}

        def epoch() -> float:
            curves = numpy_reference.train(
                params,
                problem.x,
                problem.y,
                activation=problem.activation,
                loss=problem.loss,
                lr=problem.lr,
                batch_size=problem.batch_size,
                epochs=1,
                shuffle=False,
                drop_last=True,
            )
            return curves.last_batch_loss[-1]

        return lambda on_epoch: _run_of(_run_epochs(problem, epoch, on_epoch), params)

    return prepare


def _run_of(losses: list[float], weights: Mapping[str, Array]) -> Run:
    return Run(losses, weights["w1"], weights.get("b1"), weights["w2"], weights.get("b2"))


def _run_epochs(problem: Problem, epoch: Callable[[], float], on_epoch: OnEpoch | None) -> list[float]:
    losses = []
    for number in range(problem.epochs):
        losses.append(epoch())
        if on_epoch:
            on_epoch(number, losses[-1])
    return losses


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile and the drop-in module: one step function each, driven over the batches.


def _run_steps(problem: Problem, step: Step, on_epoch: OnEpoch | None) -> list[float]:
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)

    def epoch() -> float:
        for start in range(0, problem.batches * problem.batch_size, problem.batch_size):
            rows = slice(start, start + problem.batch_size)
            loss = step(x[rows], y[rows])
        return loss.item()

    return _run_epochs(problem, epoch, on_epoch)


@functools.cache
def _compiled_step(activation: str, loss: str) -> Callable[[dict[str, Tensor], Tensor, Tensor, float], Tensor]:
    """Forward, backward and update of a whole step as one graph; cached, so that the warm-up compiles for the run."""

    def step(params: dict[str, Tensor], x: Tensor, y: Tensor, lr: float) -> Tensor:
        def batch_loss(params: dict[str, Tensor]) -> Tensor:
            z = torch_reference.two_layer(x, params["w1"], params.get("b1"), params["w2"], params.get("b2"), activation)
            return torch_reference.LOSSES[loss](z, y)

        gradients, value = torch.func.grad_and_value(batch_loss)(params)
        for name, param in params.items():
            param.sub_(gradients[name], alpha=lr)
        return value

    return torch.compile(step, fullgraph=True)


def compiled_program(problem: Problem, start: Weights) -> Train:
    """The whole step through torch.compile."""
    params = {name: torch.tensor(array) for name, array in start.arrays().items()}
    compiled = _compiled_step(problem.activation, problem.loss)

    def train(on_epoch: OnEpoch | None) -> Run:
        with torch.no_grad():
            losses = _run_steps(problem, lambda x, y: compiled(params, x, y, problem.lr), on_epoch)
        return _run_of(losses, {name: param.numpy() for name, param in params.items()})

    return train


STATE_KEYS = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}


def _net(problem: Problem, start: Weights) -> TwoLayerNet:
    net = TwoLayerNet(*problem.layers, activation=problem.activation, bias=start.b1 is not None)
    net.load_state_dict({STATE_KEYS[name]: torch.tensor(array) for name, array in start.arrays().items()})
    return net


def _run_of_net(losses: list[float], net: TwoLayerNet) -> Run:
    state = net.state_dict()
    return _run_of(losses, {name: state[key].numpy() for name, key in STATE_KEYS.items() if key in state})


def module_program(problem: Problem, start: Weights) -> Train:
    """The drop-in module, trained as any torch module is."""
    net = _net(problem, start)
    optimizer = torch.optim.SGD(net.parameters(), lr=problem.lr)
    loss_function = torch_reference.LOSSES[problem.loss]

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = loss_function(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return lambda on_epoch: _run_of_net(_run_steps(problem, step, on_epoch), net)


# ---------------------------------------------------------------------------------------------------------------------
# Native training and scikit-learn: their own loops.


def native_program(problem: Problem, start: Weights) -> Train:
    """``twolayer.fit`` in the native library; without the library this raises, as the fallback is another program."""
    library = info()["native"]["_core"]
    if not library["loaded"]:
        raise RuntimeError(f"the native library is not loaded: {library['reason']}")
    net = _net(problem, start)
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)

    def train(on_epoch: OnEpoch | None) -> Run:
        def report(epoch: int, history: History) -> None:
            if on_epoch:
                on_epoch(epoch, history.last_batch_loss[-1])

        history = fit(
            net,
            x,
            y,
            loss=problem.loss,
            lr=problem.lr,
            batch_size=problem.batch_size,
            epochs=problem.epochs,
            shuffle=False,
            drop_last=True,
            threads=problem.threads,
            callback=report if on_epoch else None,
        )
        return _run_of_net(history.last_batch_loss, net)

    return train


def sklearn_program(problem: Problem, start: Weights) -> Train:
    """MLPClassifier, made to start from ``start`` and to report the loss of an epoch's last batch."""
    import sklearn
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=(problem.layers[1],),
        activation="logistic",
        solver="sgd",
        alpha=0.0,
        batch_size=problem.batch_size,
        learning_rate="constant",
        learning_rate_init=problem.lr,
        momentum=0.0,
        nesterovs_momentum=False,
        shuffle=False,
    )
    rows, last = problem.batches * problem.batch_size, problem.batch_size
    x, y = problem.x[:rows], problem.y[:rows]
    classifier.partial_fit(x[:last], y[:last], classes=np.arange(problem.layers[2]))  # makes the arrays to be set
    coefs, intercepts = classifier.coefs_, classifier.intercepts_
    coefs[0][...], intercepts[0][...] = start.w1.T, start.b1
    coefs[1][...], intercepts[1][...] = start.w2.T, start.b2

    def epoch() -> float:
        if rows > last:
            classifier.partial_fit(x[:-last], y[:-last])
        classifier.partial_fit(x[-last:], y[-last:])
        return float(classifier.loss_)  # of the one batch it was just given

    def train(on_epoch: OnEpoch | None) -> Run:
        with sklearn.config_context(assume_finite=True):  # no scan of the data for NaN at every call
            losses = _run_epochs(problem, epoch, on_epoch)
        return Run(losses, coefs[0].T, intercepts[0], coefs[1].T, intercepts[1])

    return train


# ---------------------------------------------------------------------------------------------------------------------
# The tables, the ground truth first.

_PRINTED = tutorial.PRINTED

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
        Method("twolayer.fit", native_program, "randn"),
    ),
    reference="NumPy, float64",
    baseline="torch autograd",
    native="twolayer.fit",
)

_CLASSIFICATION = MethodTable(
    methods=(
        Method("NumPy, float64", numpy_classification(np.float64), "linear"),
        Method("NumPy, float32", numpy_classification(np.float32), "linear"),
        Method(
            "raw Parameters",
            classification_program(tutorial.classification_parameters),
            "randn",
            _PRINTED["parameters"],
            note="starts, like a float64 reference of its own, from standard normal weights, as in the tutorial; they "
            "make sums of thousands, whose rounding error in float32, about 0.001, training then enlarges",
        ),
        Method("nn.Linear", classification_program(tutorial.classification_linear), "linear", _PRINTED["linear"]),
        Method(
            "optim.SGD",
            classification_program(tutorial.classification_optim),
            "linear",
            _PRINTED["optim"],
            note="the tutorial's figure is of 34 epochs, which its loop in fact ran",
        ),
        Method("torch.compile", compiled_program, "linear", compiles=True),
        Method(
            "scikit-learn MLP",
            sklearn_program,
            "linear",
            note="MLPClassifier, given full batches only, as it cannot drop a short one, and an epoch's last batch in "
            "a call of its own, so that its loss can be read",
        ),
        Method("TwoLayerNet autograd", module_program, "linear"),
        Method("twolayer.fit", native_program, "linear"),
    ),
    reference="NumPy, float64",
    baseline="nn.Linear",
    native="twolayer.fit",
)

TABLES = {"regression": _REGRESSION, "classification": _CLASSIFICATION}
