"""The programs that the comparison runs: one table of rows per task.

A program is prepared outside the clock, by ``prepare(problem, start)``, and gives back its training loop, which is what
the clock sees. Every loop trains float32 (the reference: float64) from ``start``, by the problem's optimiser, on its
batches in order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn

from .. import History, TwoLayerNet, fit, info
from ..reference import numpy as numpy_reference
from ..reference import torch as torch_reference
from ..reference import tutorial
from ..reference.tutorial import OnEpoch, Run
from ..training.torch_optim import CLASSES as TORCH_OPTIMIZERS
from . import torchless
from .problems import Array, Problem, Weights


class TimedRun(NamedTuple):
    """A run and its seconds, taken where it happened: in another process."""

    run: Run
    seconds: float


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


Train = Callable[["OnEpoch | None"], "Run | TimedRun"]
Prepare = Callable[[Problem, Weights], Train]
Step = Callable[[Tensor, Tensor], Tensor]  # one batch's x and y -> its loss, before the update it makes


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


def numpy_program(dtype: DTypeLike) -> Prepare:
    """The NumPy reference's loss, gradients and update rule, in ``dtype``."""

    def prepare(problem: Problem, start: Weights) -> Train:
        params: dict[str, Any] = {"b1": None, "b2": None}
        params.update((name, array.astype(dtype)) for name, array in start.arrays().items())
        state: dict[str, dict[str, Any]] = {name: {} for name in params}
        update = numpy_reference.OPTIMIZERS[problem.optimizer].update

        def epoch() -> float:
            for rows in problem.batch_rows():
                loss, gradients = numpy_reference.loss_and_gradients(
                    params,
                    problem.x[rows].astype(dtype, copy=False),
                    problem.y[rows],
                    activation=problem.activation,
                    loss=problem.loss,
                    loss_options={},
                )
                for name, gradient in gradients.items():
                    update(params[name], gradient, state[name], lr=problem.lr)
            return loss

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
# torch: one step function each, driven over the batches.


def _run_steps(problem: Problem, step: Step, on_epoch: OnEpoch | None) -> list[float]:
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)

    def epoch() -> float:
        for rows in problem.batch_rows():
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
    """The whole step, whose update is SGD's, through torch.compile."""
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


def _run_of_net(losses: list[float], net: nn.Module) -> Run:
    state = net.state_dict()
    return _run_of(losses, {name: state[key].numpy() for name, key in STATE_KEYS.items() if key in state})


def module_program(problem: Problem, start: Weights) -> Train:
    """The drop-in module, trained as any torch module is."""
    return _train_by_autograd(problem, _net(problem, start))


def sequential_program(problem: Problem, start: Weights) -> Train:
    """The nn.Sequential that the drop-in module stands for, with torch.optim."""
    return _train_by_autograd(problem, _net(problem, start).to_sequential())


def _train_by_autograd(problem: Problem, net: nn.Sequential) -> Train:
    optimizer = TORCH_OPTIMIZERS[problem.optimizer](net.parameters(), lr=problem.lr)
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


def _require_native() -> None:
    """Raise where the library is not loaded: the fallback is another program."""
    library = info()["native"]["_core"]
    if not library["loaded"]:
        raise RuntimeError(f"the native library is not loaded: {library['reason']}")


def _fit_options(problem: Problem) -> dict[str, Any]:
    return {
        "loss": problem.loss,
        "optimizer": problem.optimizer,
        "lr": problem.lr,
        "batch_size": problem.batch_size,
        "epochs": problem.epochs,
        "shuffle": False,
        "drop_last": True,
        "threads": problem.threads,
    }


def native_program(precision: str | None = None) -> Prepare:
    """``twolayer.fit`` in the native library."""

    def prepare(problem: Problem, start: Weights) -> Train:
        _require_native()
        net = _net(problem, start)
        x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)

        def train(on_epoch: OnEpoch | None) -> Run:
            def report(epoch: int, history: History) -> None:
                if on_epoch:
                    on_epoch(epoch, history.last_batch_loss[-1])

            callback = report if on_epoch else None
            history = fit(net, x, y, **_fit_options(problem), precision=precision, callback=callback)
            return _run_of_net(history.last_batch_loss, net)

        return train

    return prepare


def torchless_program(problem: Problem, start: Weights) -> Train:
    """``twolayer.fit`` of a ``NumpyNet``, in a process of its own, where torch is never imported."""
    _require_native()

    def train(on_epoch: OnEpoch | None) -> TimedRun:
        options = _fit_options(problem)
        trained = torchless.train(start.arrays(), problem.x, problem.y, problem.activation, options)
        if on_epoch:
            for epoch, loss in enumerate(trained.losses):
                on_epoch(epoch, loss)
        return TimedRun(_run_of(trained.losses, trained.weights), trained.seconds)

    return train


SKLEARN_ACTIVATIONS = {"identity": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}


def sklearn_program(problem: Problem, start: Weights) -> Train:
    """MLPClassifier, made to start from ``start`` and to report the loss of an epoch's last batch."""
    import sklearn
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=(problem.layers[1],),
        activation=SKLEARN_ACTIVATIONS[problem.activation],
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
