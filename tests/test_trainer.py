"""``fit`` and ``Trainer`` against autograd with torch.optim, and what they promise beyond the numbers."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from cases import TRAINED_DTYPES, TRAINING_BOUNDS, name_of, relative_error
from native_runs import subprocess_environment
from torch import nn

import twolayer
from twolayer import NonFiniteLossError, Trainer, TrainingInterrupted, TwoLayerNet, _native, fit, load_mnist
from twolayer.reference import torch as torch_reference
from twolayer.reference.numpy import permutation
from twolayer.registry import ACTIVATIONS, LOSSES, OPTIMIZERS

every_dtype = pytest.mark.parametrize("dtype", TRAINED_DTYPES, ids=name_of)
every_loss = pytest.mark.parametrize("loss", LOSSES)

# How far fit may be from autograd and torch.optim, relative to the norm: each is so far from the truth.
BOUNDS = {dtype: 2 * bound for dtype, bound in TRAINING_BOUNDS.items()}
LR = {name: 0.1 if loss.reduction == "mean" else 0.002 for name, loss in LOSSES.items()}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """OpenMP's threads wait for each other at every op, which takes long while another process has one of the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_net(activation="tanh", dtype=torch.float32, sizes=(9, 20, 5), bias=True, seed=0):
    torch.manual_seed(seed)
    return TwoLayerNet(*sizes, activation=activation, bias=bias, dtype=dtype)


def make_data(loss="cross_entropy", dtype=torch.float32, rows=37, sizes=(9, 20, 5)):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, sizes[0], generator=generator, dtype=dtype)
    if loss == "cross_entropy":
        return x, torch.randint(0, sizes[2], (rows,), generator=generator)
    return x, torch.rand(rows, sizes[2], generator=generator, dtype=dtype)


def weights(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_same_bits(net, other):
    torch.testing.assert_close(weights(net), weights(other), rtol=0, atol=0, equal_nan=True)


def assert_near(net, other, bound):
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        assert relative_error(ours.detach().double().numpy(), theirs.detach().double().numpy()) <= bound, name


def fit_with_autograd(net, x, y, *, loss, batch_size, epochs, shuffle=True, drop_last=False, seed=0, **sgd):
    """What ``fit`` does, by autograd and torch.optim.SGD on a plain Sequential; returns the two losses per epoch."""
    net = net.to_sequential()
    optimizer = torch.optim.SGD(net.parameters(), **sgd)
    mean, last = [], []
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(len(x), seed, epoch)) if shuffle else torch.arange(len(x))
        losses, rows = [], []
        for batch in order.split(batch_size):
            if drop_last and len(batch) < batch_size:
                continue
            optimizer.zero_grad()
            batch_loss = torch_reference.LOSSES[loss](net(x[batch]), y[batch])
            batch_loss.backward()
            optimizer.step()
            losses.append(batch_loss.item())
            rows.append(len(batch))
        mean.append(np.average(losses, weights=rows))
        last.append(losses[-1])
    return mean, last


def assert_fit_is_autograd(dtype, loss, activation="tanh", bias=True, **options):
    options = {"loss": loss, "lr": LR[loss], "batch_size": 8, "epochs": 3} | options
    x, y = make_data(loss, dtype)
    native, plain = (make_net(activation, dtype, bias=bias) for _ in range(2))
    history = fit(native, x, y, **options)
    mean, last = fit_with_autograd(plain, x, y, **options)
    assert_near(native, plain, BOUNDS[dtype])
    np.testing.assert_allclose(history.loss, mean, rtol=20 * BOUNDS[dtype])
    np.testing.assert_allclose(history.last_batch_loss, last, rtol=20 * BOUNDS[dtype])
    per_epoch = 37 // options["batch_size"] if options.get("drop_last") else -(-37 // options["batch_size"])
    assert history.steps == per_epoch * options["epochs"]


# The same numbers as autograd and torch.optim.SGD


@every_dtype
@every_loss
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fit_is_autograd_for_every_activation(activation, loss, dtype):
    assert_fit_is_autograd(dtype, loss, activation)


RULES = [
    {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    for momentum, nesterov, weight_decay in itertools.product((0.0, 0.9), (False, True), (0.0, 0.01))
    if momentum or not nesterov
]
BATCHES = [
    {"batch_size": 1, "epochs": 1},
    {"batch_size": 8, "drop_last": True},
    {"batch_size": 8, "shuffle": False},
    {"batch_size": 8, "shuffle": False, "drop_last": True},
    {"batch_size": 8, "seed": 2**63 - 1},
    {"batch_size": 37},
    {"batch_size": 100},
]


def in_words(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


@every_dtype
@every_loss
@pytest.mark.parametrize("rule", RULES, ids=in_words)
def test_fit_is_autograd_for_every_rule(rule, loss, dtype):
    assert_fit_is_autograd(dtype, loss, **rule)


@every_dtype
@pytest.mark.parametrize("batches", BATCHES, ids=in_words)
def test_fit_is_autograd_for_every_way_to_batch(batches, dtype):
    assert_fit_is_autograd(dtype, "cross_entropy", momentum=0.9, **batches)


@every_dtype
def test_fit_is_autograd_without_biases(dtype):
    assert_fit_is_autograd(dtype, "mse", bias=False)


@pytest.mark.skipif(not os.environ.get("TWOLAYER_DATA"), reason="TWOLAYER_DATA is not set: no real MNIST to train on")
@pytest.mark.parametrize(
    # A smooth activation in float32: where one bends, a rounding error of a few units becomes one of whole percents.
    ("activation", "dtype", "bound"),
    [("tanh", torch.float32, 5e-6), ("relu", torch.float64, 1e-14)],
    ids=str,
)
def test_an_epoch_of_mnist_is_autograd(activation, dtype, bound):
    mnist = load_mnist()
    x, held_out = (
        torch.from_numpy(pixels.reshape(-1, 784)).to(dtype) / 255 for pixels in (mnist.x_train, mnist.x_test)
    )
    y = torch.from_numpy(mnist.y_train.astype(np.int64))
    options = {"loss": "cross_entropy", "lr": 0.05, "momentum": 0.9, "batch_size": 64, "epochs": 1}
    native, plain = (make_net(activation, dtype, sizes=(784, 100, 10)) for _ in range(2))
    history = fit(native, x, y, **options)
    mean, last = fit_with_autograd(plain, x, y, **options)
    assert_near(native, plain, bound)
    np.testing.assert_allclose([history.loss, history.last_batch_loss], [mean, last], rtol=bound)
    assert np.mean(native(held_out).argmax(1).numpy() == mnist.y_test) > 0.93


# What fit is given


def test_a_plain_sequential_is_trained_to_the_same_bits():
    x, y = make_data()
    net, sequential = make_net(), make_net().to_sequential()
    assert type(sequential) is nn.Sequential
    fit(net, x, y, epochs=2)
    fit(sequential, x, y, epochs=2)
    assert_same_bits(net, sequential)


def test_the_net_and_its_state_dict_see_the_result():
    x, y = make_data()
    net = make_net()
    held, before = net[0].weight, net(x)
    views = net.state_dict()
    fit(net, x, y)
    assert net[0].weight is held
    assert views["0.weight"].equal(held)
    assert not net(x).equal(before)
    assert net(x).equal(twolayer.two_layer(x, *net.parameters(), "tanh"))


X, Y = make_data()
SAME_INPUTS = {
    "NumPy": X.numpy(),
    "Fortran order": np.asfortranarray(X.numpy()),
    "rows apart": torch.cat([X, X], dim=1)[:, :9],
    "columns apart": torch.stack([X, X], dim=-1)[..., 0],
    "rows in reverse": np.ascontiguousarray(X.numpy()[::-1])[::-1],
    "float64": X.double(),
    "other byte order": X.numpy().astype(">f4"),
    "requires grad": X.clone().requires_grad_(),
    "read-only": np.frombuffer(X.numpy().tobytes(), np.float32).reshape(X.shape),
    "not aligned": np.frombuffer(b"." + X.numpy().tobytes(), np.float32, offset=1).reshape(X.shape),
}


@pytest.mark.parametrize("given", SAME_INPUTS)
def test_inputs_may_come_in_every_form(given):
    net, expected = make_net(), make_net()
    fit(net, SAME_INPUTS[given], Y, epochs=2)
    fit(expected, X, Y, epochs=2)
    assert_same_bits(net, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_integers_are_inputs(dtype):
    integers = np.random.default_rng(0).integers(0, 256, (37, 9)).astype(dtype)
    net, expected = make_net(), make_net()
    fit(net, integers, Y, lr=1e-3)
    fit(expected, integers.astype(np.float32), Y, lr=1e-3)
    assert_same_bits(net, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_classes_may_be_of_every_integer_type(dtype):
    net, expected = make_net(), make_net()
    fit(net, X, Y.numpy().astype(dtype))
    fit(expected, X, Y)
    assert_same_bits(net, expected)


@pytest.mark.parametrize("loss", ["mse", "mse_sum"])
def test_one_row_of_values_stands_for_all(loss):
    target = torch.arange(5.0)
    net, expected = make_net(), make_net()
    fit(net, X, target, loss=loss, lr=1e-3)
    fit(expected, X, target.expand(37, 5), loss=loss, lr=1e-3)
    assert_same_bits(net, expected)


def test_a_memory_mapped_file_is_read_in_place(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    net, expected = make_net(), make_net()
    fit(net, np.load(tmp_path / "x.npy", mmap_mode="r"), Y)
    fit(expected, X, Y)
    assert_same_bits(net, expected)


def test_the_data_are_left_alone():
    x, y = X.clone(), Y.clone()
    fit(make_net(), x, y, epochs=2)
    assert x.equal(X)
    assert y.equal(Y)


@every_loss
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_non_finite_data_do_not_hang(poison, loss):
    x, y = make_data(loss)
    x[3, 2] = poison
    net = make_net("relu")
    history = fit(net, x, y, loss=loss, epochs=3, nonfinite="continue")
    assert len(history.loss) == 3
    assert not np.isfinite(history.loss[-1])
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step 0 \(epoch 0, batch 0\)"):
        fit(make_net("relu"), x, y, loss=loss, epochs=3)


# Order, threads, repetition


def test_epochs_take_the_rows_in_the_documented_order():
    net, expected = make_net(), make_net()
    fit(net, X, Y, batch_size=8, epochs=3, seed=5)
    for epoch in range(3):
        order = permutation(37, 5, epoch)
        fit(expected, X[order], Y[order], batch_size=8, shuffle=False)
    assert_same_bits(net, expected)


def test_drop_last_leaves_the_short_batch_out():
    net, expected = make_net(), make_net()
    history = fit(net, X, Y, batch_size=8, epochs=2, shuffle=False, drop_last=True)
    fit(expected, X[:32], Y[:32], batch_size=8, epochs=2, shuffle=False)
    assert_same_bits(net, expected)
    assert history.steps == 8


WIDE = (300, 160, 20)  # with batches of 64 there is work for eight threads


def test_threads_do_not_change_a_bit():
    x, y = make_data(rows=200, sizes=WIDE)
    nets = {threads: make_net(sizes=WIDE) for threads in (1, 2, 3, 8, None)}
    for threads, net in nets.items():
        fit(net, x, y, momentum=0.9, epochs=2, threads=threads)
        assert_same_bits(net, nets[1])


# History, callback, progress


def test_history_has_an_entry_per_epoch():
    start = time.perf_counter()
    history = fit(make_net(), X, Y, batch_size=8, epochs=4)
    assert 0 < history.seconds < time.perf_counter() - start
    assert len(history.loss) == len(history.last_batch_loss) == 4
    assert history.loss[-1] < history.loss[0]
    assert (history.steps, history.stopped_early, history.best_epoch) == (20, False, None)
    assert history.val_loss == history.val_accuracy == []


def test_no_epochs_change_nothing():
    net = make_net()
    assert fit(net, X, Y, epochs=0).loss == []
    assert_same_bits(net, make_net())


def test_callback_sees_the_net_after_each_epoch():
    seen = []
    net = make_net()
    fit(
        net, X, Y, epochs=3, callback=lambda epoch, history: seen.append((epoch, len(history.loss), copy.deepcopy(net)))
    )
    assert [(epoch, losses) for epoch, losses, _ in seen] == [(0, 1), (1, 2), (2, 3)]
    for epoch, _, then in seen:
        expected = make_net()
        fit(expected, X, Y, epochs=epoch + 1)
        assert_same_bits(then, expected)


@pytest.mark.parametrize("answer", [None, False, 1, "yes"])
def test_callback_ends_training_with_true_only(answer):
    history = fit(make_net(), X, Y, epochs=3, callback=lambda epoch, history: answer)
    assert (len(history.loss), history.stopped_early) == (3, False)


def test_callback_ends_training():
    net, expected = make_net(), make_net()
    history = fit(net, X, Y, epochs=5, callback=lambda epoch, history: epoch == 1)
    fit(expected, X, Y, epochs=2)
    assert (len(history.loss), history.stopped_early) == (2, True)
    assert_same_bits(net, expected)


def test_what_a_callback_raises_leaves_the_net_at_that_epoch():
    def callback(epoch, history):
        if epoch == 1:
            raise LookupError("enough")

    net, expected = make_net(), make_net()
    with pytest.raises(LookupError, match="enough"):
        fit(net, X, Y, epochs=5, callback=callback)
    fit(expected, X, Y, epochs=2)
    assert_same_bits(net, expected)


@pytest.mark.parametrize("at", [0, 2])  # in the midst of training, and after its last epoch
def test_what_a_callback_writes_to_the_net_is_kept(at):
    start = weights(make_net(seed=3))

    def callback(epoch, history):
        if epoch == at:
            net.load_state_dict(start)

    net, expected = make_net(), make_net(seed=3)
    fit(net, X, Y, epochs=3, shuffle=False, callback=callback)
    fit(expected, X, Y, epochs=2 - at, shuffle=False)
    assert_same_bits(net, expected)


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


def test_progress_in_a_file_is_a_line_for_each_epoch(monkeypatch):
    screen = Screen(is_terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    history = fit(make_net(), X, Y, epochs=2, progress=True)
    lines = screen.getvalue().splitlines()
    assert lines[0].startswith(f"epoch 1/2   50%  loss {history.loss[0]:.4g}  ")
    assert lines[1] == f"epoch 2/2  100%  loss {history.loss[1]:.4g}  0 s left"
    assert len(lines) == 2


def test_progress_on_a_terminal_is_rewritten_in_place(monkeypatch):
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    x, y = make_data(rows=64 * 2000, sizes=WIDE)  # some tenths of a second
    fit(make_net(sizes=WIDE), x, y, epochs=1, progress=True)
    shown = screen.getvalue().split("\r")
    assert shown[0] == ""
    assert len(shown) > 3
    assert all(line.startswith("epoch 0/1   ") for line in shown[1:-1])
    assert shown[-1].startswith("epoch 1/1  100%  loss ")
    assert shown[-1].endswith(" \n")


def test_no_progress_writes_nothing(capfd):
    fit(make_net(), X, Y)
    assert capfd.readouterr() == ("", "")


def test_a_process_without_standard_error_can_train(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert fit(make_net(), X, Y).steps == 1


# Ctrl-C


def interrupt_after(seconds):
    """Press Ctrl-C once, so many seconds from now."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def take_steps(net, x, y, steps, batch_size, **options):
    """Train for so many steps, each a call of its own."""
    trainer, taken = Trainer(net, **options), 0
    for epoch in itertools.count():
        order = permutation(len(x), 0, epoch)
        for start in range(0, len(x), batch_size):
            if taken == steps:
                return
            rows = order[start : start + batch_size]
            trainer.step(x[rows], y[rows])
            taken += 1


def assert_interrupted_at_a_step(sizes, rows, threads):
    x, y = make_data(rows=rows, sizes=sizes)
    net, expected = make_net(sizes=sizes), make_net(sizes=sizes)
    timer = interrupt_after(0.15)
    with pytest.raises(TrainingInterrupted, match=r"interrupted after \d+ steps") as caught:
        fit(net, x, y, momentum=0.9, epochs=1_000_000, threads=threads)
    timer.join()
    history = caught.value.history
    whole, rest = divmod(history.steps, -(-rows // 64))
    assert history.steps > 0
    assert len(history.loss) == len(history.last_batch_loss) == (whole if rest else len(history.loss))
    take_steps(expected, x, y, history.steps, 64, momentum=0.9, threads=threads)
    assert_same_bits(net, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [640, 64_000])  # epochs much shorter than the test, and longer
def test_ctrl_c_leaves_the_net_at_the_last_step(rows, threads):
    assert_interrupted_at_a_step(WIDE, rows, threads)


def test_ctrl_c_leaves_the_net_at_the_last_step_of_the_fallback(fallback):
    with pytest.warns(RuntimeWarning):
        assert_interrupted_at_a_step((9, 20, 5), 640, 1)


def test_ctrl_c_in_a_callback():
    def callback(epoch, history):
        raise KeyboardInterrupt

    net, expected = make_net(), make_net()
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(net, X, Y, batch_size=8, epochs=3, callback=callback)
    assert caught.type is TrainingInterrupted
    assert (caught.value.history.steps, len(caught.value.history.loss)) == (5, 1)
    fit(expected, X, Y, batch_size=8)
    assert_same_bits(net, expected)


def test_ctrl_c_in_a_long_step_of_ones_own():
    x, y = (t[:1].expand(60_000, *t.shape[1:]) for t in make_data(sizes=WIDE))
    net = make_net(sizes=WIDE)
    trainer = Trainer(net, threads=1)
    timer = interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):
            trainer.step(x, y)
    timer.join()
    expected = make_net(sizes=WIDE)
    for _ in range(trainer.state_dict()["steps"]):
        Trainer(expected).step(x, y)
    assert_same_bits(net, expected)


# Trainer


def test_steps_are_fit():
    net, expected = make_net(), make_net()
    trainer = Trainer(net, momentum=0.9, lr=0.05)
    losses = [trainer.step(x, y) for x, y in zip(X.split(8), Y.split(8), strict=True)]
    history = fit(expected, X, Y, momentum=0.9, lr=0.05, batch_size=8, shuffle=False)
    assert_same_bits(net, expected)
    assert history.last_batch_loss == [losses[-1]]
    assert history.loss == [np.average(losses, weights=[8, 8, 8, 8, 5])]


def test_epochs_are_fit():
    net, expected = make_net(), make_net()
    trainer = Trainer(net, momentum=0.9, batch_size=8)
    losses = [trainer.epoch(X, Y) for _ in range(3)]
    history = fit(expected, X, Y, momentum=0.9, batch_size=8, epochs=3)
    assert losses == history.loss
    assert_same_bits(net, expected)


@pytest.mark.parametrize("rows", [37, 10_000])
@every_loss
def test_evaluate(loss, rows):
    x, y = make_data(loss, torch.float64, rows)
    net = make_net(dtype=torch.float64)
    versions = [parameter._version for parameter in net.parameters()]
    result = Trainer(net, loss=loss).evaluate(x, y)
    z = net(x)
    expected = {"loss": torch_reference.LOSSES[loss](z, y).item()}
    if loss == "cross_entropy":
        expected["accuracy"] = (z.argmax(1) == y).double().mean().item()
    assert result == pytest.approx(expected, rel=1e-12)
    assert_same_bits(net, make_net(dtype=torch.float64))
    assert versions == [parameter._version for parameter in net.parameters()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_interrupted_and_resumed_is_uninterrupted(momentum, tmp_path):
    options = {"momentum": momentum, "batch_size": 8}
    first, whole = make_net(), make_net()
    trainer = Trainer(first, **options)
    trainer.epoch(X, Y)
    trainer.step(X[:5], Y[:5])
    torch.save({"net": first.state_dict(), "trainer": trainer.state_dict()}, tmp_path / "checkpoint.pt")

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    second = make_net(seed=9)
    resumed = Trainer(second, **options)
    second.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["trainer"])
    resumed.epoch(X, Y)

    uninterrupted = Trainer(whole, **options)
    uninterrupted.epoch(X, Y)
    uninterrupted.step(X[:5], Y[:5])
    uninterrupted.epoch(X, Y)
    assert_same_bits(second, whole)
    assert pickle.dumps(resumed.state_dict()) == pickle.dumps(uninterrupted.state_dict())


def test_state_dict_is_the_optimizers_state():
    net, plain = make_net(dtype=torch.float64), make_net(dtype=torch.float64).to_sequential()
    x = X.double()
    trainer = Trainer(net, momentum=0.9)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        trainer.step(x, Y)
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), Y).backward()
        optimizer.step()
    state = trainer.state_dict()
    assert (state["steps"], state["epochs"]) == (3, 0)
    buffers = [optimizer.state[parameter]["momentum_buffer"].numpy() for parameter in plain.parameters()]
    for name, buffer in zip(("w1", "b1", "w2", "b2"), buffers, strict=True):
        np.testing.assert_allclose(state["state"]["momentum_buffer"][name], buffer, rtol=1e-12, atol=1e-15)


def in_place(net):
    with torch.no_grad():
        net[0].weight.fill_(0.25)


def through_data(net):
    net[0].weight.data.fill_(0.25)


def through_numpy(net):
    net[0].weight.detach().numpy()[:] = 0.25


def other_memory(net):
    net[0].weight.data = torch.full_like(net[0].weight, 0.25)


def other_parameter(net):
    net[0].weight = nn.Parameter(torch.full_like(net[0].weight, 0.25))


def assigned_state_dict(net):
    net.load_state_dict(net.state_dict() | {"0.weight": torch.full((20, 9), 0.25)}, assign=True)


@pytest.mark.parametrize(
    "write", [in_place, through_data, through_numpy, other_memory, other_parameter, assigned_state_dict]
)
def test_parameters_changed_between_calls_are_seen(write):
    net, expected = make_net(), make_net()
    trainer = Trainer(net, batch_size=8)
    trainer.step(X, Y)
    write(net)
    losses = trainer.evaluate(X, Y)["loss"], trainer.step(X, Y)
    Trainer(expected).step(X, Y)
    write(expected)
    assert losses[1] == Trainer(expected).step(X, Y)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_same_bits(net, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.double(),
        lambda net: setattr(net[0], "bias", None),
        lambda net: net.__setitem__(1, nn.ReLU()),
        lambda net: net.__setitem__(2, nn.Linear(20, 4)),
    ],
)
def test_a_net_that_became_another_is_refused(change):
    net = make_net()
    trainer = Trainer(net)
    change(net)
    with pytest.raises(
        ValueError, match="net must stay what it was trained as, 9 → 20 → 5, tanh, float32, w1 b1 w2 b2; it is now "
    ):
        trainer.step(X.to(net[0].weight.dtype), Y)


def test_a_graph_from_before_is_not_run_backward():
    for train in (fit, lambda net, x, y: Trainer(net).step(x, y), lambda net, x, y: Trainer(net).epoch(x, y)):
        net = make_net()
        loss = net.to_sequential()(X).square().sum()
        train(net, X, Y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


ZEROS = {"w1": np.zeros((20, 9)), "b1": np.zeros(20), "w2": np.zeros((5, 20)), "b2": np.zeros(5)}
GOOD_STATE = {"steps": 1, "epochs": 0, "epoch_step": 0, "state": {"momentum_buffer": ZEROS}}


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({}, r"state_dict must be a dictionary of epoch_step, epochs, state, steps; got \[\]"),
        (None, "state_dict must be a dictionary of epoch_step, epochs, state, steps; got NoneType"),
        ({"steps": 1, "epochs": 0, "state": {}}, r"got \['epochs', 'state', 'steps'\]"),
        (GOOD_STATE | {"state": {}}, r"state must hold \['momentum_buffer'\]; it holds nothing"),
        (
            GOOD_STATE | {"state": {"momentum_buffer": {"w1": np.zeros((9, 20))}}},
            r"state's momentum_buffer of w1 must have shape \(20, 9\); got \(9, 20\)",
        ),
        (
            GOOD_STATE | {"state": {"momentum_buffer": {"w1": np.zeros((20, 9))}}},
            r"state's momentum_buffer of b1 must have shape \(20,\); got None",
        ),
        *(
            (GOOD_STATE | {name: -1}, f"state_dict's {name} must be at least 0")
            for name in ("steps", "epochs", "epoch_step")
        ),
    ],
)
def test_a_state_dict_of_another_trainer_is_refused(state_dict, message):
    trainer = Trainer(make_net(), momentum=0.9)
    trainer.step(X, Y)
    before = pickle.dumps(trainer.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict(state_dict)
    assert pickle.dumps(trainer.state_dict()) == before


# Without the native library


@pytest.fixture
def fallback(monkeypatch):
    monkeypatch.setattr(_native, "core", None)
    monkeypatch.setattr(_native, "core_error", "no compiler was found")
    monkeypatch.setattr(_native, "_require_native", False)
    monkeypatch.setattr(_native, "_announced", set())


@every_dtype
@every_loss
@pytest.mark.parametrize("rule", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}], ids=["plain", "all"])
def test_fallback_gives_the_same_within_rounding(rule, loss, dtype, monkeypatch, request):
    options = {"loss": loss, "lr": LR[loss], "batch_size": 8} | rule
    x, y = make_data(loss, dtype)
    native, slow = make_net(dtype=dtype), make_net(dtype=dtype)
    history = fit(native, x, y, epochs=3, **options)
    evaluated = Trainer(native, loss=loss).evaluate(x, y)
    request.getfixturevalue("fallback")
    with pytest.warns(RuntimeWarning, match="native library is not loaded: no compiler was found") as warnings:
        expected = fit(slow, x, y, epochs=3, **options)
        expected_evaluation = Trainer(slow, loss=loss).evaluate(x, y)
    assert len(warnings) == 1  # though two trainers were made
    assert_near(native, slow, BOUNDS[dtype])
    np.testing.assert_allclose(history.loss, expected.loss, rtol=20 * BOUNDS[dtype])
    assert evaluated == pytest.approx(expected_evaluation, rel=20 * BOUNDS[dtype])
    assert history.steps == expected.steps


@pytest.mark.filterwarnings("ignore:twolayer's native library")
def test_fallback_goes_on_from_a_native_checkpoint(request):
    options = {"momentum": 0.9, "batch_size": 8}
    net = make_net()
    trainer = Trainer(net, **options)
    trainer.epoch(X, Y)
    checkpoint, slow = trainer.state_dict(), copy.deepcopy(net)
    trainer.epoch(X, Y)
    request.getfixturevalue("fallback")
    resumed = Trainer(slow, **options)
    resumed.load_state_dict(checkpoint)
    resumed.epoch(X, Y)
    assert_near(slow, net, BOUNDS[torch.float32])
    assert resumed.state_dict()["steps"] == trainer.state_dict()["steps"] == 10


def test_disabled_library_is_told_and_does_not_stop_training():
    code = """
import torch, twolayer
torch.manual_seed(0)
net = twolayer.TwoLayerNet(9, 20, 5, activation="tanh")
print(twolayer.fit(net, torch.ones(37, 9), torch.arange(37) % 5, epochs=2).loss[-1])
"""
    variables = {"TWOLAYER_DISABLE_NATIVE": "1", "TWOLAYER_REQUIRE_NATIVE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=subprocess_environment(**variables),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stderr.count("RuntimeWarning: twolayer's native library is not loaded") == 1
    assert "TWOLAYER_DISABLE_NATIVE is set; unset it to load the library" in run.stderr
    native = fit(make_net(), torch.ones(37, 9), torch.arange(37) % 5, epochs=2)
    assert float(run.stdout) == pytest.approx(native.loss[-1], rel=20 * BOUNDS[torch.float32])


# What is refused, before anything is changed

OPTION_REFUSALS = [
    ({"loss": "hinge"}, ValueError, f"loss must be one of {', '.join(LOSSES)}; got 'hinge'"),
    ({"loss": "cross-entropy"}, ValueError, r"got 'cross-entropy' \(did you mean 'cross_entropy'\?\)"),
    ({"loss": None}, TypeError, f"loss must be a string, one of {', '.join(LOSSES)}; got NoneType"),
    ({"optimizer": "lbfgs"}, ValueError, f"optimizer must be one of {', '.join(OPTIMIZERS)}; got 'lbfgs'"),
    ({"optimizer": "adamax"}, ValueError, r"got 'adamax' \(did you mean 'adam'\?\)"),
    ({"lr": float("nan")}, ValueError, "lr must be finite and at least 0; got nan"),
    ({"lr": float("inf")}, ValueError, "lr must be finite and at least 0; got inf"),
    ({"lr": -0.1}, ValueError, "lr must be finite and at least 0; got -0.1"),
    ({"lr": "0.1"}, TypeError, "lr must be a number; got str"),
    ({"lr": True}, TypeError, "lr must be a number; got bool"),
    ({"momentum": -1}, ValueError, "momentum must be finite and at least 0; got -1"),
    ({"weight_decay": float("nan")}, ValueError, "weight_decay must be finite and at least 0; got nan"),
    ({"nesterov": 1, "momentum": 0.9}, TypeError, "nesterov must be True or False; got 1"),
    ({"nesterov": True}, ValueError, "nesterov needs a momentum above 0 and no dampening; got momentum=0"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1 and below .*; got 0"),
    ({"batch_size": 8.0}, TypeError, "batch_size must be an integer; got float"),
    ({"batch_size": 2**63}, ValueError, "batch_size must be at least 1 and below .*; got 9223372036854775808"),
    ({"epochs": -1}, ValueError, "epochs must be at least 0 and below .*; got -1"),
    ({"epochs": "3"}, TypeError, "epochs must be an integer; got str"),
    ({"shuffle": None}, TypeError, "shuffle must be True or False; got None"),
    ({"drop_last": 0}, TypeError, "drop_last must be True or False; got 0"),
    ({"drop_last": True}, ValueError, "drop_last leaves nothing to train on: there are 37 rows, batch_size 64"),
    ({"seed": -1}, ValueError, "seed must be at least 0 and below .*; got -1"),
    ({"seed": 0.5}, TypeError, "seed must be an integer; got float"),
    ({"threads": 0}, ValueError, "threads must be at least 1 and below .*; got 0"),
    ({"callback": 3}, TypeError, "callback must be callable; got int"),
    ({"l1": -0.1}, ValueError, "l1 must be finite and at least 0; got -0.1"),
    ({"l2": float("nan")}, ValueError, "l2 must be finite and at least 0; got nan"),
    ({"betas": (0.9, 0.99)}, ValueError, "betas is not an option of optimizer 'sgd'; got betas="),
    ({"betas": (0.9, 1.0), "optimizer": "adam"}, ValueError, "betas must be below 1; got"),
    ({"betas": 0.9, "optimizer": "adam"}, TypeError, "betas must be two numbers; got 0.9"),
    ({"eps": 1e-6}, ValueError, "eps is not an option of optimizer 'sgd'; got eps=1e-06"),
    ({"eps": -1.0, "optimizer": "adam"}, ValueError, "eps must be finite and at least 0; got -1"),
    ({"validation": 0.01}, ValueError, "validation must leave rows on both sides; 0.01 of 37 rows does not"),
    ({"validation": "some"}, TypeError, "validation must be"),
    ({"early_stopping": "yes"}, TypeError, "early_stopping must be an EarlyStopping; got str"),
    ({"lr_schedule": "cosine"}, TypeError, "lr_schedule must be a schedule, a function epoch -> lr, or None; got str"),
    ({"precision": "tf32"}, ValueError, "precision must be None, 'float32', 'float64' or 'bfloat16'; got 'tf32'"),
    ({"precision": "float64"}, ValueError, "precision 'float64' needs a net of that dtype; the net is float32"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTION_REFUSALS, ids=lambda value: str(value)[:30])
def test_options_are_refused(options, error, message):
    net = make_net()
    versions = [parameter._version for parameter in net.parameters()]
    with pytest.raises(error, match=message):
        fit(net, X, Y, **options)
    assert_same_bits(net, make_net())
    assert versions == [parameter._version for parameter in net.parameters()]


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match=r"there is no training option 'batchsize' \(did you mean 'batch_size'\?\)"):
        Trainer(make_net(), batchsize=3)


def test_an_epoch_with_nothing_to_train_on_changes_nothing():
    net = make_net()
    with pytest.raises(ValueError, match="drop_last leaves nothing to train on"):
        Trainer(net, drop_last=True).epoch(X, Y)
    assert_same_bits(net, make_net())


DATA_REFUSALS = [
    ({"x": X[:, :8]}, ValueError, r"x must have shape \(rows, 9\), as the net has; got \(37, 8\)"),
    ({"x": X[0]}, ValueError, r"x must have shape \(rows, 9\), as the net has; got \(9,\)"),
    ({"x": X[:0], "y": Y[:0]}, ValueError, "x must have at least one row; got none"),
    ({"x": X.tolist()}, TypeError, "x must be a torch.Tensor or a NumPy array; got list"),
    ({"x": X.to(torch.complex64)}, TypeError, "x must hold real numbers; got complex64"),
    ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor of a dtype that NumPy has: .*[Ss]parse"),
    ({"x": X.to("meta")}, ValueError, "x must be on the cpu, where the net is; it is on meta"),
    ({"x": X.numpy().astype(str)}, TypeError, "x must hold real numbers; got <U"),
    ({"y": Y[:36]}, ValueError, r"y must have shape \(37,\), one class for each row of x; got \(36,\)"),
    ({"y": Y[:, None]}, ValueError, r"y must have shape \(37,\), one class for each row of x; got \(37, 1\)"),
    (
        {"y": Y.float()},
        TypeError,
        r"y must hold integer classes \(37,\) or a distribution \(37, 5\) for loss 'cross_entropy'; got float32",
    ),
    ({"y": Y + 1}, ValueError, r"y must hold classes in \[0, 5\); row \d+ holds 5"),
    ({"y": Y - 1}, ValueError, r"y must hold classes in \[0, 5\); row \d+ holds -1"),
    (
        {"y": Y.numpy().astype(np.uint64) + np.uint64(2**63)},
        ValueError,
        r"y must hold classes in \[0, 5\); row 0 holds",
    ),
    ({"y": Y.tolist()}, TypeError, "y must be a torch.Tensor or a NumPy array; got list"),
    ({"y": X, "loss": "mse"}, ValueError, r"y must have shape \(37, 5\) or \(5,\); got \(37, 9\)"),
    (
        {"y": X[:, :5].to(torch.complex64), "loss": "mse_sum"},
        TypeError,
        "y must hold real numbers for loss 'mse_sum'; got complex64",
    ),
]


@pytest.mark.parametrize("method", ["fit", "step", "epoch", "evaluate"])
@pytest.mark.parametrize(("given", "error", "message"), DATA_REFUSALS, ids=lambda value: str(value)[-30:])
def test_data_are_refused(given, error, message, method):
    net = make_net()
    x, y, loss = given.get("x", X), given.get("y", Y), given.get("loss", "cross_entropy")
    with pytest.raises(error, match=message):
        fit(net, x, y, loss=loss) if method == "fit" else getattr(Trainer(net, loss=loss), method)(x, y)
    assert_same_bits(net, make_net())


def test_without_targets_an_iterable_is_expected():
    net = make_net()
    with pytest.raises(TypeError, match=r"without y, x must be an iterable of batches \(x, y\)"):
        fit(net, X)
    for method in ("step", "epoch", "evaluate"):
        with pytest.raises(TypeError, match=r"y must be a torch\.Tensor or a NumPy array; got NoneType"):
            getattr(Trainer(net), method)(X, None)
    assert_same_bits(net, make_net())


def test_truth_values_are_the_numbers_0_and_1():
    x, y = X > 0, Y[:, None] == torch.arange(5)
    net, expected = make_net(), make_net()
    fit(net, x, y, loss="bce_with_logits")
    fit(expected, x.float(), y.float(), loss="bce_with_logits")
    assert_same_bits(net, expected)


def test_bfloat16_inputs_are_read_as_they_are():
    net, expected = make_net(), make_net()
    fit(net, X.bfloat16(), Y)
    fit(expected, X.bfloat16().float(), Y)
    assert_same_bits(net, expected)


def with_hook():
    net = make_net()
    net[0].register_forward_hook(lambda module, given, result: result)
    return net


def mixed():
    net = make_net()
    net[2].double()
    return net


def transposed():
    net = make_net()
    net[0].weight = nn.Parameter(torch.randn(9, 20).T)
    return net


def tied():
    net = make_net(sizes=(9, 9, 9))
    net[2].weight = net[0].weight
    return net


def overlapping():
    net, memory = make_net(sizes=(9, 9, 9)), torch.randn(100)
    net[0].weight = nn.Parameter(memory[:81].view(9, 9))
    net[0].bias = nn.Parameter(memory[80:89])
    return net


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(9, 5), TypeError, "net must be a TwoLayerNet or an nn.Sequential; got Linear"),
        (lambda: nn.Sequential(nn.Linear(9, 5)), ValueError, "net must be Linear → activation → Linear"),
        (
            lambda: nn.Sequential(nn.Linear(9, 4), nn.GLU(), nn.Linear(2, 5)),
            ValueError,
            "net must be Linear → activation → Linear, without hooks .*; got Sequential",
        ),
        (with_hook, ValueError, "net must be Linear → activation → Linear, without hooks"),
        (mixed, ValueError, "net's parameters must all be float32 or all float64; got .*'w2': 'float64'"),
        (
            lambda: make_net().half(),
            ValueError,
            "net's w1 must be float32 or float64 to be trained by fit; it is torch.float16",
        ),
        (
            lambda: make_net().to("meta"),
            ValueError,
            "net's w1 must be on the cpu or on cuda to be trained by fit; it is on meta",
        ),
        (transposed, ValueError, r"net's w1 must be contiguous; its strides are \(4, 80\) bytes"),
        (tied, ValueError, "net's w1 and w2 must not share memory"),
        (overlapping, ValueError, "net's w1 and b1 must not share memory"),
        (lambda: make_net(sizes=(9, 0, 5)), ValueError, "net must have at least one feature .*; it is 9 → 0 → 5"),
        (lambda: make_net(sizes=(0, 20, 5)), ValueError, "net must have at least one feature .*; it is 0 → 20 → 5"),
        (lambda: make_net(sizes=(9, 20, 0)), ValueError, "net must have at least one feature .*; it is 9 → 20 → 0"),
    ],
)
def test_nets_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        fit(make(), X, Y)


@pytest.mark.parametrize("index", range(4))
def test_a_parameter_that_does_not_require_grad_stays_put(index):
    net, expected = make_net(), make_net().to_sequential()
    frozen = list(net.parameters())[index]
    frozen.requires_grad_(False)
    before, version = frozen.clone(), frozen._version
    list(expected.parameters())[index].requires_grad_(False)
    fit(net, X, Y, lr=0.1, batch_size=37, shuffle=False)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    nn.functional.cross_entropy(expected(X), Y).backward()
    optimizer.step()
    assert frozen.equal(before)
    assert frozen._version == version
    assert_near(net, expected, BOUNDS[torch.float32])


def test_parameters_side_by_side_in_one_memory_are_trained():
    net, expected, memory = make_net(), make_net(), torch.empty(305)
    for parameter, part in zip(net.parameters(), memory.split([180, 20, 100, 5]), strict=True):
        parameter.data = part.view_as(parameter).copy_(parameter.detach())
    fit(net, X, Y)
    fit(expected, X, Y)
    assert_same_bits(net, expected)
