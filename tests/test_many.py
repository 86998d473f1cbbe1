"""``fit_many``: what separate calls of ``fit`` give, to the bit, whatever happens on the way."""

from __future__ import annotations

import copy
import io
import os
import signal
import threading
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from test_trainer import Screen, take_steps
from torch import nn
from training_runs import (
    assert_changed,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
    weights,
)

from twolayer import (
    EarlyStopping,
    NonFiniteLossError,
    NumpyNet,
    TrainingInterrupted,
    _native,
    fit,
    fit_many,
    many,
)
from twolayer.training import session
from twolayer.training.schedules import CosineDecay, StepDecay

X, Y = make_data(dtype=torch.float32, rows=200)
HELD_OUT = make_data(dtype=torch.float32, rows=50, seed=2)
WIDE = (300, 160, 20)  # an epoch of WIDE_X is long beside the engine's 20 ms
WIDE_X, WIDE_Y = make_data(dtype=torch.float32, rows=20_000, sizes=WIDE)


def make_nets(count=5, **options):
    return [make_net(dtype=torch.float32, seed=seed, **options) for seed in range(count)]


def one_by_one(nets, x, y, **options):
    """The same training as separate calls; a list has a value for each net."""
    each = [
        {name: value[i] if isinstance(value, (list, range)) else value for name, value in options.items()}
        for i in range(len(nets))
    ]
    return [fit(net, x, y, **own) for net, own in zip(nets, each, strict=True)]


def assert_same_histories(histories, expected):
    for one, other in zip(histories, expected, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}
        assert one.seconds > 0 or not one.steps


OPTIONS = {
    "plain": {},
    "a sweep": {"lr": [0.001, 0.01, 0.1, 0.3, 1.0], "seed": range(5)},
    "all different": {
        "optimizer": ["sgd", "adam", "adamw", "rmsprop", "adagrad"],
        "lr": [0.1, 0.01, 0.01, 0.001, 0.05],
        "momentum": [0.9, 0.0, 0.0, 0.5, 0.0],
        "weight_decay": [0.0, 0.0, 0.1, 0.0, 0.0],
        "betas": [(0.9, 0.999), (0.8, 0.9), (0.9, 0.999), (0.9, 0.999), (0.9, 0.999)],
        "l2": [0.1, 0.0, 0.0, 0.2, 0.0],
        "dropout": [0.0, 0.5, 0.2, 0.0, 0.1],
        "batch_size": [8, 16, 64, 200, 7],
        "epochs": [1, 2, 3, 4, 0],
        "lr_schedule": [None, StepDecay(2), CosineDecay(3, per_step=True), lambda epoch: 0.01 / (epoch + 1), None],
        "seed": [3, 1, 4, 1, 5],
    },
    "validation": {"validation": HELD_OUT, "seed": range(5)},
    "a fraction": {"validation": 0.2, "seed": range(5)},
    "early stopping": {
        "validation": HELD_OUT,
        "lr": [0.01, 0.3, 1.0, 3.0, 5.0],
        "epochs": 30,
        "early_stopping": [EarlyStopping(2), EarlyStopping(1, restore_best=False), None, EarlyStopping(3), None],
    },
    "weights of rows": {"sample_weight": [None, *np.random.default_rng(0).random((4, 200))]},
    "weights of classes": {"class_weight": [np.full(5, i + 1.0) for i in range(5)]},
}


@pytest.mark.parametrize("threads", [1, 2, 3, 12, None])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gives_what_separate_fits_give(options, threads):
    options = {"epochs": 3, "batch_size": 8, **options}
    nets, expected = make_nets(), make_nets()
    histories = fit_many(nets, X, Y, threads=threads, **options)
    assert_same_histories(histories, one_by_one(expected, X, Y, **options))
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)


def test_nets_may_be_of_every_kind():
    def kinds():
        tied = make_net(dtype=torch.float32)
        tied[0].weight.requires_grad_(False)
        double = make_net(activation="gelu", sizes=(9, 33, 5), bias=False)
        return [NumpyNet(9, 20, 5), double, make_net(dtype=torch.float32).to_sequential(), tied, NumpyNet(9, 7, 5)]

    nets, expected = kinds(), kinds()
    assert_same_histories(fit_many(tuple(nets), X, Y, epochs=2), one_by_one(expected, X, Y, epochs=2))
    for net, other in zip(nets, expected, strict=True):
        mine, theirs = (
            [np.asarray(p.detach() if isinstance(p, torch.Tensor) else p) for p in values]
            for values in (
                (n.parameters().values() if isinstance(n, NumpyNet) else n.parameters()) for n in (net, other)
            )
        )
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("x", "options"),
    [
        ((X * 20).to(torch.uint8), {"input_scale": 1 / 255}),
        (X.bfloat16(), {}),
        (X.to(torch.int32).numpy(), {}),
        (scipy.sparse.csr_matrix(X.numpy() * (X.numpy() > 0)), {}),
    ],
    ids=["uint8", "bfloat16", "integers", "csr"],
)
def test_data_may_come_in_every_form(x, options):
    nets, expected = make_nets(3), make_nets(3)
    fit_many(nn.ModuleList(nets), x, Y, epochs=2, **options)
    one_by_one(expected, x, Y, epochs=2, **options)
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)


def test_data_are_prepared_once(monkeypatch):
    prepared = []
    monkeypatch.setattr(many, "prepare_rows", lambda *a, **how: prepared.append(a) or session.prepare_rows(*a, **how))
    fit_many(make_nets(8), X.to(torch.int32), Y.to(torch.int32), validation=HELD_OUT)
    assert len(prepared) == 2  # x and y, and what they are validated on


def test_lr_may_be_an_array():
    nets, expected = make_nets(3), make_nets(3)
    rates = np.logspace(-3, -1, 3)
    fit_many(nets, X, Y, lr=rates, seed=np.arange(3))
    one_by_one(expected, X, Y, lr=list(rates), seed=range(3))
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)


def test_no_nets_need_no_training():
    assert fit_many([], X, Y) == []


def test_as_many_nets_at_a_time_as_there_are_threads():
    def run(threads, **options):
        ended = []
        nets = [make_net(dtype=torch.float32, sizes=WIDE, seed=seed) for seed in range(3)]
        callback = lambda net, epoch, _: ended.append(net)  # noqa: E731
        fit_many(nets, WIDE_X, WIDE_Y, threads=threads, epochs=2, callback=callback, **options)
        return ended

    assert run(1) == [0, 0, 1, 1, 2, 2]

    both = threading.Barrier(2, timeout=60)  # which one net alone would not pass

    def after_the_other(epoch):
        if epoch == 1:
            both.wait()
        return 0.01

    together = run(2, lr_schedule=[after_the_other, after_the_other, None])
    assert sorted(together) == [0, 0, 1, 1, 2, 2]
    assert together.index(2) > 1


def test_threads_are_shared_out_among_few_nets(monkeypatch):
    given = []
    check = many.FitRun
    monkeypatch.setattr(many, "FitRun", lambda *a, **o: given.append(o["threads"]) or check(*a, **o))
    for nets, threads in ((1, 4), (2, 5), (3, 2)):
        fit_many(make_nets(nets), X, Y, threads=threads)
    assert given == [4, 2, 2, 1, 1, 1]


# Callbacks


def test_a_callback_sees_each_net_after_each_epoch_in_the_callers_thread():
    nets, expected = make_nets(4), make_nets(4)
    seen, after = {}, {}

    def callback(net, epoch, history):
        assert threading.current_thread() is threading.main_thread()
        assert len(history.loss) == epoch + 1
        seen[net, epoch] = copy.deepcopy(nets[net])

    fit_many(nets, X, Y, lr=[0.1, 0.2, 0.3, 0.4], epochs=3, callback=callback, threads=2)
    for i, net in enumerate(expected):
        fit(net, X, Y, lr=(i + 1) / 10, epochs=3, callback=lambda e, _, i=i, n=net: after.update({(i, e): weights(n)}))
    assert seen.keys() == after.keys()
    for key, net in seen.items():
        torch.testing.assert_close(weights(net), after[key], rtol=0, atol=0)


def test_true_ends_that_nets_training_only():
    nets = make_nets(3)
    histories = fit_many(nets, X, Y, epochs=4, callback=lambda net, epoch, _: net == 1 and epoch == 1)
    assert [len(history.loss) for history in histories] == [4, 2, 4]
    assert [history.stopped_early for history in histories] == [False, True, False]


def test_what_a_callback_raises_ends_all():
    nets = [make_net(dtype=torch.float32, sizes=WIDE, seed=seed) for seed in range(4)]
    before = copy.deepcopy(nets)
    histories = {}

    def callback(net, epoch, history):
        histories[net] = history
        if net == 0 and epoch >= 1 and 1 in histories:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fit_many(nets, WIDE_X, WIDE_Y, epochs=50, threads=2, callback=callback)
    assert histories[0].steps == 313 * len(histories[0].loss)
    assert_at_step(nets[0], before[0], histories[0].steps)
    assert_at_step(nets[1], before[1], histories[1].steps)
    for net, untouched in zip(nets[2:], before[2:], strict=True):
        assert_same_bits(net, untouched)
    assert threading.active_count() == 1


def assert_at_step(net, start, steps):
    expected = copy.deepcopy(start)
    take_steps(expected, WIDE_X, WIDE_Y, steps, 64)
    assert_same_bits(net, expected)


def test_what_a_schedule_raises_ends_all():
    def schedule(epoch):
        if epoch == 1:
            raise LookupError("no rate")
        return 0.01

    with pytest.raises(LookupError, match="no rate"):
        fit_many(make_nets(3), X, Y, epochs=1000, lr_schedule=[None, schedule, None])
    assert threading.active_count() == 1


# Ctrl-C


def interrupted(nets, x, y, after, **options):
    """Press Ctrl-C so many seconds from now; return what is raised, and how long that takes."""
    pressed = []

    def press():
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, press)
    timer.start()
    with pytest.raises(TrainingInterrupted, match=r"interrupted after \d+ steps") as caught:
        fit_many(nets, x, y, **options)
    seconds = time.perf_counter() - pressed[0]
    timer.join()
    assert threading.active_count() == 1
    return caught.value, seconds


def test_ctrl_c_leaves_every_net_at_its_last_step():
    nets = [make_net(dtype=torch.float32, sizes=WIDE, seed=seed) for seed in range(4)]
    before = copy.deepcopy(nets)
    error, seconds = interrupted(nets, WIDE_X, WIDE_Y, 0.15, epochs=10_000, threads=2)
    steps = [history.steps for history in error.histories]
    assert min(steps[:2]) > 0 and steps[2:] == [0, 0]
    assert error.history is error.histories[0]
    for net, start, taken in zip(nets, before, steps, strict=True):
        assert_at_step(net, start, taken)
    assert seconds < 0.1 or os.getloadavg()[0] > 2  # a machine with more to do may take its time


@pytest.mark.parametrize("callback", [None, lambda net, epoch, history: None], ids=["alone", "callback"])
def test_ctrl_c_is_heard_between_the_shortest_of_epochs(callback):
    nets, before = make_nets(3), make_nets(3)
    error, _ = interrupted(nets, X[:8], Y[:8], 0.1, epochs=10**7, threads=2, callback=callback)
    for net, start, history in zip(nets, before, error.histories, strict=True):
        assert abs(history.steps - len(history.loss)) <= 1
        fit(start, X[:8], Y[:8], epochs=history.steps)
        assert_same_bits(net, start)


def test_ctrl_c_is_heard_in_validation():
    nets = [make_net(dtype=torch.float32, sizes=WIDE, seed=seed) for seed in range(2)]
    long = WIDE_X.repeat(20, 1), WIDE_Y.repeat(20)  # some tenths of a second, after an epoch of one step
    error, _ = interrupted(nets, WIDE_X[:64], WIDE_Y[:64], 0.1, epochs=10_000, validation=long)
    assert all(len(history.val_loss) <= len(history.loss) for history in error.histories)


def test_ctrl_c_in_a_callback():
    def callback(net, epoch, history):
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted):
        fit_many(make_nets(3), X, Y, epochs=1000, callback=callback)
    assert threading.active_count() == 1


# Losses that are not finite


def test_a_loss_that_is_not_finite_ends_that_net_only():
    nets, expected = make_nets(4), make_nets(4)
    options = {"loss": "mse_sum", "lr": [1e-4, 1e4, 1e-3, 1e5], "epochs": 5, "seed": range(4)}
    y = make_data("mse", torch.float32, rows=200)[1]
    with pytest.raises(NonFiniteLossError, match=r"of nets\[1\]; try a smaller lr") as caught:
        fit_many(nets, X, y, **options)
    assert caught.value.net == 1
    histories = caught.value.histories
    assert [len(history.loss) == 5 for history in histories] == [True, False, True, False]
    for i, net in enumerate(expected):
        own = {name: value[i] if isinstance(value, (list, range)) else value for name, value in options.items()}
        if i % 2:
            with pytest.raises(NonFiniteLossError) as alone:
                fit(net, X, y, **own)
            assert alone.value.net is None
            if i == 1:
                assert (alone.value.step, alone.value.batch) == (caught.value.step, caught.value.batch)
            assert histories[i].steps == alone.value.step
        else:
            fit(net, X, y, **own)
        assert_same_bits(nets[i], net)


# What is refused


def shared_twice():
    nets = make_nets(3)
    return [*nets, nets[1]]


def overlapping():
    nets = make_nets(3)
    nets[2][0].weight = nets[0][0].weight
    return nets


def partly_overlapping():
    memory = torch.zeros(400)
    nets = make_nets(3)
    with torch.no_grad():
        nets[0][0].weight = nn.Parameter(memory[:180].view(20, 9))
        nets[2][0].weight = nn.Parameter(memory[170:350].view(20, 9))
    nets[0][0].weight.requires_grad_(False)
    return nets


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (make_net, {}, TypeError, "nets must be a list, tuple or nn.ModuleList of nets; got TwoLayerNet"),
        (lambda: [*make_nets(2), "net"], {}, TypeError, r"nets\[2\]: net must be a TwoLayerNet or an nn.Seq"),
        (lambda: [*make_nets(2), make_net(sizes=(8, 3, 5))], {}, ValueError, r"nets\[2\]: x must have shape"),
        (shared_twice, {}, ValueError, r"nets must be different ones; nets\[1\] and nets\[3\] are the same"),
        (overlapping, {}, ValueError, r"nets must not share memory that is trained; nets\[0\]'s w1 and nets\[2\]'s"),
        (partly_overlapping, {}, ValueError, r"must not share memory that is trained; nets\[0\]'s w1 and nets\[2\]'s"),
        (make_nets, {"lr": [0.1, 0.2]}, ValueError, "lr must be one value, or one for each of the 5 nets; got 2"),
        (make_nets, {"lr": [0.1, 0.2, -1, 3, 4]}, ValueError, r"nets\[2\]: lr must be finite and at least 0; got -1"),
        (make_nets, {"seed": [0, 1, 2, 3, 0.5]}, TypeError, r"nets\[4\]: seed must be an integer; got float"),
        (make_nets, {"betas": [0.9, 0.9]}, ValueError, "betas must be one value, or one for each of the 5 nets; got 2"),
        (make_nets, {"betas": (0.9, 1.0)}, ValueError, r"nets\[0\]: betas must be below 1"),
        (make_nets, {"sample_weight": np.ones(5)}, ValueError, r"nets\[0\]: sample_weight must have shape \(200,\)"),
        (make_nets, {"epochs": -1}, ValueError, r"nets\[0\]: epochs must be at least 0"),
        (make_nets, {"threads": 0}, ValueError, "threads must be at least 1"),
        (make_nets, {"learning_rate": 1}, TypeError, r"no training option 'learning_rate'"),
        (make_nets, {"validaton": 1}, TypeError, r"no training option 'validaton' \(did you mean 'validation'\?\)"),
        (make_nets, {"callback": 3}, TypeError, "callback must be callable; got int"),
        (make_nets, {"validation": 1.5}, ValueError, r"nets\[0\]: validation must be finite"),
        (make_nets, {"early_stopping": EarlyStopping()}, ValueError, r"nets\[0\]: early_stopping monitors val_loss"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_changed(make, options, error, message):
    nets = make()
    before = copy.deepcopy(nets)
    with pytest.raises(error, match=message):
        fit_many(nets, X, Y, **options)
    for net, other in zip(nets, before, strict=True):
        if isinstance(net, nn.Sequential):
            assert_same_bits(net, other)


def test_batches_are_refused():
    with pytest.raises(TypeError, match="without it x would be batches"):
        fit_many(make_nets(), [(X, Y)], None)


def test_frozen_memory_may_be_shared():
    nets = make_nets(3)
    for net in nets:
        net[0].requires_grad_(False)
        net[0].weight = nets[0][0].weight
    expected = copy.deepcopy(nets)
    fit_many(nets, X, Y, epochs=2)
    one_by_one(expected, X, Y, epochs=2)
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)
        assert net[2].weight is not other[2].weight


# What is shown


def test_progress_in_a_file_is_a_line_for_each_net(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    fit_many(make_nets(3), X, Y, epochs=2, validation=0.2, progress=True)
    import sys

    lines = sys.stderr.getvalue().splitlines()
    assert sorted(line[:13] for line in lines) == [f"net {i}  2 epoc" for i in range(3)]
    assert all("val_loss" in line for line in lines)
    assert "nets 3/3  100%" in lines[-1]


def test_progress_on_a_terminal_is_rewritten_in_place(monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Screen(is_terminal=True))
    fit_many(make_nets(3), X, Y, epochs=2, progress=True)
    assert screen.getvalue().count("\n") == 1
    assert "\rnets 3/3  100%  0 s left" in screen.getvalue()


# Without the native library


def test_the_fallback_gives_what_separate_fits_give(monkeypatch):
    monkeypatch.setattr(_native, "core", None)
    monkeypatch.setattr(_native, "core_error", "no compiler was found")
    monkeypatch.setattr(_native, "_require_native", False)
    monkeypatch.setattr(_native, "_announced", set())
    nets, expected = make_nets(3), make_nets(3)
    options = {"lr": [0.1, 0.2, 0.3], "validation": 0.2, "epochs": 2}
    with pytest.warns(RuntimeWarning, match="no compiler was found"):
        histories = fit_many(nets, X, Y, **options)
        assert_same_histories(histories, one_by_one(expected, X, Y, **options))
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)
        assert_changed(net, make_net(dtype=torch.float32, seed=nets.index(net)))
