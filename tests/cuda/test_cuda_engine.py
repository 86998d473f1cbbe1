"""The training engine on CUDA and on the emulated device: its values, bits, ends and refusals."""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import BFLOAT16_ROUNDING_BOUND, TRAININGS, Shape, Trained, Training, relative_error, train_exactly
from cases import training_data as data_of
from device_engine import DeviceEngine, emulated_device
from native_runs import engine_config, run_steps, steps_of, stored, train
from test_engine_options import EVERYTHING, OPTIMIZER_OPTIONS, Run, every_run, make_data, read_arrays
from test_engine_options import train as train_run

from twolayer import _core, _native
from twolayer.reference.engine import NAMES, ReferenceEngine
from twolayer.reference.numpy import permutation
from twolayer.registry import OPTIMIZERS

pytest.importorskip("ninja", reason="the emulation is built with ninja")
import emulated_module
import emulation

RUNS = [run for run in every_run() if not run.inputs.startswith("csr")]
PATHS = ["auto", "graph"]
every_path = pytest.mark.parametrize("path", PATHS)

SMALL = Training("cross_entropy", "tanh", torch.float32, momentum=0.9)
LONG = replace(SMALL, rows=40 * 8 + 3, activation="gelu")  # some graphs of steps, and some more


@pytest.fixture
def emulated_cuda():
    if emulation.compiler() is None:
        pytest.skip("the emulation is written for g++ on Linux")
    return emulated_module.load()


@pytest.fixture(params=["cuda", "emulated"])
def engine(request):
    """``engine(dtype, config)`` on the GPU, then on the emulated device."""
    if request.param == "emulated":
        return functools.partial(DeviceEngine, request.getfixturevalue("emulated_cuda"), "cpu")
    device = request.getfixturevalue("gpu")
    return functools.partial(DeviceEngine, _native.get_cuda(), device)


@pytest.fixture
def new(engine):
    """An engine for a training, which has not been loaded."""

    def make(training, **changes):
        dtype = str(training.dtype).removeprefix("torch.")
        return engine(dtype, engine_config(training, **changes))

    return make


@pytest.fixture
def loaded(new):
    def make(training, **changes):
        fresh = new(training, **changes)
        fresh.load(tuple(data_of(training).parameters.values()))
        return fresh

    return make


def assert_same_bits(trained, other):
    np.testing.assert_array_equal(trained.step_loss, other.step_loss)
    assert trained.parameters.keys() == other.parameters.keys()
    for name, parameter in trained.parameters.items():
        np.testing.assert_array_equal(parameter, other.parameters[name], err_msg=name)


# Values


@every_path
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_option_follows_the_reference_engine(run, path, engine):
    expected = train_run(ReferenceEngine(run.config()), run)
    results = train_run(engine("float64", run.config(path=path)), run)
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=1e-10, atol=1e-12, err_msg=name)


@every_path
@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_table(training, path, new):
    exact, trained = train_exactly(training), train(training, new(training, path=path))
    assert relative_error(trained.step_loss, exact.step_loss) <= training.bound
    np.testing.assert_allclose(trained.step_loss, exact.step_loss, rtol=20 * training.bound)
    for name, parameter in exact.parameters.items():
        assert relative_error(trained.parameters[name], parameter) <= training.bound, name


@every_path
@pytest.mark.parametrize("training", [t for t in TRAININGS if t.bfloat16_compute], ids=str)
def test_bfloat16_is_rounded_where_the_numpy_twin_rounds(training, path, new):
    data = data_of(training)
    twin = steps_of(ReferenceEngine(engine_config(training)), training, data)
    for step, expected in zip(steps_of(new(training, path=path), training, data), twin, strict=True):
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
def test_hits_are_those_of_the_cpu(b2, loaded):
    training = replace(SMALL, shape=Shape(8, 9, 20, len(b2)))
    x, y, parameters = data_of(training)
    parameters["w2"][:] = 0
    parameters["b2"][:] = b2
    y[:] = np.arange(len(y)) % len(b2)
    ours, cpu = loaded(training), _core.EngineFloat32(engine_config(training))
    for each in (ours, cpu):
        each.load(tuple(parameters.values()))
    rows = (x, y, None, None, 1.0, 0.0, None)
    assert ours.evaluate(*rows)[2] == cpu.evaluate(*rows)[2]


def test_evaluation_of_several_batches(engine):
    run = Run(sizes=(2, 3, 2), rows=4500, weighted=("rows",))
    data = make_data(run)
    ours, reference = engine("float64", run.config()), ReferenceEngine(run.config())
    for each in (ours, reference):
        each.load(data.parameters)
    for order in (None, permutation(run.rows, 0, 0)[:3000]):
        rows = (data.x, data.y, data.row_weight, None, 1.0, 0.0, order)
        np.testing.assert_allclose(ours.evaluate(*rows), reference.evaluate(*rows), rtol=1e-12)


# The same bits


def run_in_pieces(fresh, training, cuts):
    """One epoch, a call of ``run`` for each piece between the cuts."""
    x, y, _ = data_of(training)
    order, losses = permutation(training.rows, 0, 0), np.full(training.batches, np.nan)
    for first, stop in itertools.pairwise((0, *cuts, training.batches)):
        run_steps(fresh, x, y, losses[first:stop], training.shape.batch, lr=training.lr, order=order, first_step=first)
    return Trained(losses, stored(fresh, training))


@every_path
@pytest.mark.parametrize("cuts", [(), (1,), (9, 20), tuple(range(1, LONG.batches))], ids=str)
@pytest.mark.parametrize("bfloat16_compute", [False, True])
def test_however_a_run_is_cut_it_gives_the_same_bits(cuts, bfloat16_compute, path, loaded):
    training, options = replace(LONG, bfloat16_compute=bfloat16_compute), {"dropout": 0.3, "path": path}
    whole = run_in_pieces(loaded(training, **options), training, ())
    assert np.isfinite(whole.step_loss).all()
    assert_same_bits(run_in_pieces(loaded(training, **options), training, cuts), whole)


@every_path
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frozen", [(), ("w1", "b2")])
def test_another_engine_goes_on_from_the_states_and_the_step(optimizer, frozen, path, engine):
    options = {**OPTIMIZER_OPTIONS[optimizer][-1], "dropout": 0.3, "path": path}
    run = Run(optimizer=optimizer, options=options, frozen=frozen)
    data = make_data(run, np.float32)
    arguments = (data.x, data.y, None, None, 1.0, 0.0, None, run.batch_size, 0, run.lr(5), np.empty(5), True, None)
    first, whole, second = (engine("float32", run.config()) for _ in range(3))
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
def test_a_run_gives_the_same_bits_again_in_the_same_engine(path, loaded):
    fresh = loaded(LONG, path=path)
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


def test_no_order_is_the_order_of_the_rows(loaded):
    x, y, _ = data_of(SMALL)
    runs = []
    for order in (None, np.arange(SMALL.rows)):
        fresh, losses = loaded(SMALL), np.empty(SMALL.batches)
        run_steps(fresh, x, y, losses, SMALL.shape.batch, lr=SMALL.lr, order=order)
        runs.append(Trained(losses, stored(fresh, SMALL)))
    assert_same_bits(*runs)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_rows_may_lie_apart_or_coincide(loss, new, engine):
    training = replace(SMALL, loss=loss, rows=8)
    x, y, parameters = data_of(training)
    x[:], y[:] = x[0], y[0]
    runs = []
    for shared in (False, True):
        fresh, losses = new(training), np.empty(1)
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
def test_engines_of_several_threads_do_not_disturb_each_other(path, loaded):
    trainings = [replace(LONG, loss="mse", optimizer=name, momentum=0.0) for name in ("sgd", "adam", "adagrad")]
    alone = [run_in_pieces(loaded(t, path=path), t, (3,)) for t in trainings]
    engines, together = [loaded(t, path=path) for t in trainings], {}

    def run(index):
        together[index] = run_in_pieces(engines[index], trainings[index], (3,))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(trainings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index, expected in enumerate(alone):
        assert_same_bits(together[index], expected)


# Ends


@every_path
@pytest.mark.parametrize("bad", [0, 2, 12])
def test_a_loss_that_is_not_finite_stops_before_its_update_or_not(bad, path, engine):
    run = Run("mse", rows=8 * 15, options={"l2": 0.1})
    data = make_data(run)
    data.y[8 * bad + 1] = np.nan
    stopped, finite, going_on = (engine("float64", run.config(path=path)) for _ in range(3))
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


def test_a_gradient_that_is_not_a_number_is_one_of_no_length_either(engine):
    run = Run("mse", options={"clip_norm": 1.0}, rows=8)
    data = make_data(run)
    data.y[3, 1] = np.nan
    trained = engine("float64", run.config())
    trained.load(data.parameters)
    rows = (data.x, data.y, None, None, 1.0, 0.0, None, 8, 0)
    trained.run(*rows, np.full(1, 0.1), np.empty(1), False, None)
    for name, array in read_arrays(trained.store, data.parameters, "").items():
        assert np.isnan(array).all(), name


@every_path
def test_what_on_progress_raises_ends_the_run_after_a_whole_step(path, loaded):
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

    fresh, losses = loaded(training, path=path), np.empty(steps)
    with pytest.raises(LookupError, match="enough"):
        run(fresh, losses, on_progress)
    assert len(calls) == 1
    assert calls[0][0] <= fresh.steps < steps
    taken = min(fresh.steps, 50)
    again, expected = loaded(training, path=path), np.empty(taken)
    run(again, expected)
    np.testing.assert_array_equal(losses[:taken], expected)


def test_on_progress_counts_the_steps(loaded):
    calls, training = [], replace(SMALL, rows=8)
    fresh, losses = loaded(training), np.empty(600)
    order = np.arange(8 * len(losses)) % 8
    run_steps(fresh, *data_of(training)[:2], losses, 8, lr=SMALL.lr, order=order, on_progress=calls.append)
    assert fresh.steps == 600
    assert calls == sorted(calls)
    assert all(0 <= steps <= 600 for steps in calls)


def test_no_steps_change_nothing(loaded):
    fresh = loaded(SMALL)
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


def test_the_path_taken_is_told(loaded):
    fresh = loaded(SMALL, path="graph")
    run_steps(fresh, *data_of(SMALL)[:2], np.empty(3), 8, lr=0.1)
    assert fresh.path == "graph"


# Refusals


def test_refusals(new, loaded):
    x, y, parameters = data_of(SMALL)
    fresh = loaded(SMALL)
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
        loaded(replace(SMALL, loss="mse")).run(x, y, *rest)
    with pytest.raises(ValueError, match="path must be 'auto' or 'graph'; got 'cluster'"):
        new(SMALL, path="cluster")
    assert fresh.steps == 0
    assert_same_bits(*(Trained(np.empty(0), p) for p in (stored(fresh, SMALL), parameters)))


def test_a_device_that_is_not_there_is_refused(new):
    with pytest.raises(RuntimeError, match="twolayer could not make CUDA device 99 the current one"):
        new(SMALL, device=99)


def test_arrays_on_the_host_are_refused(gpu, loaded):
    parameters = data_of(SMALL).parameters
    fresh = loaded(SMALL)
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
