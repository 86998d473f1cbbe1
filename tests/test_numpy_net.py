"""``NumpyNet``: training and prediction with NumPy arrays alone, to the bits of the torch net."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import name_of
from native_runs import subprocess_environment
from training_runs import RULES, make_data, make_net, numpy_weights, one_torch_thread  # noqa: F401

import twolayer
from twolayer import NumpyNet, Trainer, fit
from twolayer.reference import numpy as reference
from twolayer.registry import ACTIVATIONS

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
X, Y = (t.numpy() for t in make_data())
NAMES = ("w1", "b1", "w2", "b2")


def numpy_twin(net, activation="tanh"):
    """A NumpyNet with copies of a torch net's weights."""
    arrays = numpy_weights(net)
    twin = NumpyNet(9, 20, 5, activation, dtype=arrays["w1"].dtype)
    for name, array in arrays.items():
        setattr(twin, name, array)
    return twin


def assert_same_arrays(net, other):
    np.testing.assert_equal(net.parameters(), other.parameters())


# Training


@every_dtype
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_trains_to_the_bits_of_the_torch_net(rule, dtype):
    torch_net = make_net(dtype=dtype)
    net = numpy_twin(torch_net)
    options = {"batch_size": 8, "epochs": 3, "dropout": 0.2, "validation": 0.2, **rule}
    history = fit(net, X, Y, **options)
    expected = fit(torch_net, X, Y, **options)
    np.testing.assert_equal(net.parameters(), numpy_weights(torch_net))
    assert (history.loss, history.val_loss, history.val_accuracy) == (
        expected.loss,
        expected.val_loss,
        expected.val_accuracy,
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_and_without_biases(activation, bias):
    torch_net = make_net(activation, bias=bias)
    net = NumpyNet(9, 20, 5, activation, bias, dtype=np.float64)
    for name, parameter in zip(("w1", "b1", "w2", "b2") if bias else ("w1", "w2"), torch_net.parameters(), strict=True):
        setattr(net, name, parameter.detach().numpy().copy())
    assert fit(net, X, Y, epochs=2).loss == fit(torch_net, X, Y, epochs=2).loss
    trained = [parameter.detach().numpy() for parameter in torch_net.parameters()]
    for mine, theirs in zip(net.parameters().values(), trained, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_very_arrays_are_trained():
    net = NumpyNet(9, 20, 5)
    held = net.parameters()
    before = copy.deepcopy(held)
    fit(net, X, Y)
    for name in NAMES:
        assert getattr(net, name) is held[name]
        assert not np.array_equal(held[name], before[name])


def test_trainer_steps_epochs_and_evaluates():
    torch_net = make_net()
    net = numpy_twin(torch_net)
    mine, theirs = Trainer(net, optimizer="adam", batch_size=8), Trainer(torch_net, optimizer="adam", batch_size=8)
    for trainer in (mine, theirs):
        trainer.step(X[:5], Y[:5])
    assert mine.epoch(X, Y) == theirs.epoch(X, Y)
    assert mine.evaluate(X, Y) == theirs.evaluate(X, Y)
    np.testing.assert_equal(mine.state_dict(), theirs.state_dict())
    np.testing.assert_equal(net.parameters(), numpy_weights(torch_net))


@pytest.mark.parametrize("change", ["replaced", "written to"])
def test_arrays_changed_between_steps_are_seen(change):
    net, expected = (NumpyNet(9, 20, 5, seed=3) for _ in range(2))
    trainer = Trainer(net)
    trainer.step(X, Y)
    Trainer(expected).step(X, Y)
    for n in (net, expected):
        if change == "replaced":
            n.w2 = np.full((5, 20), 0.25, np.float32)
        else:
            n.w2[:] = 0.25
    trainer.step(X, Y)
    Trainer(expected).step(X, Y)
    assert_same_arrays(net, expected)


WITHOUT_TORCH = """
import sys
import numpy as np
from twolayer import EarlyStopping, NumpyNet, Trainer, fit
rng = np.random.default_rng(0)
x = rng.standard_normal((200, 9))
y = (x[:, :5] + 0.1 * rng.standard_normal((200, 5))).argmax(axis=1)
net = NumpyNet(9, 20, 5, "relu", dtype=np.float64)
history = fit(net, x, y, epochs=30, optimizer="adam", lr=0.01, validation=0.2, early_stopping=EarlyStopping(3))
assert max(history.val_accuracy) > 0.7, history
trainer = Trainer(net, loss="mse")
trainer.step(x, net(x))
assert (net(x).argmax(axis=1) == y).mean() > 0.7
assert "torch" not in sys.modules, "torch was imported"
print(history.loss[0])
"""


@pytest.mark.parametrize("disabled", ["", "1"], ids=["native", "fallback"])
def test_torch_is_never_imported(disabled):
    run = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", WITHOUT_TORCH],
        env=subprocess_environment(TWOLAYER_DISABLE_NATIVE=disabled, TWOLAYER_REQUIRE_NATIVE="0"),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert math.isfinite(float(run.stdout))


# Prediction


@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_calls_predict_as_the_torch_net_does(activation, dtype):
    torch_net = make_net(activation, dtype=dtype)
    net = numpy_twin(torch_net, activation)
    expected = torch_net(torch.from_numpy(X).to(dtype)).detach().numpy()
    y = net(X)
    assert (y.shape, y.dtype) == ((37, 5), net.w1.dtype)
    np.testing.assert_array_equal(y, expected)
    exact = reference.forward(X, *(a.astype(np.float64) for a in net.parameters().values()), activation)[0]
    np.testing.assert_allclose(y, exact, rtol=1e-4 if dtype is torch.float32 else 1e-12, atol=1e-6)


@pytest.mark.parametrize("x", [X[::-1], np.asfortranarray(X), X.astype(">f8"), X.astype(np.float32).astype(np.float64)])
def test_calls_take_any_layout(x):
    net = NumpyNet(9, 20, 5, dtype=np.float64)
    np.testing.assert_array_equal(net(x), net(np.array(x, np.float64, order="C")))


def test_no_rows_give_no_rows():
    assert NumpyNet(9, 20, 5)(X[:0]).shape == (0, 5)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[0], ValueError, r"x must have shape \(rows, 9\), as w1 is \(20, 9\); got \(9,\)"),
        (X[:, :8], ValueError, r"x must have shape \(rows, 9\), as w1 is \(20, 9\); got \(37, 8\)"),
        (X.astype(complex), TypeError, "x must hold real numbers; got complex128"),
        (np.full((3, 9), "a"), TypeError, "x must hold real numbers; got <U1"),
    ],
)
def test_calls_with_other_inputs_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        NumpyNet(9, 20, 5)(x)


# Construction, copies, refusals


@pytest.mark.parametrize("dtype", [np.float32, "float64"])
def test_initial_weights_are_uniform_as_those_of_linear(dtype):
    net = NumpyNet(100, 400, 30, seed=1, dtype=dtype)
    for name, fan_in in (("w1", 100), ("b1", 100), ("w2", 400), ("b2", 400)):
        array = getattr(net, name)
        limit = 1 / math.sqrt(fan_in)
        assert array.dtype == dtype
        assert np.abs(array).max() <= limit * (1 + 1e-6)
        assert np.abs(array).max() > 0.9 * limit
        assert abs(array.mean()) < 5 * limit / math.sqrt(3 * array.size)
    assert [getattr(net, name).shape for name in NAMES] == [(400, 100), (400,), (30, 400), (30,)]


def test_the_seed_says_which():
    assert_same_arrays(NumpyNet(9, 20, 5, seed=7), NumpyNet(9, 20, 5, seed=7))
    one, other = NumpyNet(9, 20, 5, seed=7), NumpyNet(9, 20, 5, seed=8)
    assert not any(np.array_equal(getattr(one, name), getattr(other, name)) for name in NAMES)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_copies_are_whole_and_apart(copied, bias):
    net = NumpyNet(9, 20, 5, "gelu", bias, seed=2)
    before = copy.deepcopy(net.parameters())
    twin = copied(net)
    assert repr(twin) == repr(net) == f"NumpyNet(9, 20, 5, activation='gelu', bias={bias})"
    np.testing.assert_array_equal(twin(X), net(X))
    history = fit(twin, X, Y)
    np.testing.assert_equal(net.parameters(), before)
    assert fit(net, X, Y).loss == history.loss
    assert_same_arrays(net, twin)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 20, 5), ValueError, "in_features must be at least 1 and below .*; got 0"),
        ((9, 20.0, 5), TypeError, "hidden_features must be an integer; got float"),
        ((9, 20, -1), ValueError, "out_features must be at least 1 and below .*; got -1"),
        ((9, 20, 5, "tahn"), ValueError, r"activation must be one of .*; got 'tahn' \(did you mean 'tanh'\?\)"),
        ((9, 20, 5, "tanh", 1), TypeError, "bias must be True or False; got 1"),
        ((9, 20, 5, "tanh", True, -1), ValueError, "seed must be at least 0 and below .*; got -1"),
        ((9, 20, 5, "tanh", True, 0, np.float16), ValueError, "dtype must be float32 or float64; got float16"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        NumpyNet(*arguments)


def with_parameter(name, array):
    net = NumpyNet(9, 20, 5)
    setattr(net, name, array)
    return net


def read_only(array):
    array.flags.writeable = False
    return array


def overlapping():
    net = NumpyNet(9, 9, 9)
    net.w2 = net.w1
    return net


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (
            with_parameter("w1", np.zeros((20, 9))),
            ValueError,
            "net's parameters must all be float32 or all float64; got",
        ),
        (with_parameter("w1", np.zeros((9, 20), np.float32).T), ValueError, "net's w1 must be contiguous; its strides"),
        (
            with_parameter("w1", read_only(np.zeros((20, 9), np.float32))),
            ValueError,
            "net's w1 must be writable; it is",
        ),
        (
            with_parameter("b1", np.zeros(19, np.float32)),
            ValueError,
            r"net's b1 must have shape \(20,\); it has \(19,\)",
        ),
        (
            with_parameter("w2", np.zeros((5, 19), np.float32)),
            ValueError,
            r"net's w2 must have shape \(5, 20\); it has",
        ),
        (
            with_parameter("b2", np.zeros(5, int)),
            ValueError,
            "net's parameters must all be float32 or all float64; got",
        ),
        (
            with_parameter("w1", np.zeros(9, np.float32)),
            ValueError,
            r"net's w1 must have two dimensions; it has \(9,\)",
        ),
        (with_parameter("w1", [[1.0]]), TypeError, "net's w1 must be a NumPy array; got list"),
        (overlapping(), ValueError, "net's w1 and w2 must not share memory to be trained by fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_nets_with_other_arrays_are_refused(net, error, message):
    with pytest.raises(error, match=message):
        fit(net, X, Y)


def test_a_net_that_became_another_is_refused():
    net = NumpyNet(9, 20, 5)
    trainer = Trainer(net)
    net.b1 = None
    with pytest.raises(ValueError, match=r"net must stay what .*, 9 → 20 → 5, sigmoid, float32, w1 b1 w2 b2; it is"):
        trainer.step(X, Y)


@pytest.mark.parametrize("net", [None, 3, [np.zeros((20, 9))]])
def test_what_is_no_net_is_refused(net):
    with pytest.raises(TypeError, match="net must be a TwoLayerNet"):
        fit(net, X, Y)


def test_it_is_public():
    assert twolayer.NumpyNet is NumpyNet
