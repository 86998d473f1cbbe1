"""A run that is interrupted and resumed, at any step, or that moves to or from torch.optim, ends as if it had not."""

from __future__ import annotations

import copy
import functools
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from native_runs import subprocess_environment
from torch import nn
from training_runs import (
    ROWS,
    RULES,
    SIZES,
    assert_near,
    assert_same_bits,
    make_data,
    make_net,
    numpy_weights,
    one_torch_thread,  # noqa: F401
    torch_optimizer,
    train_with_torch,
)

from twolayer import NonFiniteLossError, NumpyNet, Trainer, fit
from twolayer.reference.numpy import permutation
from twolayer.training.schedules import OneCycle

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

STEPS_PER_EPOCH, EPOCHS = 5, 3
X, Y = make_data()
OPTIONS = {"batch_size": 8, "dropout": 0.3, "seed": 4, "l2": 0.01, "lr_schedule": OneCycle(0.02, EPOCHS)}


@functools.cache
def uninterrupted(rule_name):
    net = make_net()
    trainer = Trainer(net, **OPTIONS | RULES[rule_name])
    losses = [trainer.epoch(X, Y) for _ in range(EPOCHS)]
    return net, trainer, losses


def train_until(step, rule_name, net=None):
    """Train; after ``step`` steps in all the next batch proves not to be a number, which interrupts its epoch."""
    net = make_net() if net is None else net
    trainer = Trainer(net, **OPTIONS | RULES[rule_name])
    epoch, batch = divmod(step, STEPS_PER_EPOCH)
    for _ in range(epoch):
        trainer.epoch(X, Y)
    if batch:
        poisoned = X.clone()
        poisoned[permutation(ROWS, 4, epoch)[8 * batch]] = torch.nan
        with pytest.raises(NonFiniteLossError) as caught:
            trainer.epoch(poisoned, Y)
        assert (caught.value.step, caught.value.batch) == (step, batch)
    assert trainer.steps == step
    return net, trainer


def finish(trainer):
    while trainer.steps < STEPS_PER_EPOCH * EPOCHS:
        trainer.epoch(X, Y)


def assert_same_state(trainer, other):
    mine, theirs = trainer.state_dict(), other.state_dict()
    assert {**mine, "state": None} == {**theirs, "state": None}
    np.testing.assert_equal(mine["state"], theirs["state"])


@pytest.mark.parametrize("step", range(STEPS_PER_EPOCH * EPOCHS))
@pytest.mark.parametrize("rule_name", ["momentum", "amsgrad", "rmsprop centered"])
def test_a_run_goes_on_from_every_step(rule_name, step):
    expected, whole, _ = uninterrupted(rule_name)
    net, trainer = train_until(step, rule_name)
    finish(trainer)
    assert_same_bits(net, expected)
    assert_same_state(trainer, whole)


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("step", [0, 3, 5, 7])
def test_another_trainer_takes_up_every_rule(step, rule_name):
    expected, whole, _ = uninterrupted(rule_name)
    net, trainer = train_until(step, rule_name)
    state = copy.deepcopy(trainer.state_dict())
    second = make_net(seed=9)
    resumed = Trainer(second, **OPTIONS | RULES[rule_name])
    resumed.step(X, Y)  # what it did before does not matter
    second.load_state_dict(net.state_dict())
    resumed.load_state_dict(state)
    np.testing.assert_equal(resumed.state_dict(), state)
    finish(resumed)
    assert_same_bits(second, expected)
    assert_same_state(resumed, whole)
    np.testing.assert_equal(trainer.state_dict(), state)  # not shared with the trainer that it came from


def test_the_loss_of_an_epoch_taken_up_is_that_of_what_was_left():
    options = {"optimizer": "adam", "batch_size": 8, "dropout": 0.3}
    batches = torch.from_numpy(permutation(ROWS, 0, 0)).split(8)
    by_steps = Trainer(make_net(), **options)
    losses = [by_steps.step(X[rows], Y[rows]) for rows in batches]
    trainer = Trainer(make_net(), **options)
    poisoned = X.clone()
    poisoned[batches[3]] = torch.nan
    with pytest.raises(NonFiniteLossError):
        trainer.epoch(poisoned, Y)
    assert trainer.epoch(X, Y) == pytest.approx(np.average(losses[3:], weights=[8, 5]), rel=1e-15)


def test_less_data_than_an_interrupted_epoch_has_taken_is_refused():
    net, trainer = train_until(4, "adam")
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match="x must have more than the 4 batches that were taken of it; it has 2"):
        trainer.epoch(X[:16], Y[:16])
    assert_same_bits(net, before)


WIDE = (300, 160, 20)


def train_until_ctrl_c(trainer, x, y):
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            trainer.epoch(x, y)
    timer.join()


@pytest.mark.parametrize("rows_per_epoch", [64_000, 50_000], ids=["in the midst of an epoch", "in its last batch"])
def test_ctrl_c(rows_per_epoch):
    in_last_batch = rows_per_epoch == 50_000
    x, y = make_data(rows=rows_per_epoch, sizes=WIDE, dtype=torch.float32)
    options = {"optimizer": "adam", "lr": 1e-3, "dropout": 0.2, "batch_size": 50_000 if in_last_batch else 64}
    net, expected = (make_net(sizes=WIDE, dtype=torch.float32) for _ in range(2))
    trainer = Trainer(net, **options)
    train_until_ctrl_c(trainer, x, y)
    while not in_last_batch and trainer.state_dict()["epoch_step"] == 0:  # it came between two epochs
        train_until_ctrl_c(trainer, x, y)
    state = trainer.state_dict()
    assert state["steps"] == state["epochs"] * (1 if in_last_batch else 1000) + state["epoch_step"]
    assert (state["epoch_step"] == 0) == in_last_batch
    second = copy.deepcopy(net)
    resumed = Trainer(second, **options)
    resumed.load_state_dict(state)
    resumed.epoch(x, y)
    whole = Trainer(expected, **options)
    while whole.steps < resumed.steps:
        whole.epoch(x, y)
    assert_same_bits(second, expected)
    assert_same_state(resumed, whole)


# In another process

GO_ON_WITH_TORCH = """
import sys, torch
from twolayer import Trainer, TwoLayerNet
from twolayer.training.schedules import OneCycle
checkpoints = torch.load(sys.argv[1], weights_only=False)
for c in checkpoints["runs"].values():
    net = TwoLayerNet(9, 20, 5, activation="tanh", dtype=torch.float64)
    net.load_state_dict(c["net"])
    trainer = Trainer(net, **c["options"])
    trainer.load_state_dict(c["trainer"])
    while trainer.steps < 15:
        trainer.epoch(checkpoints["x"], checkpoints["y"])
    c["net"] = net.state_dict()
torch.save(checkpoints, sys.argv[1])
"""


def run_python(code, *arguments):
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=subprocess_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


def test_another_process_goes_on_from_torch_save(tmp_path):
    runs = {}
    for rule_name in RULES:
        net, trainer = train_until(7, rule_name)
        options = OPTIONS | RULES[rule_name]
        runs[rule_name] = {"net": net.state_dict(), "trainer": trainer.state_dict(), "options": options}
    file = tmp_path / "checkpoints.pt"
    torch.save({"runs": runs, "x": X, "y": Y}, file)
    run_python(GO_ON_WITH_TORCH, file)
    for rule_name, c in torch.load(file, weights_only=False)["runs"].items():
        expected, _, _ = uninterrupted(rule_name)
        torch.testing.assert_close(c["net"], dict(expected.state_dict()), rtol=0, atol=0)


GO_ON_WITHOUT_TORCH = """
import sys, numpy as np
from twolayer import NumpyNet, Trainer
from twolayer.training.schedules import OneCycle
with np.load(sys.argv[1]) as file:
    saved = dict(file)
net = NumpyNet(9, 20, 5, "tanh", dtype=np.float64)
for name in net.parameters():
    setattr(net, name, saved[name])
state = {}
for key in saved:
    if "." in key:
        name, parameter = key.split(".")
        state.setdefault(name, {})[parameter] = saved[key]
trainer = Trainer(net, optimizer="adam", lr=0.01, amsgrad=True, batch_size=8, dropout=0.3, seed=4, l2=0.01,
                  lr_schedule=OneCycle(0.02, 3))
trainer.load_state_dict({key: saved[key] for key in ("steps", "epochs", "epoch_step")} | {"state": state})
while trainer.steps < 15:
    trainer.epoch(saved["x"], saved["y"])
assert "torch" not in sys.modules
np.savez(sys.argv[1], **net.parameters())
"""


def test_another_process_goes_on_from_npz_without_torch(tmp_path):
    net, trainer = train_until(7, "amsgrad")
    state = trainer.state_dict()
    arrays = {
        f"{name}.{parameter}": array
        for name, values in state.pop("state").items()
        for parameter, array in values.items()
    }
    file = tmp_path / "checkpoint.npz"
    np.savez(file, **numpy_weights(net), **arrays, **state, x=X.numpy(), y=Y.numpy())
    run_python(GO_ON_WITHOUT_TORCH, file)
    expected, _, _ = uninterrupted("amsgrad")
    with np.load(file) as finished:
        np.testing.assert_equal(dict(finished), numpy_weights(expected))


# fit and Trainer


@every_rule
def test_twice_five_epochs_are_ten(rule):
    options = {"batch_size": 8, "dropout": 0.3} | rule
    net, expected, fitted = make_net(), make_net(), make_net()
    first = Trainer(net, **options)
    losses = [first.epoch(X, Y) for _ in range(5)]
    second = Trainer(net, **options)
    second.load_state_dict(first.state_dict())
    losses += [second.epoch(X, Y) for _ in range(5)]
    whole = Trainer(expected, **options)
    assert losses == [whole.epoch(X, Y) for _ in range(10)]
    history = fit(fitted, X, Y, epochs=10, **options)
    assert losses == history.loss
    assert_same_bits(net, expected)
    assert_same_bits(net, fitted)


def test_fit_twice_for_five_epochs_is_fit_for_ten_where_there_is_nothing_to_carry_over():
    net, expected = make_net(), make_net()
    losses = [loss for _ in range(2) for loss in fit(net, X, Y, batch_size=8, epochs=5, shuffle=False).loss]
    assert losses == fit(expected, X, Y, batch_size=8, epochs=10, shuffle=False).loss
    assert_same_bits(net, expected)


# To torch.optim and back

TORCH_BOUND = 1e-11  # of float64, over 10 epochs


def by_torch(net, optimizer, first_epoch, epochs):
    train_with_torch(
        net,
        X,
        lambda z, rows: nn.functional.cross_entropy(z, Y[rows]),
        optimizer,
        first_epoch=first_epoch,
        epochs=epochs,
    )


@every_rule
def test_a_run_that_goes_on_in_torch_ends_as_if_it_had_not(rule):
    net, expected = make_net().to_sequential(), make_net()
    trainer = Trainer(net, batch_size=8, **rule)
    for _ in range(2):
        trainer.epoch(X, Y)
    by_torch(net, trainer.to_torch_optimizer(), 2, 3)
    fit(expected, X, Y, batch_size=8, epochs=5, **rule)
    assert_near(net, expected, TORCH_BOUND)


@every_rule
def test_a_run_that_comes_from_torch_ends_as_if_it_had_not(rule):
    net, expected = make_net().to_sequential(), make_net()
    optimizer = torch_optimizer(net, rule)
    by_torch(net, optimizer, 0, 2)
    trainer = Trainer(net, batch_size=8, shuffle=False, **rule)
    trainer.from_torch_optimizer(optimizer)
    for epoch in range(2, 5):
        order = permutation(ROWS, 0, epoch)
        trainer.epoch(X[order], Y[order])
    fit(expected, X, Y, batch_size=8, epochs=5, **rule)
    assert_near(net, expected, TORCH_BOUND)


@every_rule
def test_there_and_back_changes_nothing(rule):
    net, expected = make_net().to_sequential(), make_net()
    trainer, whole = (Trainer(n, batch_size=8, **rule) for n in (net, expected))
    for t in (trainer, whole):
        t.epoch(X, Y)
    optimizer = trainer.to_torch_optimizer()
    before = trainer.state_dict()
    trainer.from_torch_optimizer(optimizer)
    np.testing.assert_equal(trainer.state_dict()["state"], before["state"])
    if rule["optimizer"] in ("adam", "adamw", "adagrad"):  # those that count their steps
        assert trainer.steps == 5
    for t in (trainer, whole):
        t.epoch(X, Y)
    assert_same_bits(net, expected)


@every_rule
def test_the_torch_optimizer_has_the_rules_options_and_owns_its_state(rule):
    net = make_net().to_sequential()
    trainer = Trainer(net, batch_size=8, **rule)
    trainer.epoch(X, Y)
    optimizer = trainer.to_torch_optimizer()
    assert type(optimizer) is type(torch_optimizer(net, rule))
    group = optimizer.param_groups[0]
    for name, value in rule.items():
        if name != "optimizer":
            assert group[name] == value, name
    before = copy.deepcopy(trainer.state_dict())
    by_torch(net, optimizer, 0, 1)
    np.testing.assert_equal(trainer.state_dict(), before)


@every_rule
def test_before_the_first_step_torch_starts_afresh(rule):
    net, expected = make_net().to_sequential(), make_net().to_sequential()
    by_torch(net, Trainer(net, **rule).to_torch_optimizer(), 0, 2)
    by_torch(expected, torch_optimizer(expected, rule), 0, 2)
    assert_same_bits(net, expected)


def test_eps_hat_is_not_torch_s():
    with pytest.raises(ValueError, match=r"torch\.optim has no eps_hat"):
        Trainer(make_net(), optimizer="adam", eps_hat=True).to_torch_optimizer()


def test_frozen_parameters_stay_out_of_the_torch_optimizer():
    net = make_net().to_sequential()
    net[0].weight.requires_grad_(False)
    trainer = Trainer(net, **RULES["adam"])
    trainer.step(X, Y)
    optimizer = trainer.to_torch_optimizer()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in [*net.parameters()][1:]]
    trainer.from_torch_optimizer(optimizer)
    assert trainer.steps == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda net: torch.optim.SGD(net.parameters()),
            TypeError,
            "optimizer must be a torch.optim.Adam; got SGD",
        ),
        (
            lambda net: torch.optim.AdamW(net.parameters()),
            TypeError,
            "optimizer must be a torch.optim.Adam; got AdamW",
        ),
        (
            lambda net: torch.optim.Adam(make_net().parameters()),
            ValueError,
            "optimizer must be built on the net's parameters; it does not hold w1",
        ),
        (
            lambda net: stepped(torch.optim.Adam(net.parameters()), net),
            ValueError,
            "optimizer must hold max_exp_avg_sq of w1, as the trainer.s options say; it holds exp_avg, exp_avg_sq",
        ),
    ],
)
def test_other_optimizers_are_refused(make, error, message):
    net = make_net().to_sequential()
    trainer = Trainer(net, optimizer="adam", amsgrad=True)
    trainer.step(X, Y)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(error, match=message):
        trainer.from_torch_optimizer(make(net))
    np.testing.assert_equal(trainer.state_dict(), before)


def stepped(optimizer, net):
    net(X).sum().backward()
    optimizer.step()
    return optimizer


def test_a_numpy_net_has_no_torch_optimizer():
    with pytest.raises(TypeError, match=r"net must be a TwoLayerNet or an nn\.Sequential; got NumpyNet"):
        Trainer(NumpyNet(*SIZES)).to_torch_optimizer()


# Refusals

GOOD = Trainer(make_net(), optimizer="adam").state_dict()


def with_state(**changes):
    return GOOD | {"state": GOOD["state"] | changes}


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        (None, "state_dict must be a dictionary of epoch_step, epochs, state, steps; got NoneType"),
        ({"steps": 3}, r"state_dict must be a dictionary of epoch_step, epochs, state, steps; got \['steps'\]"),
        (GOOD | {"steps": -1}, "state_dict's steps must be at least 0 and below .*; got -1"),
        (GOOD | {"epochs": 2**63}, "state_dict's epochs must be at least 0 and below .*; got 9223372036854775808"),
        (GOOD | {"epoch_step": 1.5}, "state_dict's epoch_step must be an integer; got float"),
        (GOOD | {"state": None}, r"state must hold \['exp_avg', 'exp_avg_sq'\]; it is a NoneType"),
        (GOOD | {"state": {}}, r"state must hold \['exp_avg', 'exp_avg_sq'\]; it holds nothing"),
        (with_state(max_exp_avg_sq={}), r"state must hold \['exp_avg', 'exp_avg_sq'\]; it holds \['exp_avg', 'exp_a"),
        (with_state(exp_avg_sq={}), r"state's exp_avg_sq of w1 must have shape \(20, 9\); got None"),
        (with_state(exp_avg_sq=3), "state's exp_avg_sq must be a dictionary of arrays by parameter; got int"),
        (
            with_state(exp_avg_sq=GOOD["state"]["exp_avg_sq"] | {"b2": np.zeros((5, 1))}),
            r"state's exp_avg_sq of b2 must have shape \(5,\); got \(5, 1\)",
        ),
        (
            with_state(exp_avg_sq=GOOD["state"]["exp_avg_sq"] | {"b2": np.zeros(5, complex)}),
            "state's exp_avg_sq of b2 must hold real numbers; got complex128",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(state_dict, message):
    trainer = Trainer(make_net(), optimizer="adam")
    trainer.step(X, Y)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        trainer.load_state_dict(state_dict)
    np.testing.assert_equal(trainer.state_dict(), before)
