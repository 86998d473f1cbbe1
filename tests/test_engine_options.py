"""The native engine with every option, in float64 against its NumPy twin, and bit by bit at every number of threads."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from cases import ENGINE_DEFAULTS

from twolayer import _core
from twolayer.reference.engine import NAMES, ReferenceEngine, rounded_to_bfloat16
from twolayer.reference.numpy import permutation
from twolayer.registry import ACTIVATIONS, LOSSES, OPTIMIZERS

RATES = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.005, "adagrad": 0.05}
SHUFFLED_EPOCHS = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: what differs from plain SGD on the cross entropy of a small net."""

    loss: str = "cross_entropy"
    optimizer: str = "sgd"
    activation: str = "tanh"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    distributions: bool = False  # targets of the cross entropy, instead of classes
    inputs: str = "float64"
    weighted: tuple[str, ...] = ()  # of "rows" and "classes"
    without: tuple[str, ...] = ()  # of b1 and b2
    frozen: tuple[str, ...] = ()
    sizes: tuple[int, int, int] = (9, 20, 5)  # in, hidden, out
    rows: int = 37
    batch_size: int = 8

    def __str__(self) -> str:
        differing = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }
        options = differing.pop("options")
        return " ".join(f"{name}={value}" for name, value in {**differing, **options}.items()) or "plain"

    def config(self, **changes: Any) -> dict[str, Any]:
        in_features, hidden, out = self.sizes
        named = {
            "in_features": in_features,
            "hidden_features": hidden,
            "out_features": out,
            "activation": ACTIVATIONS[self.activation].id,
            "loss": LOSSES[self.loss].id,
            "optimizer": OPTIMIZERS[self.optimizer].id,
            "present": [name not in self.without for name in NAMES],
            "frozen": [name in self.frozen for name in NAMES],
        }
        return {**ENGINE_DEFAULTS, **named, "threads": 1, **self.options, **changes}

    def lr(self, steps: int) -> np.ndarray:
        base = RATES[self.optimizer] * (0.02 if LOSSES[self.loss].reduction == "sum" else 1)
        return base * np.linspace(1, 0.5, steps)


def make_inputs(kind: str, rows: int, in_features: int, rng: np.random.Generator, dtype: type) -> Any:
    """Inputs of one of the kinds that an engine of that dtype reads; those with zeros are dense to a third."""
    numbers = rng.standard_normal((rows, in_features))
    if kind in ("float32", "float64"):
        return numbers.astype(kind)
    if kind == "bfloat16":
        return torch.tensor(numbers, dtype=torch.bfloat16)
    filled = rng.random((rows, in_features)) < 1 / 3
    if kind == "uint8":
        return np.where(filled, rng.integers(0, 256, filled.shape), 0).astype(np.uint8)
    columns_dtype = {"csr of int32": np.int32, "csr of int64": np.int64}[kind]
    columns = np.nonzero(filled)[1].astype(columns_dtype)
    columns[::7] = columns[0]  # some are named twice in a row
    return numbers[filled].astype(dtype), columns, np.concatenate([[0], filled.sum(axis=1).cumsum()])


@dataclasses.dataclass(frozen=True)
class Data:
    x: Any
    y: np.ndarray
    row_weight: np.ndarray | None
    class_weight: np.ndarray | None
    parameters: tuple[np.ndarray | None, ...]  # w1, b1, w2, b2


def make_data(run: Run, dtype: type = np.float64) -> Data:
    in_features, hidden, out = run.sizes
    rng = np.random.default_rng(5)
    x = make_inputs(run.inputs, run.rows, in_features, rng, dtype)
    if LOSSES[run.loss].targets == "values":
        y = rng.random((run.rows, out))
    elif run.distributions:
        y = rng.dirichlet(np.ones(out), run.rows)
    else:
        y = rng.integers(0, out, run.rows)
        y[rng.random(run.rows) < 0.2] = run.options.get("ignore_index", 0)
    shapes = {"w1": (hidden, in_features), "b1": (hidden,), "w2": (out, hidden), "b2": (out,)}
    parameters = {name: rng.standard_normal(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    return Data(
        x,
        y.astype(dtype) if y.dtype == np.float64 else y,
        rng.uniform(0, 2, run.rows).astype(dtype) if "rows" in run.weighted else None,
        rng.uniform(0.5, 2, out).astype(dtype) if "classes" in run.weighted else None,
        tuple(None if name in run.without else array.astype(dtype) for name, array in parameters.items()),
    )


def train(engine: Any, run: Run, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """Train and return all that can be seen of it: losses, parameters, states, an evaluation."""
    data = make_data(run, dtype)
    scaling = (1 / 255, -0.1) if run.inputs == "uint8" else (1.0, 0.0)
    rows = (data.x, data.y, data.row_weight, data.class_weight, *scaling)
    engine.load(data.parameters)
    steps = -(-run.rows // run.batch_size)
    cut = steps // 2
    results = {"losses": np.full((SHUFFLED_EPOCHS, steps), np.nan)}
    for epoch, losses in enumerate(results["losses"]):
        order, lr = permutation(run.rows, 3, epoch), run.lr(steps)
        for first, stretch in ((0, slice(cut)), (cut, slice(cut, None))):
            assert not engine.run(*rows, order, run.batch_size, first, lr[stretch], losses[stretch], True, None)
    assert engine.steps == SHUFFLED_EPOCHS * steps

    results |= read_arrays(engine.store, data.parameters, "")
    trained = tuple(None if name in run.frozen else p for name, p in zip(NAMES, data.parameters, strict=True))
    for index, state in enumerate(OPTIMIZERS[run.optimizer].states):
        if engine.keeps_state(index):
            results |= read_arrays(functools.partial(engine.store_state, index), trained, f"{state} of ")
    results["evaluation"] = np.array(engine.evaluate(*rows, None))
    results["evaluation of some"] = np.array(engine.evaluate(*rows, permutation(run.rows, 3, 0)[:20]))
    return results


def read_arrays(store: Any, like: tuple[np.ndarray | None, ...], prefix: str) -> dict[str, np.ndarray]:
    arrays = tuple(None if a is None else np.full_like(a, np.nan) for a in like)
    store(arrays)
    return {prefix + name: a for name, a in zip(NAMES, arrays, strict=True) if a is not None}


OPTIMIZER_OPTIONS = {
    "sgd": [
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.5, "nesterov": True},
    ],
    "adam": [{"amsgrad": True}, {"betas": (0.5, 0.7), "eps": 1e-3}, {"eps": 1e-2, "eps_hat": True}],
    "adamw": [{"amsgrad": True}, {"betas": (0.5, 0.7), "eps": 1e-3}, {"eps": 1e-2, "eps_hat": True}],
    "rmsprop": [{"momentum": 0.9}, {"centered": True}, {"momentum": 0.5, "centered": True, "alpha": 0.8, "eps": 1e-3}],
    "adagrad": [{"lr_decay": 0.1}, {"initial_accumulator_value": 0.5, "eps": 1e-3}],
}
LOSS_OPTIONS = {
    "cross_entropy": [{"label_smoothing": 0.1}, {"ignore_index": 2}, {"label_smoothing": 0.3, "ignore_index": -1}],
    "smooth_l1": [{"loss_beta": 0.3}, {"loss_beta": 0.0}],
    "huber": [{"loss_beta": 0.3}],
}
PENALTY_PER_ROW = {"l1": 0.2, "l2": 2.0, "penalty_per_row": True}
GRADIENT_OPTIONS = [
    {"l1": 0.01},
    {"l2": 0.1},
    PENALTY_PER_ROW,
    {"clip_norm": 0.05},
    {"clip_value": 0.01},
    {"l1": 0.01, "l2": 0.1, "clip_norm": 0.3, "clip_value": 0.02},
]
WEIGHTED = [("rows",), ("classes",), ("rows", "classes")]
EVERYTHING = {"dropout": 0.3, **GRADIENT_OPTIONS[-1], "weight_decay": 0.05}  # that every optimiser takes


def every_run() -> list[Run]:
    softmax_losses = [name for name, loss in LOSSES.items() if loss.targets == "classes_or_distributions"]
    frozen_sets = [names for n in range(1, 5) for names in itertools.combinations(NAMES, n)]
    return [
        Run(),
        *(Run(loss, optimizer) for loss, optimizer in itertools.product(LOSSES, OPTIMIZERS)),
        *(
            Run(optimizer=optimizer, options={**options, "weight_decay": decay})
            for optimizer, choices in OPTIMIZER_OPTIONS.items()
            for options, decay in itertools.product(choices, (0.0, 0.05))
        ),
        *(Run(loss, options=options) for loss, choices in LOSS_OPTIONS.items() for options in choices),
        *(Run(loss, weighted=("rows",)) for loss in LOSSES),
        *(
            Run(loss, options=options, distributions=distributions, weighted=weighted)
            for loss in softmax_losses
            for options in ({}, *LOSS_OPTIONS[loss])
            for distributions in (False, True)
            for weighted in ((), *WEIGHTED)
        ),
        *(Run(activation=activation, options={"dropout": 0.4}) for activation in ACTIVATIONS),
        *(Run("mse", options=options) for options in GRADIENT_OPTIONS),
        *(Run(weighted=weighted, options=PENALTY_PER_ROW) for weighted in WEIGHTED),
        Run("mse", frozen=("w1",), options=PENALTY_PER_ROW),
        Run(options={**PENALTY_PER_ROW, "ignore_index": 2}),
        *(
            Run("mse", frozen=frozen, options=o)
            for frozen in frozen_sets
            for o in ({}, {**EVERYTHING, "clip_value": 0})
        ),
        *(Run(without=without, options=o) for without in (("b1",), ("b2",), ("b1", "b2")) for o in ({}, EVERYTHING)),
        *(
            Run(inputs=inputs, options=options, activation=activation)
            for inputs in ("float32", "uint8", "bfloat16", "csr of int32", "csr of int64")
            for options, activation in (({}, "relu"), (EVERYTHING, "gelu"))
        ),
        *(
            Run(optimizer=optimizer, options=EVERYTHING, batch_size=batch_size, rows=rows, weighted=("rows",))
            for optimizer in OPTIMIZERS
            for batch_size, rows in ((1, 20), (7, 37), (64, 150), (300, 620))
        ),
        *(Run(sizes=sizes, options=EVERYTHING) for sizes in ((1, 1, 1), (5, 16, 16), (5, 17, 33), (3, 300, 2))),
    ]


every = pytest.mark.parametrize("run", every_run(), ids=str)


@every
def test_engine_follows_the_reference_engine(run):
    expected = train(ReferenceEngine(run.config()), run)
    results = train(_core.EngineFloat64(run.config()), run)
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=1e-10, atol=1e-12, err_msg=name)


@every
@pytest.mark.parametrize("engine", [_core.EngineFloat32, _core.EngineFloat64])
def test_engine_gives_the_same_bits_at_every_number_of_threads(engine, run):
    # Large enough that eight threads are worth waking, and not a whole number of blocks.
    large = dataclasses.replace(run, sizes=(190, 125, 11), rows=150, batch_size=max(64, run.batch_size))
    dtype = np.float32 if engine is _core.EngineFloat32 else np.float64
    expected = train(engine(large.config()), large, dtype)
    for threads in (2, 3, 8):
        results = train(engine(large.config(threads=threads)), large, dtype)
        for name, array in expected.items():
            np.testing.assert_array_equal(results[name], array, err_msg=f"{name} at {threads} threads")


# Precision

OF_EVERY_KIND = [
    *(Run(loss, optimizer, "gelu") for loss, optimizer in itertools.product(LOSSES, OPTIMIZERS)),
    *(Run(inputs=inputs, activation="relu") for inputs in ("float32", "uint8", "bfloat16", "csr of int32")),
    Run(options=EVERYTHING, batch_size=64, rows=150, weighted=("rows", "classes")),
]


def assert_close_in_norm(results, expected, bound):
    for name, array in expected.items():
        error = np.linalg.norm(results[name].astype(np.float64) - array) / np.linalg.norm(array)
        assert error < bound, name  # NaN is not


@pytest.mark.parametrize("run", OF_EVERY_KIND, ids=str)
def test_float32_follows_float64(run):
    expected = train(ReferenceEngine(run.config()), run)
    for engine in (_core.EngineFloat32, ReferenceEngine):
        assert_close_in_norm(train(engine(run.config()), run, np.float32), expected, 2e-6)


@pytest.mark.parametrize("run", OF_EVERY_KIND, ids=str)
def test_bfloat16_compute_rounds_as_the_reference_engine_does(run):
    exact = train(ReferenceEngine(run.config()), run)
    results = train(_core.EngineFloat32(run.config(bfloat16_compute=True)), run, np.float32)
    # Sums in another order move a number across a rounding boundary now and then.
    assert_close_in_norm(results, train(ReferenceEngine(run.config(bfloat16_compute=True)), run, np.float32), 1e-3)
    assert_close_in_norm({"losses": results["losses"]}, {"losses": exact["losses"]}, 2e-2)
    assert not np.allclose(results["losses"], exact["losses"], rtol=1e-6)


def test_rounding_to_bfloat16_is_torchs():
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x7F7FFFFF, 0x00008000, 0x00018000], np.uint32)
    numbers = np.concatenate([bits, ties, np.array([0, -0.0, np.inf, -np.inf, np.nan], np.float32).view(np.uint32)])
    numbers = numbers.view(np.float32)
    expected = torch.tensor(numbers).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded_to_bfloat16(numbers), expected)


# What both engines promise

both_engines = pytest.mark.parametrize("engine", [_core.EngineFloat64, ReferenceEngine])


def run_plain(engine, run, *, steps=None, stop_if_not_finite=True, on_progress=None, data=None):
    """Take the first steps of a run, or all, with no weights and no scaling; rows are taken as they stand."""
    data = make_data(run) if data is None else data
    lr = run.lr(-(-run.rows // run.batch_size))[:steps]
    rows = (data.x, data.y, None, None, 1.0, 0.0, None, run.batch_size, 0)
    engine.run(*rows, lr, np.empty(len(lr)), stop_if_not_finite, on_progress)


def parameters_of(engine, run):
    return read_arrays(engine.store, make_data(run).parameters, "")


@both_engines
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(name, options) for name, choices in OPTIMIZER_OPTIONS.items() for options in ({}, *choices)],
    ids=str,
)
def test_engine_keeps_the_states_that_the_registry_says(engine, optimizer, options):
    config = Run(optimizer=optimizer, options=options).config()
    row = OPTIMIZERS[optimizer]
    kept = [engine(config).keeps_state(index) for index in range(3)]
    assert kept == [row.keeps(name, config) for name in row.states] + [False] * (3 - len(row.states))


@both_engines
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frozen", [(), ("w1", "b2")])
def test_another_engine_goes_on_from_the_states_and_the_step(engine, optimizer, frozen):
    options = {**OPTIMIZER_OPTIONS[optimizer][-1], "dropout": 0.3}
    run = Run(optimizer=optimizer, options=options, frozen=frozen)
    first, whole = engine(run.config()), engine(run.config())
    for trained in (first, whole):
        trained.load(make_data(run).parameters)
        run_plain(trained, run)
    run_plain(whole, run)

    second = engine(run.config())
    like = make_data(run).parameters
    second.load(tuple(parameters_of(first, run).values()))
    for index in range(len(OPTIMIZERS[optimizer].states)):
        if first.keeps_state(index):
            state = tuple(None if n in frozen else np.full_like(p, np.nan) for n, p in zip(NAMES, like, strict=True))
            first.store_state(index, state)
            second.load_state(index, state)
    second.steps = first.steps
    run_plain(second, run)
    assert second.steps == whole.steps == 10
    expected = parameters_of(whole, run)
    for name, array in parameters_of(second, run).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@both_engines
def test_a_loss_that_is_not_finite_stops_before_its_update_or_not(engine):
    run = Run("mse", rows=24)
    data = make_data(run)
    data.y[17] = np.nan  # the third batch
    stopped, finite, going_on = (engine(run.config()) for _ in range(3))
    for trained in (stopped, finite, going_on):
        trained.load(data.parameters)
    losses = np.full(3, -1.0)
    lr = np.full(3, 0.01)
    rows = (data.x, data.y, None, None, 1.0, 0.0, None, run.batch_size, 0)
    assert stopped.run(*rows, lr, losses, True, None)
    assert stopped.steps == 2
    assert np.isfinite(losses[:2]).all() and np.isnan(losses[2])
    assert not finite.run(*rows, lr[:2], np.empty(2), True, None)
    expected = parameters_of(finite, run)
    for name, array in parameters_of(stopped, run).items():
        np.testing.assert_array_equal(array, expected[name])

    assert not going_on.run(*rows, lr, losses, False, None)
    assert going_on.steps == 3
    assert np.isnan(parameters_of(going_on, run)["b2"]).any()


@both_engines
def test_a_gradient_that_is_not_a_number_is_one_of_no_length_either(engine):
    run = Run("mse", options={"clip_norm": 1.0}, rows=8)
    data = make_data(run)
    data.y[3, 1] = np.nan
    trained = engine(run.config())
    trained.load(data.parameters)
    run_plain(trained, run, stop_if_not_finite=False, data=data)
    for name, array in parameters_of(trained, run).items():  # as after torch.nn.utils.clip_grad_norm_
        assert np.isnan(array).all(), name


def test_reference_engine_interrupted_in_an_update_is_at_the_step_before():
    run = Run(optimizer="adam")
    interrupted, expected = ReferenceEngine(run.config()), ReferenceEngine(run.config())
    for trained in (interrupted, expected):
        trained.load(make_data(run).parameters)
    run_plain(expected, run, steps=3)
    update, calls = interrupted._optimizer.update, itertools.count(1)

    def update_until_interrupted(*args, **options):
        if next(calls) == 3 * 4 + 3:  # the third parameter of the fourth step
            raise KeyboardInterrupt
        update(*args, **options)

    interrupted._optimizer = dataclasses.replace(interrupted._optimizer, update=update_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_plain(interrupted, run)
    assert interrupted.steps == 3
    results = parameters_of(interrupted, run)
    for name, array in parameters_of(expected, run).items():
        np.testing.assert_array_equal(results[name], array)
    states = [np.empty((2, *make_data(run).parameters[0].shape)) for _ in range(2)]
    for state, trained in zip(states, (interrupted, expected), strict=True):
        for index in range(2):
            trained.store_state(index, (state[index], None, None, None))
    np.testing.assert_array_equal(*states)


def test_reference_engine_tells_of_its_progress():
    run, told = Run(), []
    engine = ReferenceEngine(run.config())
    engine.load(make_data(run).parameters)
    run_plain(engine, run, on_progress=told.append)
    assert told == [1, 2, 3, 4, 5]


def test_native_engine_refuses_a_state_of_a_frozen_parameter():
    run = Run(optimizer="adam", frozen=("b1",))
    engine = _core.EngineFloat64(run.config())
    states = tuple(np.zeros_like(p) for p in make_data(run).parameters)
    for method in (engine.load_state, engine.store_state):
        with pytest.raises(ValueError, match="state of b1 must be None"):
            method(0, states)
