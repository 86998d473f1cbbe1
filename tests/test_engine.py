"""The training engine against the float64 reference, on every instruction set; its bits, state and refusals."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import select
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    BFLOAT16_ROUNDING_BOUND,
    PARAMETERS,
    TRAINED_DTYPES,
    TRAINING_BOUNDS,
    TRAININGS,
    Shape,
    Trained,
    Training,
    name_of,
    relative_error,
    steps_of_torch,
    train_exactly,
    training_data,
)
from hypothesis import given
from hypothesis import strategies as st
from native_runs import engine_config, make_engine, results_on, run_steps, steps_of, stored, train

from twolayer import _core
from twolayer.reference import numpy as reference
from twolayer.reference.engine import ReferenceEngine
from twolayer.registry import ACTIVATIONS, LOSSES, OPTIMIZERS

every_training = pytest.mark.parametrize("training", TRAININGS, ids=str)
every_isa = pytest.mark.parametrize("isa", _core.isas_available())
every_dtype = pytest.mark.parametrize("dtype", TRAINED_DTYPES, ids=name_of)

SMALL = Training("cross_entropy", "tanh", torch.float32, momentum=0.9)
# Ten blocks of hidden units, and work for eight threads in every step but the short last one.
WIDE = Training("cross_entropy", "gelu", torch.float32, Shape(64, 300, 160, 20), rows=200, momentum=0.9)
DEEP = replace(WIDE, loss="mse", activation="sigmoid", shape=Shape(300, 100, 160, 20), rows=620)
# So many rows that all threads share all hidden units.
LONG = replace(DEEP, shape=Shape(300, 100, 30, 20))
# A few units more than whole panels, which threads share by rows and by inputs, in short and in long batches.
OVER = replace(WIDE, shape=Shape(64, 300, 149, 20))
LONG_OVER = replace(DEEP, shape=Shape(300, 100, 36, 20))
WIDE_TRAININGS = [WIDE, DEEP, LONG, OVER, LONG_OVER, replace(WIDE, dtype=torch.float64)]
wide_trainings = pytest.mark.parametrize("training", WIDE_TRAININGS, ids=str)


def assert_near_the_truth(trained, training):
    exact = train_exactly(training)
    bound = training.bound
    assert relative_error(trained.step_loss, exact.step_loss) <= bound
    np.testing.assert_allclose(trained.step_loss, exact.step_loss, rtol=20 * bound)  # no step is lost in the norm
    for name, parameter in exact.parameters.items():
        assert relative_error(trained.parameters[name], parameter) <= bound, name


def assert_same_bits(trained, other):
    np.testing.assert_array_equal(trained.step_loss, other.step_loss)
    assert trained.parameters.keys() == other.parameters.keys()
    for name, parameter in trained.parameters.items():
        np.testing.assert_array_equal(parameter, other.parameters[name], err_msg=name)


def loaded_engine(training, **options):
    engine = make_engine(training, **options)
    engine.load(tuple(training_data(training).parameters.values()))
    return engine


# Values


@every_training
def test_table(training):
    assert_near_the_truth(train(training), training)


@pytest.fixture
def one_torch_thread():
    """OpenMP's threads wait for each other at every op, which takes long while another process has one of the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_steps_near(steps, expected_steps, bound):
    for step, expected in zip(steps, expected_steps, strict=True):
        assert step.loss == pytest.approx(expected.loss, rel=20 * bound)
        for name, parameter in expected.parameters.items():
            assert relative_error(step.parameters[name], parameter) <= bound, name


@every_training
def test_every_step_is_that_of_the_numpy_twin(training):
    data = training_data(training)
    twins = data if training.bfloat16_compute else data.astype(np.float64)
    twin = steps_of(ReferenceEngine(engine_config(training)), training, twins)
    bound = BFLOAT16_ROUNDING_BOUND if training.bfloat16_compute else training.bound
    assert_steps_near(steps_of(make_engine(training), training, data), twin, bound)


@every_training
def test_every_step_is_that_of_autograd_and_torch_optim(training, one_torch_thread):
    steps = steps_of(make_engine(training), training, training_data(training))
    assert_steps_near(steps, steps_of_torch(training), training.bound)


def test_the_table_has_every_pair():
    names = {"loss": LOSSES, "optimizer": OPTIMIZERS, "activation": ACTIVATIONS}
    names["precision"] = {training.precision for training in TRAININGS}
    assert names["precision"] == {"float32", "float64", "bfloat16"}
    for one, other in itertools.combinations(names, 2):
        pairs = {(getattr(training, one), getattr(training, other)) for training in TRAININGS}
        assert pairs == set(itertools.product(names[one], names[other]))


@every_isa
@every_training
def test_isa(training, isa):
    def on(isa):
        results = results_on(isa)
        names = [name for name in PARAMETERS if name not in training.without]
        return Trained(results[f"{training}: step_loss"], {name: results[f"{training}: {name}"] for name in names})

    assert_near_the_truth(on(isa), training)
    bound = BFLOAT16_ROUNDING_BOUND if training.bfloat16_compute else training.bound
    for name, parameter in on(isa).parameters.items():
        assert relative_error(parameter, on("portable").parameters[name]) <= bound, name


def test_another_process_gives_the_same_bits():
    trained, results = train(TRAININGS[0]), results_on(_core.isa())
    for name, parameter in trained.parameters.items():
        np.testing.assert_array_equal(parameter, results[f"{TRAININGS[0]}: {name}"])


@every_dtype
def test_logits_too_large_for_exp(dtype):
    training = Training("cross_entropy", "identity", dtype, epochs=1)
    x, y, parameters = training_data(training)
    parameters["w2"] *= 1e5
    engine = make_engine(training)
    engine.load(tuple(parameters.values()))
    losses = np.empty(training.batches)
    run_steps(engine, x, y, losses, training.shape.batch, lr=0.0)
    z, _, _ = reference.forward(*(a.astype(np.float64) for a in (x, *parameters.values())), "identity")
    expected = [LOSSES["cross_entropy"].value(z[i : i + 8], y[i : i + 8]) for i in range(0, 37, 8)]
    assert min(expected) > 1000
    np.testing.assert_allclose(losses, expected, rtol=20 * TRAINING_BOUNDS[dtype])


@every_dtype
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "w1", "b1", "w2", "b2"])
def test_non_finite_numbers_travel_as_in_dense_arithmetic(name, poison, dtype):
    training = Training("mse", "tanh", dtype, Shape(37, 9, 20, 5), epochs=1)
    x, y, parameters = training_data(training)
    ({"x": x} | parameters)[name].flat[3] = poison
    engine = make_engine(training)
    engine.load(tuple(parameters.values()))
    run_steps(engine, x, y, np.empty(1), 37, lr=training.lr)
    with np.errstate(invalid="ignore"):
        reference.train(
            parameters,
            x,
            y,
            activation="tanh",
            loss="mse",
            batch_size=37,
            epochs=1,
            shuffle=False,
            lr=training.lr,
            **training.update_rule,
        )
    for parameter, array in stored(engine, training).items():
        np.testing.assert_array_equal(np.isfinite(array), np.isfinite(parameters[parameter]), err_msg=parameter)


# The same bits, however the work is divided


@wide_trainings
def test_every_number_of_threads_gives_the_same_bits(training):
    alone = train(training)
    assert_near_the_truth(alone, training)
    for threads in (2, 3, 8, 8):  # eight twice: which thread takes which chunk is another story each time
        assert_same_bits(train(training, threads=threads), alone)


@every_training
def test_every_number_of_threads_and_every_path_gives_the_same_bits(training):
    # Large enough that eight threads are worth waking, and not a whole number of blocks.
    wide = replace(training, shape=Shape(64, 190, 125, 11), rows=150, epochs=1)
    alone = train(wide, skip_zeros="never")
    for threads, skip_zeros in itertools.product((1, 2, 3, 8), ("always", "never")):
        assert_same_bits(train(wide, threads=threads, skip_zeros=skip_zeros), alone)


@every_dtype
@pytest.mark.parametrize("training", [OVER, LONG_OVER], ids=str)
def test_so_does_every_path_with_a_few_units_more_than_whole_panels(training, dtype):
    training = replace(training, dtype=dtype, epochs=1)
    alone = train(training, skip_zeros="never")
    for threads, skip_zeros in itertools.product((1, 2, 3, 8), ("always", "never")):
        assert_same_bits(train(training, threads=threads, skip_zeros=skip_zeros), alone)


@pytest.mark.parametrize("cuts", [(64,), (128,), (64, 128, 192)])
@wide_trainings
def test_a_run_in_pieces_gives_the_same_bits(training, cuts):
    training = replace(training, shape=training.shape._replace(batch=64), epochs=1)
    x, y, _ = training_data(training)
    order = reference.permutation(training.rows, 0, 0)
    engine, losses = loaded_engine(training, threads=2), []
    for start, stop in itertools.pairwise((0, *cuts, training.rows)):
        rows = order[start:stop]
        piece = np.empty(-(-len(rows) // 64))
        run_steps(engine, x[rows], y[rows], piece, 64, lr=training.lr)
        losses.extend(piece)
    assert_same_bits(Trained(np.array(losses), stored(engine, training)), train(training, threads=2))


@pytest.mark.parametrize("cut", [1, 3])
def test_an_epoch_may_be_taken_up_at_any_step(cut):
    training = replace(WIDE, epochs=1)
    x, y, _ = training_data(training)
    order, losses = reference.permutation(training.rows, 0, 0), np.empty(4)
    engine = loaded_engine(training)
    for first, piece in ((0, losses[:cut]), (cut, losses[cut:])):
        run_steps(engine, x, y, piece, 64, lr=training.lr, order=order, first_step=first)
    assert_same_bits(Trained(losses, stored(engine, training)), train(training))


def test_batch_sizes_may_change_between_runs():
    x, y, _ = training_data(WIDE)
    engine, momentum = loaded_engine(WIDE), None
    for batch in (8, 200, 3, 64):
        losses, before = np.empty(-(-200 // batch)), stored(engine, WIDE)
        fresh = make_engine(WIDE)
        fresh.load(tuple(before.values()))
        if momentum is not None:
            fresh.load_state(0, momentum)
        fresh.steps = engine.steps
        run_steps(engine, x, y, losses, batch, lr=WIDE.lr)
        expected = np.empty_like(losses)
        run_steps(fresh, x, y, expected, batch, lr=WIDE.lr)
        assert_same_bits(Trained(losses, stored(engine, WIDE)), Trained(expected, stored(fresh, WIDE)))
        momentum = tuple(np.empty_like(p) for p in before.values())
        engine.store_state(0, momentum)


def test_no_order_is_the_order_of_the_rows():
    x, y, _ = training_data(SMALL)
    losses = np.empty((2, SMALL.batches))
    engines = [loaded_engine(SMALL) for _ in losses]
    for engine, order, row in zip(engines, (None, np.arange(SMALL.rows)), losses, strict=True):
        run_steps(engine, x, y, row, SMALL.shape.batch, lr=SMALL.lr, order=order)
    assert_same_bits(*(Trained(row, stored(engine, SMALL)) for row, engine in zip(losses, engines, strict=True)))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_rows_may_lie_apart_or_coincide(loss):
    training = replace(SMALL, loss=loss, rows=8)
    x, y, _ = training_data(training)
    x[:] = x[0]
    y[:] = y[0]
    apart = np.full((8, 2, 9), np.nan, np.float32)
    apart[:, 1] = x
    same_target = y if loss == "cross_entropy" else np.broadcast_to(y[0], y.shape)
    runs = []
    for inputs, targets in ((x, y), (apart[:, 1], y), (np.broadcast_to(x[0], x.shape), same_target)):
        engine, losses = loaded_engine(training), np.empty(1)
        run_steps(engine, inputs, targets, losses, 8, lr=training.lr)
        runs.append(Trained(losses, stored(engine, training)))
    assert_same_bits(runs[1], runs[0])
    assert_same_bits(runs[2], runs[0])


@given(n=st.integers(0, 200), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_permutation_equals_the_reference(n, seed, epoch):
    order = np.empty(n, np.int64)
    _core.permutation(order, seed, epoch)
    np.testing.assert_array_equal(order, reference.permutation(n, seed, epoch))


# State


@every_dtype
def test_state_goes_to_another_engine(dtype):
    training = replace(SMALL, dtype=dtype)
    x, y, parameters = training_data(training)

    def run(engine, epoch):
        order, losses = reference.permutation(training.rows, 0, epoch), np.empty(training.batches)
        run_steps(engine, x, y, losses, training.shape.batch, lr=training.lr, order=order)
        return losses

    first = loaded_engine(training)
    first_losses = run(first, 0)
    second = make_engine(training)
    second.load(tuple(stored(first, training).values()))
    momentum = tuple(np.full_like(p, np.nan) for p in parameters.values())
    first.store_state(0, momentum)
    second.load_state(0, momentum)
    second.steps = first.steps
    losses = np.concatenate([first_losses, run(second, 1)])
    assert_same_bits(Trained(losses, stored(second, training)), train(training))


def test_store_gives_back_what_load_took():
    engine = loaded_engine(WIDE)
    assert_same_bits(*(Trained(np.empty(0), p) for p in (stored(engine, WIDE), training_data(WIDE).parameters)))


def test_only_momentum_keeps_state():
    assert make_engine(SMALL).keeps_state(0)
    engine = make_engine(replace(SMALL, momentum=0.0))
    assert not engine.keeps_state(0)
    parameters = tuple(training_data(SMALL).parameters.values())
    with pytest.raises(ValueError, match="this optimiser keeps no state 0"):
        engine.store_state(0, parameters)
    with pytest.raises(ValueError, match="this optimiser keeps no state 0"):
        engine.load_state(0, parameters)
    for state in (-1, 3):
        with pytest.raises(ValueError, match=f"state out of range: {state}"):
            engine.keeps_state(state)


# Processes and threads


def in_forked_child(function, timeout=60):
    """What ``function`` returns in a forked child; a child that hangs is killed, and the test fails."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        try:
            with os.fdopen(sending, "wb") as pipe:
                pickle.dump(function(), pipe)
        finally:  # never back into the tests; the parent then finds the pipe empty
            os._exit(0)
    os.close(sending)
    try:
        with os.fdopen(receiving, "rb") as pipe:
            ready, _, _ = select.select([pipe], [], [], timeout)
            assert ready, "the forked child hangs"
            return pickle.load(pipe)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_training_before_in_and_after_a_fork():
    before = train(WIDE, threads=2)
    in_child = in_forked_child(lambda: train(WIDE, threads=2))
    after = train(WIDE, threads=2)
    assert_same_bits(in_child, before)
    assert_same_bits(after, before)


def test_two_python_threads_train_at_once():
    trainings = (WIDE, replace(DEEP, epochs=4))
    alone = [train(training) for training in trainings]
    for _ in range(5):
        together = {}

        def run(index, together=together):
            together[index] = train(trainings[index], threads=2)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for index in range(2):
            assert_same_bits(together[index], alone[index])


def long_run(engine, training, losses, on_progress=None):
    """Run a step for each of the losses, on one row that stands for all."""
    x, y, _ = training_data(training)
    rows = len(losses) * training.shape.batch
    x, y = np.broadcast_to(x[0], (rows, x.shape[1])), np.full(rows, y[0])
    run_steps(engine, x, y, losses, training.shape.batch, lr=training.lr, on_progress=on_progress)


@pytest.mark.parametrize("threads", [1, 2])
def test_python_runs_on_meanwhile(threads):
    engine = loaded_engine(WIDE, threads=threads)
    thread = threading.Thread(target=long_run, args=(engine, WIDE, np.empty(1000)))
    thread.start()
    naps = 0
    while thread.is_alive():
        time.sleep(0.001)
        naps += 1
    assert engine.steps == 1000
    assert naps > 5


@pytest.mark.parametrize("threads", [1, 2])
def test_what_on_progress_raises_ends_the_run_after_a_whole_step(threads):
    calls = []

    def on_progress(steps_done):
        calls.append(steps_done)
        time.sleep(0.03)  # until the next call would be due, which must not come
        raise LookupError("enough")

    engine, losses = loaded_engine(WIDE, threads=threads), np.empty(20_000)
    with pytest.raises(LookupError, match="enough"):
        long_run(engine, WIDE, losses, on_progress)
    assert len(calls) == 1
    assert calls[0] <= engine.steps < 20_000
    again, expected = loaded_engine(WIDE), np.empty(engine.steps)
    long_run(again, WIDE, expected)
    assert_same_bits(Trained(losses[: engine.steps], stored(engine, WIDE)), Trained(expected, stored(again, WIDE)))


def test_on_progress_counts_the_steps():
    calls = []
    engine = loaded_engine(WIDE)
    long_run(engine, WIDE, np.empty(1000), calls.append)
    assert engine.steps == 1000
    assert calls
    assert calls == sorted(calls)
    assert 0 <= calls[0] <= calls[-1] <= 1000


# What is refused, before anything is changed


def float32(*shape):
    return np.zeros(shape, np.float32)


def run_arguments(loss="cross_entropy"):
    x, y, _ = training_data(replace(SMALL, loss=loss))
    return {
        "x": x,
        "y": y,
        "row_weight": None,
        "class_weight": None,
        "scale": 1.0,
        "shift": 0.0,
        "order": np.arange(37),
        "batch_size": 8,
        "first_step": 0,
        "lr": np.full(5, SMALL.lr),
        "losses": np.empty(5),
        "stop_if_not_finite": True,
        "on_progress": None,
    }


def read_only(array):
    array.flags.writeable = False
    return array


ONES, COLUMNS, OFFSETS = np.ones(37, np.float32), np.arange(37) % 9, np.arange(38)


def csr(values=ONES, columns=COLUMNS, offsets=OFFSETS):
    return values, columns, offsets


TOO_MANY_STEPS = "lr must have no more entries than there are batches from first_step on"
RUN_REFUSALS = [
    ("x", float32(37, 8), ValueError, r"x must have shape \(-1, 9\); got \(37, 8\)"),
    ("x", float32(37), ValueError, r"x must have shape \(-1, 9\); got \(37,\)"),
    ("x", np.zeros((37, 9), np.int16), TypeError, "x must be float32, float64, bfloat16 or uint8; got another dtype"),
    ("x", float32(37, 18)[:, ::2], ValueError, "x must have contiguous rows"),
    ("x", [[0.0] * 9] * 37, TypeError, "x must be a torch.Tensor or a NumPy array; got list"),
    ("x", csr()[:2], ValueError, r"a sparse x must be a tuple \(values, columns, offsets\)"),
    ("x", csr(np.ones(37)), TypeError, "x.data must be float32; got float64"),
    ("x", csr(columns=np.arange(37, dtype=np.int16)), TypeError, "x.indices must be int32; got another dtype"),
    ("x", csr(columns=np.arange(36)), ValueError, r"x.indices must have shape \(37,\); got \(36,\)"),
    ("x", csr(columns=np.arange(37) % 10), ValueError, r"x.indices must hold columns in \[0, 9\); got 9"),
    ("x", csr(columns=-(np.arange(37) % 2)), ValueError, r"x.indices must hold columns in \[0, 9\); got -1"),
    ("x", csr(offsets=np.arange(38) + 1), ValueError, "x.indptr must run from 0 to the number of values"),
    ("x", csr(offsets=np.append(np.arange(37), 36)), ValueError, "x.indptr must run from 0 to the number of values"),
    ("x", csr(offsets=np.r_[0, 5, np.arange(2, 38)]), ValueError, "x.indptr must not descend"),
    ("x", csr(offsets=np.empty(0, np.int64)), ValueError, "x.indptr must run from 0 to the number of values"),
    ("y", np.zeros(36, np.int64), ValueError, r"y must have shape \(37,\); got \(36,\)"),
    ("y", np.zeros(37, np.int32), TypeError, "y must be float32; got int32"),
    ("y", np.zeros((37, 5)), TypeError, "y must be float32; got float64"),
    ("y", float32(37), ValueError, r"y must have shape \(37, 5\); got \(37,\)"),
    ("y", np.arange(37) % 6, ValueError, r"y must hold classes in \[0, 5\); row 5 holds 5"),
    ("y", -(np.arange(37) % 2), ValueError, r"y must hold classes in \[0, 5\); row 1 holds -1"),
    ("row_weight", np.ones(37), TypeError, "sample_weight must be float32; got float64"),
    ("row_weight", float32(36), ValueError, r"sample_weight must have shape \(37,\); got \(36,\)"),
    ("class_weight", np.ones(5), TypeError, "class_weight must be float32; got float64"),
    ("class_weight", float32(4), ValueError, r"class_weight must have shape \(5,\); got \(4,\)"),
    ("order", np.arange(37) + 1, ValueError, r"order must hold rows in \[0, 37\); entry 36 is 37"),
    ("order", np.arange(37) - 1, ValueError, r"order must hold rows in \[0, 37\); entry 0 is -1"),
    ("order", np.arange(37, dtype=np.int32), TypeError, "order must be int64; got int32"),
    ("order", np.arange(32), ValueError, TOO_MANY_STEPS),
    ("first_step", 1, ValueError, TOO_MANY_STEPS),
    ("first_step", -1, ValueError, TOO_MANY_STEPS),
    ("first_step", 2**62, ValueError, TOO_MANY_STEPS),
    ("lr", float32(5), TypeError, "lr must be float64; got float32"),
    ("losses", np.empty(6), ValueError, r"losses must have shape \(5,\); got \(6,\)"),
    ("losses", float32(5), TypeError, "losses must be float64; got float32"),
    ("losses", read_only(np.empty(5)), ValueError, "losses must be writable; it is read-only"),
    ("batch_size", 0, ValueError, "batch_size must be at least 1; got 0"),
    ("batch_size", 2**62, ValueError, TOO_MANY_STEPS),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), RUN_REFUSALS)
def test_run_refuses(name, value, error, message):
    engine = loaded_engine(SMALL)
    before = stored(engine, SMALL)
    with pytest.raises(error, match=message):
        engine.run(**run_arguments() | {name: value})
    assert engine.steps == 0
    assert_same_bits(Trained(np.empty(0), stored(engine, SMALL)), Trained(np.empty(0), before))


def test_run_refuses_more_steps_than_there_are_batches():
    engine = loaded_engine(SMALL)
    with pytest.raises(ValueError, match=TOO_MANY_STEPS):
        engine.run(**run_arguments() | {"lr": np.zeros(6), "losses": np.empty(6)})
    assert engine.steps == 0


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (np.zeros(37, np.int64), TypeError, "y must hold values for this loss; got int64 classes"),
        (float32(37, 4), ValueError, r"y must have shape \(37, 5\); got \(37, 4\)"),
        (float32(37, 10)[:, ::2], ValueError, "y must have contiguous rows"),
    ],
)
def test_run_refuses_values(y, error, message):
    engine = loaded_engine(replace(SMALL, loss="mse"))
    with pytest.raises(error, match=message):
        engine.run(**run_arguments("mse") | {"y": y})


def test_a_refused_run_takes_no_step():
    engine = loaded_engine(SMALL)
    assert not engine.run(**run_arguments())
    with pytest.raises(ValueError, match="batch_size"):
        engine.run(**run_arguments() | {"batch_size": 0})
    assert engine.steps == 5


@pytest.mark.parametrize("order", [np.empty(0, np.int64), np.array([37])])
def test_evaluate_refuses(order):
    x, y, _ = training_data(SMALL)
    message = "x must have at least one row; got none" if len(order) == 0 else r"order must hold rows in \[0, 37\)"
    with pytest.raises(ValueError, match=message):
        loaded_engine(SMALL).evaluate(x, y, None, None, 1.0, 0.0, order)


PARAMETER_REFUSALS = [
    (0, float32(9, 20), ValueError, r"w1 must have shape \(20, 9\); got \(9, 20\)"),
    (1, float32(20, 1), ValueError, r"b1 must have shape \(20,\); got \(20, 1\)"),
    (2, np.zeros((5, 20)), TypeError, "w2 must be float32; got float64"),
    (3, float32(10)[::2], ValueError, "b2 must be contiguous"),
]


@pytest.mark.parametrize(("index", "value", "error", "message"), PARAMETER_REFUSALS)
@pytest.mark.parametrize("method", ["load", "store", "load_state", "store_state"])
def test_parameters_are_refused(method, index, value, error, message):
    engine = loaded_engine(SMALL)
    arrays = [np.full_like(p, 7) for p in training_data(SMALL).parameters.values()]
    arrays[index] = value
    state = (0,) if "state" in method else ()
    with pytest.raises(error, match=message):
        getattr(engine, method)(*state, tuple(arrays))
    assert_same_bits(*(Trained(np.empty(0), p) for p in (stored(engine, SMALL), training_data(SMALL).parameters)))
    assert all(np.all(array == 7) for i, array in enumerate(arrays) if i != index)


@pytest.mark.parametrize(("index", "name"), list(enumerate(PARAMETERS)))
def test_a_missing_parameter_is_not_loaded_and_not_stored(index, name):
    engine = loaded_engine(SMALL)
    before = training_data(SMALL).parameters
    arrays = [np.full_like(p, 7) for p in before.values()]
    arrays[index] = None
    for load in (engine.load, functools.partial(engine.load_state, 0)):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load(tuple(arrays))
    assert_same_bits(Trained(np.empty(0), stored(engine, SMALL)), Trained(np.empty(0), before))
    engine.store(tuple(arrays))
    for other, array in zip(PARAMETERS, arrays, strict=True):
        assert array is None if other == name else np.array_equal(array, before[other])


def test_a_bias_too_many_is_refused():
    engine = make_engine(replace(SMALL, without=("b1",)))
    with pytest.raises(ValueError, match="b1 must be None: the net has no such bias"):
        engine.load(tuple(training_data(SMALL).parameters.values()))


def test_a_read_only_parameter_is_not_stored_to():
    arrays = [read_only(p) for p in training_data(SMALL).parameters.values()]
    with pytest.raises(ValueError, match="w1 must be writable; it is read-only"):
        loaded_engine(SMALL).store(tuple(arrays))


@pytest.mark.parametrize("name", ["in_features", "hidden_features", "out_features", "threads"])
def test_engine_refuses_sizes_below_1(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        make_engine(SMALL, **{name: 0})


@pytest.mark.parametrize(
    ("name", "known"), [("activation", ACTIVATIONS), ("loss", LOSSES), ("optimizer", OPTIMIZERS)], ids=lambda name: name
)
@pytest.mark.parametrize("beyond", [True, False])
def test_engine_refuses_unknown_ids(name, known, beyond):
    id = len(known) if beyond else -1
    with pytest.raises(ValueError, match=rf"{name} must be an id in \[0, {len(known)}\); got {id}"):
        make_engine(SMALL, **{name: id})


def test_no_steps_change_nothing():
    engine = loaded_engine(SMALL)
    assert not engine.run(**run_arguments() | {"lr": np.empty(0), "losses": np.empty(0)})
    assert engine.steps == 0
    assert_same_bits(*(Trained(np.empty(0), p) for p in (stored(engine, SMALL), training_data(SMALL).parameters)))
