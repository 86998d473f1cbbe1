"""How a run of the CUDA engine ends: whole, stopped, or refused; and which path it took."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace

import emulation
import numpy as np
import pytest
from cases import Trained
from cases import training_data as data_of
from device_engine import (
    LONG,
    SMALL,
    DeviceEngine,
    assert_same_bits,
    emulated_device,
    every_path,
    loaded,
    new,
    run_in_pieces,
)
from native_runs import engine_config, run_steps, stored
from test_engine_options import Run, make_data, read_arrays


@every_path
@pytest.mark.parametrize("bad", [0, 2, 12])
def test_a_loss_that_is_not_finite_stops_before_its_update_or_not(bad, path, cuda_engine):
    run = Run("mse", rows=8 * 15, options={"l2": 0.1})
    data = make_data(run)
    data.y[8 * bad + 1] = np.nan
    stopped, finite, going_on = (cuda_engine("float64", run.config(path=path)) for _ in range(3))
    for trained in (stopped, finite, going_on):
        trained.load(data.parameters)
    losses, lr = np.full(15, -1.0), np.full(15, 0.01)
    rows = (data.x, data.y, None, None, 1.0, 0.0, None, run.batch_size, 0)
    assert stopped.run(*rows, lr, losses, True, None)
    assert stopped.steps == bad
    assert np.isfinite(losses[:bad]).all() and np.isnan(losses[bad])
    assert np.all(losses[bad + 1 :] == -1)
    assert not finite.run(*rows, lr[:bad], np.empty(bad), True, None)
    expected = read_arrays(finite.store, data.parameters, "")
    for name, array in read_arrays(stopped.store, data.parameters, "").items():
        np.testing.assert_array_equal(array, expected[name])
    assert stopped.run(*rows[:-1], bad, lr[bad:], losses[bad:], True, None)  # again
    assert stopped.steps == bad

    assert not going_on.run(*rows, lr, losses, False, None)
    assert going_on.steps == 15
    assert np.isnan(read_arrays(going_on.store, data.parameters, "")["b2"]).any()


def test_a_gradient_that_is_not_a_number_is_one_of_no_length_either(cuda_engine):
    run = Run("mse", options={"clip_norm": 1.0}, rows=8)
    data = make_data(run)
    data.y[3, 1] = np.nan
    trained = cuda_engine("float64", run.config())
    trained.load(data.parameters)
    rows = (data.x, data.y, None, None, 1.0, 0.0, None, 8, 0)
    trained.run(*rows, np.full(1, 0.1), np.empty(1), False, None)
    for name, array in read_arrays(trained.store, data.parameters, "").items():
        assert np.isnan(array).all(), name


@every_path
def test_what_on_progress_raises_ends_the_run_after_a_whole_step(path, cuda_engine):
    steps, calls = 200_000, []
    training = replace(SMALL, rows=8)
    x, y, _ = data_of(training)

    def run(fresh, losses, on_progress=None):
        rows = len(losses) * 8
        placed = fresh._placed((x, y))
        order = np.arange(rows) % 8
        run_steps(fresh, *placed, losses, 8, lr=SMALL.lr, order=order, on_progress=on_progress)

    def on_progress(steps_done):
        calls.append((steps_done, time.monotonic()))
        time.sleep(0.03)  # until the next call would be due, which must not come
        raise LookupError("enough")

    fresh, losses = loaded(cuda_engine, training, path=path), np.empty(steps)
    with pytest.raises(LookupError, match="enough"):
        run(fresh, losses, on_progress)
    assert len(calls) == 1
    assert calls[0][0] <= fresh.steps < steps
    taken = min(fresh.steps, 50)
    again, expected = loaded(cuda_engine, training, path=path), np.empty(taken)
    run(again, expected)
    np.testing.assert_array_equal(losses[:taken], expected)


def test_on_progress_counts_the_steps(cuda_engine):
    calls, training = [], replace(SMALL, rows=8)
    fresh, losses = loaded(cuda_engine, training), np.empty(600)
    order = np.arange(8 * len(losses)) % 8
    run_steps(fresh, *data_of(training)[:2], losses, 8, lr=SMALL.lr, order=order, on_progress=calls.append)
    assert fresh.steps == 600
    assert calls == sorted(calls)
    assert all(0 <= steps <= 600 for steps in calls)


def test_no_steps_change_nothing(cuda_engine):
    fresh = loaded(cuda_engine, SMALL)
    assert fresh.path == ""
    run_steps(fresh, *data_of(SMALL)[:2], np.empty(0), 8, lr=0.1)
    assert fresh.steps == 0
    assert_same_bits(*(Trained(np.empty(0), p) for p in (stored(fresh, SMALL), data_of(SMALL).parameters)))


def test_most_steps_of_a_long_run_are_launched_as_graphs(emulated_cuda):
    library = ctypes.CDLL(emulated_cuda.__spec__.origin)
    config = engine_config(LONG, path="graph", clip_norm=1.0, l2=0.1)
    fresh = DeviceEngine(emulated_cuda, "cpu", "float32", config)
    fresh.load(tuple(data_of(LONG).parameters.values()))
    emulation.take_counts(library)
    run_in_pieces(fresh, LONG, ())
    counts = emulation.take_counts(library)
    assert counts.graphs >= 2  # of eight steps each
    assert counts.launches == 1 + LONG.batches * 9


def test_the_path_taken_is_told(cuda_engine):
    fresh = loaded(cuda_engine, SMALL, path="graph")
    run_steps(fresh, *data_of(SMALL)[:2], np.empty(3), 8, lr=0.1)
    assert fresh.path == "graph"


# Refusals


def test_refusals(cuda_engine):
    x, y, parameters = data_of(SMALL)
    fresh = loaded(cuda_engine, SMALL)
    rest = (None, None, 1.0, 0.0, None, 8, 0, np.zeros(5), np.empty(5), True, None)
    with pytest.raises(TypeError, match="x must be a dense tensor on a CUDA device; got a CSR matrix"):
        fresh.run((np.ones(3, np.float32), np.zeros(3, np.int32), np.arange(4)), y, *rest)
    with pytest.raises(TypeError, match="x must be float32, float64, bfloat16 or uint8"):
        fresh.run(x.astype(np.int32), y, *rest)
    with pytest.raises(ValueError, match=r"y must have shape \(37,\); got \(36,\)"):
        fresh.run(x, y[:36], *rest)
    with pytest.raises(TypeError, match="sample_weight must be float32; got float64"):
        fresh.run(x, y, np.ones(37), *rest[1:])
    with pytest.raises(ValueError, match="lr must have no more entries than there are batches from first_step on"):
        fresh.run(x, y, *rest[:-4], np.zeros(6), np.empty(6), True, None)
    with pytest.raises(ValueError, match="order must hold rows in"):
        fresh.run(x, y, *rest[:4], np.array([37]), *rest[5:])
    with pytest.raises(ValueError, match=r"w1 must have shape \(20, 9\); got \(9, 20\)"):
        fresh.load((parameters["w1"].T.copy(), *list(parameters.values())[1:]))
    with pytest.raises(TypeError, match="y must hold values for this loss; got int64 classes"):
        loaded(cuda_engine, replace(SMALL, loss="mse")).run(x, y, *rest)
    with pytest.raises(ValueError, match="path must be 'auto' or 'graph'; got 'cluster'"):
        new(cuda_engine, SMALL, path="cluster")
    assert fresh.steps == 0
    assert_same_bits(*(Trained(np.empty(0), p) for p in (stored(fresh, SMALL), parameters)))


def test_a_device_that_is_not_there_is_refused(cuda_engine):
    with pytest.raises(RuntimeError, match="twolayer could not make CUDA device 99 the current one"):
        new(cuda_engine, SMALL, device=99)


def test_arrays_on_the_host_are_refused(gpu, cuda_engine):
    parameters = data_of(SMALL).parameters
    fresh = loaded(cuda_engine, SMALL)
    with pytest.raises(ValueError, match="w1 must be a dense tensor on a CUDA device"):
        fresh._engine.load(tuple(parameters.values()))


def test_too_little_memory_is_told(emulated_cuda):
    run = Run(sizes=(50, 300, 5))
    with (
        emulated_device(emulated_cuda, memory=1000),
        pytest.raises(RuntimeError, match=r"could not get 120000 bytes of CUDA memory \(out of memory\)"),
    ):
        DeviceEngine(emulated_cuda, "cpu", "float64", run.config())
    DeviceEngine(emulated_cuda, "cpu", "float64", run.config())  # the error was taken away
