"""Products that go through the nonzero inputs only give the bits of the dense products, whatever the numbers are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from cases import PARAMETERS, Shape, Training, TrainingData, training_data
from hypothesis import given, settings
from hypothesis import strategies as st
from native_runs import engine_config, make_engine, run_steps, steps_of

from twolayer import _core
from twolayer.reference.engine import ReferenceEngine
from twolayer.registry import OPTIMIZERS

PATHS = ("never", "always", "auto")
BATCHES = (1, 63, 64, 65, 300)
PRECISIONS = {
    "float32": {"dtype": torch.float32},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.float32, "bfloat16_compute": True},
}
every_precision = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)

# One past whole vectors, columns for two sections and the rest of a third, and hidden units for three blocks.
SPARSE = Training("cross_entropy", "tanh", torch.float32, Shape(64, 137, 35, 5), rows=150)


def data_with_zeros(training: Training, share: float, seed: int = 0) -> TrainingData:
    """Data of which that share is zero, half of it −0; some columns are zero in all rows."""
    data = training_data(training, seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(data.x.shape).astype(data.x.dtype)
    zeros = np.where(rng.random(x.shape) < 0.5, 0.0, -0.0).astype(x.dtype)
    empty = rng.random(x.shape[1]) < share / 2
    return data._replace(x=np.where((rng.random(x.shape) < share) | empty, zeros, x))


def run(engine: Any, training: Training, data: TrainingData, **options: Any) -> dict[str, np.ndarray]:
    """All that can be seen of two epochs in the order of the rows and an evaluation after them."""
    engine.load(tuple(data.parameters.values()))
    losses = np.full((2, training.batches), np.nan)
    for epoch in losses:
        run_steps(engine, data.x, data.y, epoch, training.shape.batch, **{"lr": training.lr} | options)
    seen = {"losses": losses}
    like = {name: p for name, p in data.parameters.items() if p is not None}

    def read(store: Any, prefix: str) -> None:
        arrays = {name: np.full_like(p, np.nan) for name, p in like.items()}
        store(tuple(arrays.get(name) for name in PARAMETERS))
        seen.update({prefix + name: array for name, array in arrays.items()})

    read(engine.store, "")
    for index, state in enumerate(OPTIMIZERS[training.optimizer].states):
        if engine.keeps_state(index):
            read(lambda arrays, index=index: engine.store_state(index, arrays), f"{state} of ")
    seen["evaluation"] = np.array(engine.evaluate(data.x, data.y, None, None, 1.0, 0.0, None))
    return seen


def assert_same_bits(seen: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal, the sign of a zero too; a NaN may be any NaN."""
    assert seen.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(seen[name], array, err_msg=name)
        ordered = ~np.isnan(array)
        np.testing.assert_array_equal(np.signbit(seen[name])[ordered], np.signbit(array)[ordered], err_msg=name)


def assert_skipping_changes_nothing(training: Training, data: TrainingData, lr: float | None = None, **changes: Any):
    """The result, of which each path gives the same bits."""
    options = {} if lr is None else {"lr": lr}
    dense, *others = (
        run(make_engine(training, skip_zeros=path, **changes), training, data, **options) for path in PATHS
    )
    for other in others:
        assert_same_bits(other, dense)
    return dense


# Finite numbers


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.985, 1.0])
@every_precision
def test_every_share_of_zeros(precision, share, batch):
    rows = 5 if batch == 1 else 2 * batch + 20
    training = dataclasses.replace(SPARSE, shape=SPARSE.shape._replace(batch=batch), rows=rows, **precision)
    seen = assert_skipping_changes_nothing(training, data_with_zeros(training, share))
    assert all(np.isfinite(array).all() for array in seen.values())


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("batch", [64, 150])
@every_precision
def test_hardly_any_numbers_on_several_threads(precision, batch, threads):
    """So few that the hidden units beyond whole panels, which threads share by rows, leave out vectors of zeros."""
    training = dataclasses.replace(SPARSE, shape=Shape(batch, 300, 117, 5), rows=2 * batch + 20, **precision)
    assert_skipping_changes_nothing(training, data_with_zeros(training, 0.985), threads=threads)


OPTIONS = [
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"l1": 0.01, "l2": 0.1},
    {"clip_norm": 0.05},
    {"clip_value": 0.01},
    {"dropout": 0.4},
    {"l1": 0.01, "clip_norm": 0.05, "clip_value": 0.02, "dropout": 0.4, "weight_decay": 0.1},
    {"amsgrad": True},
    {"centered": True, "momentum": 0.5},
    {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [64, 300])
@every_optimizer
def test_every_optimizer_and_option(optimizer, batch, options):
    shape = SPARSE.shape._replace(batch=batch)
    training = dataclasses.replace(SPARSE, optimizer=optimizer, shape=shape, rows=320)
    assert_skipping_changes_nothing(training, data_with_zeros(training, 0.85), **options)


@pytest.mark.parametrize("threads", [2, 3, 8])
@every_optimizer
def test_every_number_of_threads(optimizer, threads):
    training = dataclasses.replace(SPARSE, optimizer=optimizer, shape=Shape(64, 300, 160, 20))
    data = data_with_zeros(training, 0.85)
    alone = assert_skipping_changes_nothing(training, data)
    assert_same_bits(assert_skipping_changes_nothing(training, data, threads=threads), alone)


@settings(deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, size) for size in (70, 200, 40, 20))),
    rows=st.integers(1, 140),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(sizes, rows, share, dtype, seed):
    training = Training("mse", "relu", dtype, Shape(*sizes), rows=rows)
    assert_skipping_changes_nothing(training, data_with_zeros(training, share, seed))


@pytest.mark.parametrize("kind", ["uint8", "float64", "bfloat16", "csr"])
def test_every_kind_of_input(kind):
    data = data_with_zeros(SPARSE, 0.85)
    if kind == "csr":
        values, columns = data.x[data.x != 0], np.nonzero(data.x)[1].copy()
        x = values, columns, np.append(0, (data.x != 0).sum(axis=1).cumsum())
    elif kind == "bfloat16":
        x = torch.from_numpy(data.x).bfloat16()
    else:
        x = (data.x * (30 if kind == "uint8" else 1)).clip(0).astype(kind)
    seen = assert_skipping_changes_nothing(SPARSE, data._replace(x=x))
    if kind == "csr":
        assert_same_bits(seen, assert_skipping_changes_nothing(SPARSE, data))


@pytest.mark.parametrize("frozen", [("w1",), ("w1", "b1"), ("b1", "w2", "b2")], ids=" ".join)
def test_frozen_parameters(frozen):
    flags = [name in frozen for name in PARAMETERS]
    data = data_with_zeros(SPARSE, 0.85)
    engines = [make_engine(SPARSE, skip_zeros=path, frozen=flags) for path in PATHS]
    stored = []
    for engine in engines:
        engine.load(tuple(data.parameters.values()))
        losses = np.empty(SPARSE.batches)
        run_steps(engine, data.x, data.y, losses, 64, lr=SPARSE.lr)
        arrays = tuple(np.full_like(p, np.nan) for p in data.parameters.values())
        engine.store(arrays)
        stored.append({"losses": losses} | dict(zip(PARAMETERS, arrays, strict=True)))
    for other in stored[1:]:
        assert_same_bits(other, stored[0])


# Numbers that are not finite: 0 · ∞ and 0 · NaN are NaN, and skipping them would hide it.

POISONS = pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])


@POISONS
@pytest.mark.parametrize("name", ["x", *PARAMETERS])
@every_precision
def test_poisoned_numbers(precision, name, poison):
    training = dataclasses.replace(SPARSE, loss="mse", **precision)
    data = data_with_zeros(training, 0.9)
    ({"x": data.x} | data.parameters)[name].flat[3] = poison
    seen = assert_skipping_changes_nothing(training, data)
    twin = data if training.bfloat16_compute else data.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = run(ReferenceEngine(engine_config(training)), training, twin)
    for result, array in expected.items():
        np.testing.assert_array_equal(np.isfinite(seen[result]), np.isfinite(array), err_msg=result)


@POISONS
@every_optimizer
def test_a_weight_that_meets_only_zeros_is_not_skipped(optimizer, poison):
    training = dataclasses.replace(SPARSE, loss="mse", optimizer=optimizer)
    data = data_with_zeros(training, 0.9)
    data.x[:, 7] = 0
    data.parameters["w1"][2, 7] = poison
    seen = assert_skipping_changes_nothing(training, data)
    assert np.isnan(seen["losses"]).all()


@POISONS
@every_optimizer
def test_targets_that_poison_the_weights_midway(optimizer, poison):
    training = dataclasses.replace(SPARSE, loss="mse", optimizer=optimizer)
    data = data_with_zeros(training, 0.9)
    data.x[:, 7] = 0
    data.y[70, 1] = poison  # in the second of three batches
    seen = assert_skipping_changes_nothing(training, data)
    assert np.isfinite(seen["losses"][0, 0])
    assert not np.isfinite(seen["losses"][0, 1:]).any()


@pytest.mark.parametrize("lr", [1e20, 1e30, 3e38, 1e39])
@pytest.mark.parametrize("loss", ["mse", "mse_sum", "cross_entropy"])
@every_precision
def test_weights_that_grow_beyond_the_finite(precision, loss, lr):
    training = dataclasses.replace(SPARSE, loss=loss, activation="relu", **precision)
    assert_skipping_changes_nothing(training, data_with_zeros(training, 0.9), lr=lr)


def test_a_rate_that_only_float64_can_hold():
    data = data_with_zeros(SPARSE, 0.9)
    data.x[:, 7] = 0
    dense, skipping = (
        next(steps_of(make_engine(SPARSE, skip_zeros=path), SPARSE, data, lr=1e39)) for path in ("never", "always")
    )
    assert np.isnan(dense.parameters["w1"][:, 7]).all()  # ∞ · 0
    assert_same_bits(skipping.parameters, dense.parameters)


def test_a_weight_that_is_finite_until_it_is_rounded():
    training = dataclasses.replace(SPARSE, bfloat16_compute=True)
    data = data_with_zeros(training, 0.9)
    data.x[:, 7] = 0
    data.parameters["w1"][2, 7] = np.finfo(np.float32).max  # ∞ in bfloat16
    seen = assert_skipping_changes_nothing(training, data)
    assert np.isnan(seen["losses"]).all()


def test_a_weight_that_becomes_infinite_when_it_is_rounded():
    training = dataclasses.replace(SPARSE, loss="mse", activation="identity", bfloat16_compute=True)
    data = data_with_zeros(training, 0.9)
    data.x[:64, 7], data.x[64:, 7] = 1, 0
    data.parameters["w1"][2, 7] = 3.38e38  # finite in bfloat16, as long as it does not grow
    data.parameters["w2"][:, 2] = 1e-38
    assert_skipping_changes_nothing(training, data, lr=1e36)


def test_a_step_of_0_by_0():
    training = dataclasses.replace(SPARSE, optimizer="adagrad")
    data = data_with_zeros(training, 0.9)
    data.x[:, 7] = 0
    seen = assert_skipping_changes_nothing(training, data, eps=0.0)
    assert np.isnan(seen["w1"][:, 7]).all()  # as torch.optim has it


def test_loading_finite_weights_ends_what_infinite_ones_began():
    data = data_with_zeros(SPARSE, 0.9)
    poisoned = {name: p * np.float32(np.nan) for name, p in data.parameters.items()}
    engine = make_engine(SPARSE, skip_zeros="always")
    run(engine, SPARSE, data._replace(parameters=poisoned))
    engine.steps = 0
    assert_same_bits(run(engine, SPARSE, data), run(make_engine(SPARSE, skip_zeros="never"), SPARSE, data))


def test_the_choice_is_checked():
    with pytest.raises(ValueError, match="skip_zeros must be 'auto', 'always' or 'never'; got 'maybe'"):
        _core.EngineFloat32(engine_config(SPARSE, skip_zeros="maybe"))
