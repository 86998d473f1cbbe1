"""Runs of ``fit`` and ``Trainer`` on a device: validation, callbacks, orders made ahead, states, Ctrl-C."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from device_nets import (
    OPTIONS,
    assert_net_is,
    assert_no_thread_is_left,
    device_net,
    our_threads,
    press_ctrl_c,
    to,
    twin,
)
from torch import nn
from training_runs import (
    ROWS,
    RULES,
    assert_changed,
    assert_near,
    assert_same_bits,
    make_data,
    one_torch_thread,  # noqa: F401
    torch_optimizer,
)

from twolayer import (
    EarlyStopping,
    History,
    NonFiniteLossError,
    Trainer,
    TrainingInterrupted,
    _native,
    fit,
)
from twolayer.training import session

# Validation, early stopping, callbacks, history


def held_out(device):
    return to(device, *make_data(rows=30, seed=2))


def test_validation_is_the_cpus(device):
    x, y = to(device, *make_data())
    net = device_net(device)
    expected = twin(net)
    history = fit(net, x, y, validation=held_out(device), **OPTIONS)
    of_cpu = fit(expected, x.cpu(), y.cpu(), validation=held_out("cpu"), **OPTIONS)
    np.testing.assert_allclose(history.val_loss, of_cpu.val_loss, rtol=1e-11)
    assert history.val_accuracy == of_cpu.val_accuracy
    with_values = fit(device_net(device), x, x[:, :5], loss="mse", validation=(x, x[:, :5]), **OPTIONS)
    assert len(with_values.val_loss) == 3 and not with_values.val_accuracy


@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping_ends_with_the_best_weights(restore_best, device):
    x, y = to(device, *make_data())
    nets = []
    options = {"lr": 0.5, "momentum": 0.9, "batch_size": 8, "validation": held_out(device)}
    net = device_net(device)
    whole = fit(net, x, y, epochs=8, callback=lambda epoch, history: nets.append(copy.deepcopy(net)), **options)
    best = int(np.argmin(whole.val_loss))
    assert 0 <= best < 7
    stopped = device_net(device)
    history = fit(stopped, x, y, epochs=8, early_stopping=EarlyStopping(8, restore_best=restore_best), **options)
    assert (history.best_epoch, history.val_loss) == (best, whole.val_loss)
    assert_same_bits(stopped, nets[best if restore_best else -1])
    assert_changed(nets[best], nets[-1])


def test_a_callback_sees_the_net_and_may_write_to_it_and_end_training(device):
    x, y = to(device, *make_data())
    net, expected = device_net(device), device_net(device)
    seen = []

    def callback(epoch, history):
        assert history.path.startswith("cuda ")
        seen.append(copy.deepcopy(net))
        with torch.no_grad():
            net[0].bias.mul_(2)
        return epoch == 1

    history = fit(net, x, y, **OPTIONS, callback=callback)
    assert (len(history.loss), history.stopped_early) == (2, True)
    trainer = Trainer(expected, lr=0.05, batch_size=8)
    for after in seen:
        trainer.epoch(x, y)
        assert_same_bits(after, expected)
        with torch.no_grad():
            expected[0].bias.mul_(2)
    assert_same_bits(net, expected)


def test_progress_is_a_line_for_each_epoch(device, capsys):
    fit(device_net(device), *to(device, *make_data()), progress=True, **OPTIONS)
    assert [line[:9] for line in capsys.readouterr().err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_history_tells_the_path(device, monkeypatch):
    x, y = to(device, *make_data())
    trainer = Trainer(device_net(device))
    assert fit(device_net(device), x, y, epochs=0).path == ""
    assert fit(device_net(device), x, y).path in ("cuda cluster", "cuda graph")
    assert trainer.step(x, y) > 0
    numpy_net = twin(device_net(device))
    assert fit(numpy_net, x.cpu(), y.cpu()).path == "cpu"
    monkeypatch.setattr(_native, "core", None)
    monkeypatch.setattr(_native, "_require_native", False)
    monkeypatch.setattr(_native, "_announced", set())
    with pytest.warns(RuntimeWarning, match="not loaded"):
        assert fit(numpy_net, x.cpu(), y.cpu()).path == "numpy"


def test_a_history_of_before_there_were_paths_is_read():
    old = History([1.0])
    del old.__dict__["path"]
    assert pickle.loads(pickle.dumps(old)).path == ""


def test_a_loss_that_is_not_finite_stops_at_the_step_before(device):
    x, y = make_data()
    poisoned = x.clone()
    poisoned[session.permutation(ROWS, 0, 1)[17]] = torch.nan  # of the second epoch's third batch
    x, y, poisoned = to(device, x, y, poisoned)
    net, expected = device_net(device), device_net(device)
    trainer, steps = Trainer(net, lr=0.05, batch_size=8), Trainer(expected, lr=0.05, batch_size=8)
    trainer.epoch(x, y)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 7 \(epoch 1, batch 2\)"):
        trainer.epoch(poisoned, y)
    steps.epoch(x, y)
    for rows in torch.from_numpy(session.permutation(ROWS, 0, 1)).to(device).split(8)[:2]:
        steps.step(x[rows], y[rows])
    assert_near(net.cpu(), expected.cpu(), 1e-13)
    with pytest.raises(NonFiniteLossError):
        fit(device_net(device), poisoned, y, **OPTIONS)
    assert_no_thread_is_left()


# Orders made ahead


def test_orders_are_made_ahead_on_another_thread(device, monkeypatch):
    made = []
    make = session.permutation

    def permutation(count, seed, epoch):
        made.append((epoch, threading.current_thread() is threading.main_thread()))
        return make(count, seed, epoch)

    x, y = to(device, *make_data())
    net, expected = device_net(device), device_net(device)
    trainer = Trainer(expected, lr=0.05, batch_size=8)
    for _ in range(3):
        trainer.epoch(x, y)
    monkeypatch.setattr(session, "permutation", permutation)
    fit(net, x, y, **OPTIONS)
    assert made == [(0, True), (1, False), (2, False)]
    assert_same_bits(net, expected)
    assert_no_thread_is_left()
    made.clear()
    fit(net, x, y, **OPTIONS, callback=lambda epoch, history: True)
    assert made == [(0, True), (1, False)]
    assert_no_thread_is_left()
    made.clear()
    fit(twin(net), x.cpu(), y.cpu(), **OPTIONS)
    assert made == [(0, True), (1, True), (2, True)]


def test_an_order_that_cannot_be_made_ends_training_after_the_epoch_before(device, monkeypatch):
    make = session.permutation

    def permutation(count, seed, epoch):
        if epoch == 2:
            raise MemoryError("no room for the order")
        return make(count, seed, epoch)

    x, y = to(device, *make_data())
    net, expected = device_net(device), device_net(device)
    fit(expected, x, y, **OPTIONS | {"epochs": 2})
    monkeypatch.setattr(session, "permutation", permutation)
    histories = []
    with pytest.raises(MemoryError, match="no room for the order"):
        fit(net, x, y, **OPTIONS, callback=lambda epoch, history: histories.append(history))
    assert (histories[0].steps, len(histories)) == (10, 2)
    assert_same_bits(net, expected)
    assert_no_thread_is_left()


def test_an_order_still_being_made_is_not_waited_for(device, monkeypatch):
    make, released = session.permutation, threading.Event()

    def permutation(count, seed, epoch):
        if epoch == 1:
            released.wait(30)
        return make(count, seed, epoch)

    monkeypatch.setattr(session, "permutation", permutation)
    fit(device_net(device), *to(device, *make_data()), **OPTIONS, callback=lambda epoch, history: True)
    assert our_threads() == ["twolayer-order_0"]
    released.set()
    assert_no_thread_is_left()


# Trainer


def test_steps_and_epochs_are_fit(device):
    x, y = to(device, *make_data())
    by_steps, by_epochs, expected = (device_net(device) for _ in range(3))
    fit(expected, x, y, momentum=0.9, **OPTIONS)
    options = {"momentum": 0.9, "lr": 0.05, "batch_size": 8}
    trainer, stepping = Trainer(by_epochs, **options), Trainer(by_steps, **options)
    for epoch in range(3):
        trainer.epoch(x, y)
        for rows in torch.from_numpy(session.permutation(ROWS, 0, epoch)).split(8):
            stepping.step(x[rows.to(device)], y[rows.to(device)])
    assert trainer.steps == stepping.steps == 15
    assert_same_bits(by_epochs, expected)
    assert_near(by_steps.cpu(), expected.cpu(), 1e-13)


def test_evaluate_is_the_cpus_and_changes_nothing(device):
    x, y = to(device, *make_data())
    net = device_net(device)
    found = Trainer(net).evaluate(x, y)
    expected = Trainer(twin(net)).evaluate(x.cpu(), y.cpu())
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    assert found["accuracy"] == expected["accuracy"]
    assert_same_bits(net, device_net(device))


@pytest.mark.parametrize("rule", ["momentum", "amsgrad", "rmsprop centered", "adagrad"])
@pytest.mark.parametrize("through", ["device", "cpu", "numpy"])
def test_a_run_goes_on_from_a_state_dict(through, rule, device):
    x, y = to(device, *make_data())
    options = {"batch_size": 8, "dropout": 0.2, **RULES[rule]}
    whole = Trainer(expected := device_net(device), **options)
    for _ in range(3):
        whole.epoch(x, y)
    first = Trainer(net := device_net(device), **options)
    first.epoch(x, y)
    state = first.state_dict()
    assert all(array.device == x.device for arrays in state["state"].values() for array in arrays.values())
    if through != "device":
        for arrays in state["state"].values():
            arrays.update({n: a.cpu() if through == "cpu" else a.cpu().numpy() for n, a in arrays.items()})
    second = Trainer(copy.deepcopy(net), **options)
    resumed = second._session.net
    second.load_state_dict(state)
    second.epoch(x, y)
    second.epoch(x, y)
    assert_same_bits(resumed, expected)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_run_goes_on_on_the_cpu(device):
    x, y = to(device, *make_data())
    options = {"batch_size": 8, **RULES["adam"]}
    trainer = Trainer(net := device_net(device), **options)
    trainer.epoch(x, y)
    in_memory = Trainer(moved := twin(net), **options)
    in_memory.load_state_dict(trainer.state_dict())
    in_memory.epoch(x.cpu(), y.cpu())
    trainer.epoch(x, y)
    assert_net_is(net, moved, 1e-11)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({}, ValueError, r"state must hold \['momentum_buffer'\]; it holds nothing"),
        ({"momentum_buffer": 3}, TypeError, "state's momentum_buffer must be a dictionary of arrays by parameter"),
        ({"momentum_buffer": {}}, ValueError, r"momentum_buffer of w1 must have shape \(20, 9\); got None"),
        ({"momentum_buffer": {"w1": torch.ones(3)}}, ValueError, r"of w1 must have shape \(20, 9\); got \(3,\)"),
        (
            {"momentum_buffer": {"w1": torch.ones(20, 9, dtype=torch.complex64)}},
            TypeError,
            "state's momentum_buffer of w1 must hold real numbers; got complex64",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, error, message, device):
    trainer = Trainer(device_net(device), momentum=0.9)
    with pytest.raises(error, match=message):
        trainer.load_state_dict({"steps": 1, "epochs": 0, "epoch_step": 0, "state": state})


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_run_goes_to_torch_and_comes_back(rule, device):
    x, y = to(device, *make_data())
    net = device_net(device)
    trainer = Trainer(net, batch_size=8, **rule)
    trainer.epoch(x, y)
    optimizer = trainer.to_torch_optimizer()
    assert type(optimizer) is type(torch_optimizer(net, rule))
    for state in optimizer.state.values():
        assert all(value.device == x.device for name, value in state.items() if name != "step")
    back = Trainer(net, batch_size=8, **rule)
    back.from_torch_optimizer(optimizer)
    torch.testing.assert_close(back.state_dict()["state"], trainer.state_dict()["state"], rtol=0, atol=0)
    whole = copy.deepcopy(net)
    order = Trainer(whole, batch_size=8, **rule)
    order.load_state_dict({**trainer.state_dict(), "epochs": 0})
    order.epoch(x, y)

    def loss_of(z, rows):
        return nn.functional.cross_entropy(z, y[rows.to(device)])

    plain = net.to_sequential()
    for rows in torch.from_numpy(session.permutation(ROWS, 0, 0)).split(8):
        optimizer.zero_grad()
        loss_of(plain(x[rows.to(device)]), rows).backward()
        optimizer.step()
    assert_near(net.cpu(), whole.cpu(), 1e-11)


# Ctrl-C


def test_ctrl_c_leaves_the_net_at_the_last_step(device):
    x, y = to(device, *make_data())
    net, expected, pressed = device_net(device), device_net(device), []
    press_ctrl_c(0.3, pressed)
    with pytest.raises(TrainingInterrupted, match=r"interrupted after \d+ steps") as caught:
        fit(net, x, y, lr=1e-4, batch_size=8, epochs=10**6)
    seconds = time.perf_counter() - pressed[0]
    assert seconds < 0.1 or os.getloadavg()[0] > 2  # a machine with more to do may take its time
    history = caught.value.history
    assert history.steps > 0
    assert 0 <= history.steps - 5 * len(history.loss) <= 5
    trainer = Trainer(expected, lr=1e-4, batch_size=8)
    for _ in range(history.steps // 5):
        trainer.epoch(x, y)
    order = session.permutation(ROWS, 0, history.steps // 5)
    for batch in range(history.steps % 5):
        rows = torch.from_numpy(order[8 * batch : 8 * batch + 8]).to(device)
        trainer.step(x[rows], y[rows])
    assert_near(net.cpu(), expected.cpu(), 1e-12)
    assert_no_thread_is_left()
