"""The training engine on CUDA and on the emulated device: its values and bits."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import BFLOAT16_ROUNDING_BOUND, TRAININGS, Shape, Trained, relative_error, train_exactly
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
from native_runs import engine_config, run_steps, steps_of, stored, train
from test_engine_options import EVERYTHING, OPTIMIZER_OPTIONS, Run, every_run, make_data, read_arrays
from test_engine_options import train as train_run

from twolayer import _core
from twolayer.reference.engine import NAMES, ReferenceEngine
from twolayer.reference.numpy import permutation
from twolayer.registry import OPTIMIZERS

RUNS = [run for run in every_run() if not run.inputs.startswith("csr")]


# Values


@every_path
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_option_follows_the_reference_engine(run, path, cuda_engine):
    expected = train_run(ReferenceEngine(run.config()), run)
    results = train_run(cuda_engine("float64", run.config(path=path)), run)
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=1e-10, atol=1e-12, err_msg=name)


@every_path
@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_table(training, path, cuda_engine):
    exact, trained = train_exactly(training), train(training, new(cuda_engine, training, path=path))
    assert relative_error(trained.step_loss, exact.step_loss) <= training.bound
    np.testing.assert_allclose(trained.step_loss, exact.step_loss, rtol=20 * training.bound)
    for name, parameter in exact.parameters.items():
        assert relative_error(trained.parameters[name], parameter) <= training.bound, name


@every_path
@pytest.mark.parametrize("training", [t for t in TRAININGS if t.bfloat16_compute], ids=str)
def test_bfloat16_is_rounded_where_the_numpy_twin_rounds(training, path, cuda_engine):
    data = data_of(training)
    twin = steps_of(ReferenceEngine(engine_config(training)), training, data)
    for step, expected in zip(steps_of(new(cuda_engine, training, path=path), training, data), twin, strict=True):
        assert step.loss == pytest.approx(expected.loss, rel=20 * BFLOAT16_ROUNDING_BOUND)
        for name, parameter in expected.parameters.items():
            assert relative_error(step.parameters[name], parameter) <= BFLOAT16_ROUNDING_BOUND, name


SIZES = [Shape(64, 70, 100, 10), Shape(33, 130, 65, 40), Shape(200, 20, 300, 3)]
DEVICES = {"small": {"multiprocessors": 2, "shared_bytes": 99 << 10, "capability": 120}, "old": {"capability": 80}}


@pytest.mark.parametrize("options", [{}, {**EVERYTHING, "weight_decay": 0.01}], ids=["plain", "everything"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_work_is_cut_otherwise_on_other_devices(shape, device, options, emulated_cuda):
    batch, *sizes = shape
    run = Run("cross_entropy", "adam", "gelu", options, sizes=tuple(sizes), rows=2 * batch + 7, batch_size=batch)
    expected = train_run(ReferenceEngine(run.config()), run)
    with emulated_device(emulated_cuda, **DEVICES[device]):
        for dtype, bound in (("float64", 1e-11), ("float32", 2e-5)):
            results = train_run(DeviceEngine(emulated_cuda, "cpu", dtype, run.config(path="graph")), run, dtype)
            for name, array in expected.items():
                assert relative_error(results[name].astype(np.float64), array) < bound, name


@pytest.mark.parametrize("b2", [[0, 0, 0], [1, 2, 2], [np.nan, 1, 2], [0, np.nan, 2], [0, 3, np.nan], [-np.inf] * 3])
def test_hits_are_those_of_the_cpu(b2, cuda_engine):
    training = replace(SMALL, shape=Shape(8, 9, 20, len(b2)))
    x, y, parameters = data_of(training)
    parameters["w2"][:] = 0
    parameters["b2"][:] = b2
    y[:] = np.arange(len(y)) % len(b2)
    ours, cpu = loaded(cuda_engine, training), _core.EngineFloat32(engine_config(training))
    for each in (ours, cpu):
        each.load(tuple(parameters.values()))
    rows = (x, y, None, None, 1.0, 0.0, None)
    assert ours.evaluate(*rows)[2] == cpu.evaluate(*rows)[2]


def test_evaluation_of_several_batches(cuda_engine):
    run = Run(sizes=(2, 3, 2), rows=4500, weighted=("rows",))
    data = make_data(run)
    ours, reference = cuda_engine("float64", run.config()), ReferenceEngine(run.config())
    for each in (ours, reference):
        each.load(data.parameters)
    for order in (None, permutation(run.rows, 0, 0)[:3000]):
        rows = (data.x, data.y, data.row_weight, None, 1.0, 0.0, order)
        np.testing.assert_allclose(ours.evaluate(*rows), reference.evaluate(*rows), rtol=1e-12)


# The same bits


@every_path
@pytest.mark.parametrize("cuts", [(), (1,), (9, 20), tuple(range(1, LONG.batches))], ids=str)
@pytest.mark.parametrize("bfloat16_compute", [False, True])
def test_however_a_run_is_cut_it_gives_the_same_bits(cuts, bfloat16_compute, path, cuda_engine):
    training, options = replace(LONG, bfloat16_compute=bfloat16_compute), {"dropout": 0.3, "path": path}
    whole = run_in_pieces(loaded(cuda_engine, training, **options), training, ())
    assert np.isfinite(whole.step_loss).all()
    assert_same_bits(run_in_pieces(loaded(cuda_engine, training, **options), training, cuts), whole)


@every_path
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frozen", [(), ("w1", "b2")])
def test_another_engine_goes_on_from_the_states_and_the_step(optimizer, frozen, path, cuda_engine):
    options = {**OPTIMIZER_OPTIONS[optimizer][-1], "dropout": 0.3, "path": path}
    run = Run(optimizer=optimizer, options=options, frozen=frozen)
    data = make_data(run, np.float32)
    arguments = (data.x, data.y, None, None, 1.0, 0.0, None, run.batch_size, 0, run.lr(5), np.empty(5), True, None)
    first, whole, second = (cuda_engine("float32", run.config()) for _ in range(3))
    for trained in (first, whole):
        trained.load(data.parameters)
        trained.run(*arguments)
    whole.run(*arguments)

    second.load(tuple(read_arrays(first.store, data.parameters, "").values()))
    like = tuple(None if name in frozen else p for name, p in zip(NAMES, data.parameters, strict=True))
    for index in filter(first.keeps_state, range(len(OPTIMIZERS[optimizer].states))):
        state = tuple(None if p is None else np.full_like(p, np.nan) for p in like)
        first.store_state(index, state)
        second.load_state(index, state)
    second.steps = first.steps
    second.run(*arguments)
    assert second.steps == whole.steps == 10
    expected = read_arrays(whole.store, data.parameters, "")
    for name, array in read_arrays(second.store, data.parameters, "").items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@every_path
def test_a_run_gives_the_same_bits_again_in_the_same_engine(path, cuda_engine):
    fresh = loaded(cuda_engine, LONG, path=path)
    runs = []
    for _ in range(2):
        fresh.load(tuple(data_of(LONG).parameters.values()))
        fresh.load_state(0, tuple(np.zeros_like(p) for p in data_of(LONG).parameters.values()))
        fresh.steps = 0
        runs.append(run_in_pieces(fresh, LONG, ()))
        fresh.evaluate(*data_of(LONG)[:2], None, None, 1.0, 0.0, None)  # in the same scratch
    assert_same_bits(*runs)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_blocks_and_threads_makes_no_difference(seed, emulated_cuda):
    run = Run("mse", "adam", options=EVERYTHING, sizes=(70, 40, 20), rows=150, batch_size=64, weighted=("rows",))
    expected = train_run(DeviceEngine(emulated_cuda, "cpu", "float32", run.config()), run, np.float32)
    with emulated_device(emulated_cuda, seed=seed):
        results = train_run(DeviceEngine(emulated_cuda, "cpu", "float32", run.config()), run, np.float32)
    for name, array in expected.items():
        np.testing.assert_array_equal(results[name], array, err_msg=name)


def test_the_second_device(emulated_cuda):
    run = Run(optimizer="adam", options=EVERYTHING)
    results = [train_run(DeviceEngine(emulated_cuda, "cpu", "float64", run.config(device=i)), run) for i in (0, 1, 0)]
    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array, err_msg=name)
        np.testing.assert_array_equal(results[2][name], array, err_msg=name)


def test_no_order_is_the_order_of_the_rows(cuda_engine):
    x, y, _ = data_of(SMALL)
    runs = []
    for order in (None, np.arange(SMALL.rows)):
        fresh, losses = loaded(cuda_engine, SMALL), np.empty(SMALL.batches)
        run_steps(fresh, x, y, losses, SMALL.shape.batch, lr=SMALL.lr, order=order)
        runs.append(Trained(losses, stored(fresh, SMALL)))
    assert_same_bits(*runs)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_rows_may_lie_apart_or_coincide(loss, cuda_engine):
    training = replace(SMALL, loss=loss, rows=8)
    x, y, parameters = data_of(training)
    x[:], y[:] = x[0], y[0]
    runs = []
    for shared in (False, True):
        fresh, losses = new(cuda_engine, training), np.empty(1)
        fresh.load(tuple(parameters.values()))
        placed = fresh._placed((x, y))
        if shared:
            apart = torch.full((8, 2, 9), torch.nan, device=placed[0].device)
            apart[:, 1] = placed[0]
            placed = apart[:, 1], placed[1] if loss == "cross_entropy" else placed[1][0].expand(y.shape)
        run_steps(fresh, *placed, losses, 8, lr=training.lr)
        runs.append(Trained(losses, stored(fresh, training)))
    assert_same_bits(*runs)


@every_path
def test_engines_of_several_threads_do_not_disturb_each_other(path, cuda_engine):
    trainings = [replace(LONG, loss="mse", optimizer=name, momentum=0.0) for name in ("sgd", "adam", "adagrad")]
    alone = [run_in_pieces(loaded(cuda_engine, t, path=path), t, (3,)) for t in trainings]
    engines, together = [loaded(cuda_engine, t, path=path) for t in trainings], {}

    def run(index):
        together[index] = run_in_pieces(engines[index], trainings[index], (3,))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(trainings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index, expected in enumerate(alone):
        assert_same_bits(together[index], expected)
