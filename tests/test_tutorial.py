"""The tutorial's programs: the ways of writing one task agree, with each other and with the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from twolayer.reference import numpy as reference
from twolayer.reference import tutorial

REGRESSIONS = [tutorial.regression_numpy, tutorial.regression_torch, tutorial.regression_autograd]
CLASSIFICATIONS = [
    tutorial.classification_parameters,
    tutorial.classification_linear,
    tutorial.classification_optim,
]
every_regression = pytest.mark.parametrize("program", REGRESSIONS, ids=lambda program: program.__name__)
every_classification = pytest.mark.parametrize("program", CLASSIFICATIONS, ids=lambda program: program.__name__)


def in_float64(arrays):
    return [array.astype(np.float64) for array in arrays]


def digits(rows=23):
    """Small pixels-like data: x (rows, 12) in 0-255, y (rows,) in 0-3."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (rows, 12)).astype(np.float64), rng.integers(0, 4, rows)


def assert_same_run(run, curve, params):
    np.testing.assert_allclose(run.losses, curve, rtol=1e-9)
    for name, param in params.items():
        if param is None:
            assert getattr(run, name) is None
        else:
            np.testing.assert_allclose(getattr(run, name), param, rtol=1e-9, atol=1e-12, err_msg=name)


@every_regression
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_regression_equals_the_reference(program, activation):
    x, y, w1, w2 = in_float64(tutorial.regression_data(seed=0))
    lr = 1e-6 if activation == "relu" else 1e-7  # the identity's gradients are larger, and diverge at 1e-6
    run = program(x, y, w1, w2, activation=activation, lr=lr, steps=30)
    params = {"w1": w1.T.copy(), "b1": None, "w2": w2.T.copy(), "b2": None}
    curves = reference.train(
        params, x, y, activation=activation, loss="mse_sum", lr=lr, batch_size=64, epochs=30, shuffle=False
    )
    assert run.losses[-1] < run.losses[0]
    assert_same_run(run, curves.loss, params)


@every_regression
def test_regression_learns_in_float32_with_the_tutorials_defaults(program):
    data = tutorial.regression_data(seed=0)
    run = program(*data)
    assert len(run.losses) == 500
    assert run.w1.dtype == run.w2.dtype == np.float32
    assert run.w1.shape == (100, 1000) and run.w2.shape == (10, 100)
    assert run.losses[0] > 1e6 and run.losses[-1] < 1e-2


@every_regression
def test_regression_broadcasts_its_target(program):
    x, y, w1, w2 = tutorial.regression_data(seed=1)
    one = program(x, y, w1, w2, steps=3)
    tiled = program(x, np.tile(y, (64, 1)), w1, w2, steps=3)
    assert one.losses == tiled.losses


@every_regression
def test_regression_refuses_another_activation(program):
    with pytest.raises(ValueError, match="activation must be 'relu' or 'identity', got 'sigmoid'"):
        program(*tutorial.regression_data(seed=0), activation="sigmoid", steps=1)


@every_classification
@pytest.mark.parametrize("draw", [tutorial.randn_weights, tutorial.linear_weights])
def test_classification_equals_the_reference(program, draw):
    (x, y), weights = digits(), in_float64(draw(3, 12, 6, 4))
    run = program(x, y, *weights, lr=1e-2, epochs=4, batch_size=8)
    params = dict(zip(["w1", "b1", "w2", "b2"], (weight.copy() for weight in weights), strict=True))
    curves = reference.train(
        params,
        x,
        y,
        activation="sigmoid",
        loss="cross_entropy",
        lr=1e-2,
        batch_size=8,
        epochs=4,
        shuffle=False,
        drop_last=True,
    )
    assert_same_run(run, curves.last_batch_loss, params)


@every_classification
def test_classification_never_sees_the_last_short_batch(program):
    (x, y), weights = digits(rows=23), tutorial.linear_weights(0, 12, 6, 4)
    x = x.astype(np.float32)
    with_rest = program(x, y, *weights, epochs=2, batch_size=8)
    x[16:] = np.nan
    without = program(x, y, *weights, epochs=2, batch_size=8)
    assert np.isfinite(with_rest.losses).all()
    assert without.losses == with_rest.losses


@every_classification
def test_classification_refuses_less_than_a_batch(program):
    (x, y), weights = digits(rows=7), tutorial.linear_weights(0, 12, 6, 4)
    with pytest.raises(ValueError, match="got 7 rows at batch_size 8"):
        program(x, y, *weights, batch_size=8)


@every_regression
def test_regression_reports_each_step_and_leaves_its_inputs_alone(program):
    data = tutorial.regression_data(seed=0)
    kept, seen = [array.copy() for array in data], []
    run = program(*data, steps=3, on_epoch=lambda step, loss: seen.append((step, loss)))
    assert seen == list(enumerate(run.losses))
    for array, before in zip(data, kept, strict=True):
        np.testing.assert_array_equal(array, before)


@every_classification
def test_classification_reports_each_epoch_and_leaves_its_inputs_alone(program):
    (x, y), weights = digits(), in_float64(tutorial.linear_weights(0, 12, 6, 4))
    kept, seen = [array.copy() for array in (x, y, *weights)], []
    run = program(x, y, *weights, epochs=3, batch_size=8, on_epoch=lambda epoch, loss: seen.append((epoch, loss)))
    assert seen == list(enumerate(run.losses))
    for array, before in zip((x, y, *weights), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_initial_weights_are_the_ones_torch_draws():
    linear = tutorial.linear_weights(0)
    assert [array.shape for array in linear] == [(100, 784), (100,), (10, 100), (10,)]
    assert np.abs(linear.w1).max() <= 1 / 28 and np.abs(linear.w2).max() <= 1 / 10
    randn = tutorial.randn_weights(0)
    assert [array.shape for array in randn] == [array.shape for array in linear]
    assert randn.w1.std() == pytest.approx(1, abs=0.02)
    for draw in (tutorial.regression_data, tutorial.randn_weights, tutorial.linear_weights):
        np.testing.assert_array_equal(draw(1).w1, draw(1).w1)
        assert not np.array_equal(draw(1).w1, draw(2).w1)
