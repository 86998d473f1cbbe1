"""Training beside other things: other threads, forked processes, the progress line; and what a single step costs."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
import time
import traceback

import pytest
import torch
from torch import nn
from training_runs import (
    RULES,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
)

from twolayer import EarlyStopping, Trainer, fit

WIDE = (300, 160, 20)  # with batches of 64 there is work for several threads
X, Y = make_data(rows=2000, sizes=WIDE, dtype=torch.float32)


OPTIONS = {"optimizer": "adam", "dropout": 0.2}


def train(seed=0, threads=2, **options):
    net = make_net(sizes=WIDE, dtype=torch.float32, seed=seed)
    fit(net, X, Y, threads=threads, seed=seed, **{**OPTIONS, "epochs": 3, **options})
    return net


def in_threads(workers):
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()


# Threads


@pytest.mark.parametrize("threads", [1, 2])
def test_two_python_threads_train_at_the_same_time_and_give_what_they_give_alone(threads):
    alone = [train(seed, threads, epochs=20) for seed in (0, 1)]
    together = [make_net(sizes=WIDE, dtype=torch.float32, seed=seed) for seed in (0, 1)]
    ends = [[], []]
    start = threading.Barrier(2)

    def run(seed):
        start.wait()
        fit(
            together[seed],
            X,
            Y,
            threads=threads,
            **OPTIONS,
            seed=seed,
            epochs=20,
            callback=lambda epoch, history: ends[seed].append(time.perf_counter()),
        )

    in_threads([threading.Thread(target=run, args=(seed,)) for seed in (0, 1)])
    for net, expected in zip(together, alone, strict=True):
        assert_same_bits(net, expected)
    assert ends[0][0] < ends[1][-1]
    assert ends[1][0] < ends[0][-1]


def test_python_runs_on_while_an_epoch_is_trained():
    x, y = (t.repeat(20, *[1] * (t.dim() - 1)) for t in (X, Y))
    net = make_net(sizes=WIDE, dtype=torch.float32)
    worker = threading.Thread(target=fit, args=(net, x, y), kwargs={"threads": 1})
    ticks = 0
    worker.start()
    while worker.is_alive():
        time.sleep(1e-3)
        ticks += 1
    assert ticks > 20  # the epoch takes some tenths of a second: were the GIL held, there would be none


def test_many_python_threads_train():
    nets = [make_net(sizes=WIDE, dtype=torch.float32) for _ in range(6)]
    in_threads(
        [threading.Thread(target=fit, args=(net, X, Y), kwargs={"threads": 2, "epochs": 3, **OPTIONS}) for net in nets]
    )
    for net in nets:
        assert_same_bits(net, train())


# Forks


def in_a_forked_child(function):
    """Run it in a forked child; return whether all went well there."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:This process.* is multi-threaded")
@pytest.mark.parametrize("rule", ["momentum", "adam", "amsgrad", "rmsprop centered", "adagrad"])
def test_a_forked_child_trains_before_between_and_after(rule):
    options = RULES[rule]
    expected = train(**options)

    def check():
        assert_same_bits(train(**options), expected)

    assert in_a_forked_child(check)
    check()
    assert in_a_forked_child(lambda: (check(), check()))
    check()


@needs_fork
@pytest.mark.filterwarnings("ignore:This process.* is multi-threaded")
def test_a_forked_child_goes_on_with_its_parents_trainer():
    net, expected = (make_net(sizes=WIDE, dtype=torch.float32) for _ in range(2))
    trainer, whole = (Trainer(n, optimizer="adam", threads=2) for n in (net, expected))
    trainer.epoch(X, Y)
    for _ in range(2):
        whole.epoch(X, Y)

    def go_on():
        trainer.epoch(X, Y)
        assert_same_bits(net, expected)

    assert in_a_forked_child(go_on)
    go_on()  # and the parent's is untouched by that


@needs_fork
@pytest.mark.filterwarnings("ignore:This process.* is multi-threaded")
def test_a_fork_while_another_thread_trains():
    expected = train()
    net = make_net(sizes=WIDE, dtype=torch.float32)  # before the thread starts: both draw from torch's one generator
    stop = threading.Event()
    busy = threading.Thread(
        target=lambda: train(epochs=10**6, callback=lambda epoch, history: stop.is_set()), daemon=True
    )
    busy.start()

    def check():
        fit(net, X, Y, threads=2, epochs=3, **OPTIONS)
        assert_same_bits(net, expected)

    try:
        assert [in_a_forked_child(check) for _ in range(3)] == [True] * 3
    finally:
        stop.set()
        busy.join(60)


def test_a_spawned_process_trains():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        loss = pool.apply(spawned_fit)
    assert loss == spawned_fit()


def spawned_fit():
    return fit(make_net(), *make_data(), epochs=2).loss


# The progress line


def test_progress_with_validation_and_early_stopping(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    x, y = make_data()
    history = fit(
        make_net(),
        x,
        y,
        epochs=9,
        progress=True,
        validation=0.2,
        early_stopping=EarlyStopping(2, 1e9),
    )
    lines = screen.getvalue().splitlines()
    assert len(lines) == len(history.loss) == 3
    for epoch, line in enumerate(lines):
        assert line.startswith(f"epoch {epoch + 1}/9  ")
        assert f"  loss {history.loss[epoch]:.4g}  val_loss {history.val_loss[epoch]:.4g}  " in line
        assert line.endswith(" s left")


def test_progress_over_an_iterable(monkeypatch):
    class Stream:
        def __iter__(self):
            yield make_data()

    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    fit(make_net(), Stream(), epochs=2, progress=True)
    assert [line[:16] for line in screen.getvalue().splitlines()] == ["epoch 1/2   50% ", "epoch 2/2  100% "]


# What a step costs


def seconds_per_call(call, calls=300):
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@pytest.mark.alone
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_step_on_one_row_takes_well_under_eagers_time(rule, record_property):
    sizes = (8, 64, 2)
    x, y = make_data(rows=1, sizes=sizes, dtype=torch.float32)
    net, plain = make_net(sizes=sizes, dtype=torch.float32), make_net(sizes=sizes, dtype=torch.float32).to_sequential()
    trainer = Trainer(net, optimizer=rule, lr=1e-3)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule](plain.parameters(), lr=1e-3)

    def eager():
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()

    def native():
        trainer.step(x, y)

    for call in (native, eager):
        seconds_per_call(call, 30)
    times = [[seconds_per_call(call) for call in (native, eager)] for _ in range(4)]  # A B A B …
    ours, theirs = (1e6 * min(column) for column in zip(*times, strict=True))
    record_property("microseconds", f"native {ours:.1f}, eager {theirs:.1f}")
    print(f"a step at batch 1, 8-64-2, {rule}: native {ours:.1f} µs, eager {theirs:.1f} µs")
    assert 3 * ours < theirs
