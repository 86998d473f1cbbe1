"""The prepared predictor: its numbers, its bits, what it takes and refuses, and that it leaves the net alone."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from cases import BOUNDS, CASES, DTYPES, MNIST, Case, Shape, ground_truth, name_of, problem
from native_runs import results_on, subprocess_environment
from torch import nn

import twolayer
from twolayer import NumpyNet, TwoLayerNet, _core, _native, fit
from twolayer.predictor import Predictor, Weights
from twolayer.reference import numpy as reference

PREDICTED = [case for case in CASES if case.dtype != torch.bfloat16]  # which is predicted in float32
every_case = pytest.mark.parametrize("case", PREDICTED, ids=str)
every_isa = pytest.mark.parametrize("isa", _core.isas_available())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)

WIDE = Shape(100, 70, 300, 40)  # several blocks of hidden units, and panels of outputs
DEEP = Shape(7, 700, 400, 150)  # work for two threads in seven rows, which is then divided by units


def weights_of(case):
    given = problem(case)
    return Weights(*(None if t is None else t.numpy() for t in given[1:5]), case.activation)


def make_predictor(case, threads=1):
    return Predictor(lambda: weights_of(case), threads)


def make_x(case):
    return problem(case).x.numpy()


def assert_near_the_truth(y, case):
    exact = ground_truth(case)["y"]
    assert y.shape == exact.value.shape
    error = exact.error_of(torch.from_numpy(y))
    assert error <= BOUNDS[case.dtype], f"{error:.3g} eps off"


def small(activation="tanh", dtype=np.float32, bias=True):
    return NumpyNet(9, 20, 5, activation, bias, seed=3, dtype=dtype)


@pytest.fixture(params=["native", "fallback"])
def run_by(request, monkeypatch):
    """Both what runs natively and what runs where the native library is not loaded."""
    if request.param == "fallback":
        monkeypatch.setattr(_native, "core", None)
        monkeypatch.setattr(_native, "core_error", "the test says so")
        monkeypatch.setattr(_native, "_require_native", False)
        monkeypatch.setattr(_native, "_announced", set())
        monkeypatch.setattr(_native, "announce", lambda message, stacklevel: None)


X = np.random.default_rng(0).standard_normal((37, 9))


# Values


@every_case
def test_table(case):
    assert_near_the_truth(make_predictor(case)(make_x(case)), case)


@every_dtype
@pytest.mark.parametrize("without", [("b1",), ("b2",), ("b1", "b2")], ids=" ".join)
def test_missing_biases(dtype, without):
    case = Case(WIDE, "gelu", dtype, without=without)
    assert_near_the_truth(make_predictor(case)(make_x(case)), case)


@every_isa
@every_case
def test_isa(case, isa):
    assert_near_the_truth(results_on(isa)[f"{case}: predicted"], case)


@pytest.mark.parametrize("case", [Case(MNIST, "relu", dtype) for dtype in (torch.float32, torch.float64)], ids=str)
def test_another_process_gives_the_same_bits(case):
    np.testing.assert_array_equal(make_predictor(case)(make_x(case)), results_on(_core.isa())[f"{case}: predicted"])


@every_dtype
def test_numbers_that_are_not_finite_stay_in_their_rows_and_outputs(dtype):
    case = Case(Shape(11, 17, 33, 5), "relu", dtype)
    x = make_x(case).copy()
    finite = make_predictor(case)(x)
    x[4, 3], x[7, 0] = np.nan, np.inf
    y = make_predictor(case)(x)
    untouched = [i for i in range(11) if i not in (4, 7)]
    np.testing.assert_array_equal(y[untouched], finite[untouched])
    assert np.isnan(y[4]).all()
    assert not np.isfinite(y[7]).any()
    weights = weights_of(case)
    weights.w2[2, 1] = np.nan
    y = Predictor(lambda: weights, 1)(make_x(case))
    assert (np.isnan(y) == (np.arange(5) == 2)).all()


@pytest.mark.parametrize("sizes", list(itertools.product([0, 3], repeat=3)), ids=str)
def test_features_may_be_none(sizes):
    inputs, hidden, outputs = sizes
    rng = np.random.default_rng(1)
    shapes = [(hidden, inputs), (hidden,), (outputs, hidden), (outputs,)]
    weights = Weights(*(rng.standard_normal(shape) for shape in shapes), "sigmoid")
    x = rng.standard_normal((4, inputs))
    expected = reference.forward(x, *weights)[0]
    np.testing.assert_allclose(Predictor(lambda: weights, 2)(x), expected, rtol=1e-13)


# The same bits


@every_dtype
@pytest.mark.parametrize("shape", [WIDE, DEEP, MNIST, Shape(600, 30, 300, 40)], ids=str)
def test_neither_threads_nor_other_rows_change_a_bit(shape, dtype):
    case = Case(shape, "sigmoid", dtype)
    x = make_x(case)
    alone = np.stack([make_predictor(case)(row) for row in x])
    for threads in (1, 2, 3, 8, 40):
        predictor = make_predictor(case, threads)
        np.testing.assert_array_equal(predictor(x), alone, err_msg=f"{threads} threads")
        for rows in range(1, min(20, len(x))):
            np.testing.assert_array_equal(predictor(x[-rows:]), alone[-rows:], err_msg=f"{threads} threads")


def test_the_deep_case_is_divided_by_units():
    assert DEEP.batch * (DEEP.in_features + DEEP.out) * DEEP.hidden > 2 * 400_000


def test_saturated_units_are_predicted_without_subnormal_numbers():
    # exp(−90) is subnormal in float32; the outputs do not show it.
    net = NumpyNet(1, 16, 1, "sigmoid", bias=False)
    net.w1[:], net.w2[:] = -90, 1e38
    assert net.predictor()(np.ones((1, 1), np.float32)) == 0


# Inputs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        lambda x: np.frombuffer(b"?" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: x[:, None, :].squeeze(),
        lambda x: x.tolist(),
        lambda x: torch.from_numpy(x.copy()),
        lambda x: x.view(np.matrix),
        lambda x: x[0],
        lambda x: x[0][::-1].copy()[::-1],
        lambda x: x[:0],
    ],
    ids=[
        *("plain", "fortran", "rows", "columns", "reversed", "byteorder", "unaligned", "broadcast", "squeezed"),
        *("list", "tensor", "matrix", "one row", "one row reversed", "no rows"),
    ],
)
def test_takes_any_layout(make, dtype):
    net = small(dtype=dtype)
    given = make(X.astype(dtype))
    plain = np.asarray(given).astype(dtype, order="C")
    y = net.predictor()(given)
    assert type(y) is np.ndarray
    assert y.dtype == dtype
    assert y.shape == (*plain.shape[:-1], 5)
    np.testing.assert_array_equal(y, net.predictor()(plain))
    exact = reference.forward(
        np.atleast_2d(plain.astype(float)), *(a.astype(float) for a in net._weights()[:4]), "tanh"
    )
    np.testing.assert_allclose(np.atleast_2d(y), exact[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint8, np.int64, bool, np.longdouble])
def test_other_numbers_are_converted(kind):
    x = (4 * X).astype(kind)
    predictor = small().predictor()
    np.testing.assert_array_equal(predictor(x), predictor(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[:, :8], ValueError, r"^x must have shape \(rows, 9\) or \(9,\); got \(37, 8\)$"),
        (X[0, :8], ValueError, r"^x must have shape \(rows, 9\) or \(9,\); got \(8,\)$"),
        (X[None], ValueError, r"^x must have shape \(rows, 9\) or \(9,\); got \(1, 37, 9\)$"),
        (np.float32(3), ValueError, r"^x must have shape .*; got \(\)$"),
        (X.astype(complex), TypeError, "^x must hold real numbers; got complex128$"),
        (np.full((3, 9), "a"), TypeError, "^x must hold real numbers; got <U1$"),
        (np.full((3, 9), None), TypeError, "^x must hold real numbers; got object$"),
        (np.zeros((3, 9), "M8[s]"), TypeError, r"^x must hold real numbers; got datetime64\[s\]$"),
        (None, TypeError, "^x must hold real numbers; got object$"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_inputs_are_refused(x, error, message, dtype, run_by):
    if isinstance(x, np.ndarray) and x.dtype == np.float64:
        x = x.astype(dtype)
    with pytest.raises(error, match=message):
        small(dtype=dtype).predictor()(x)


# Outputs


@pytest.mark.parametrize("x", [X, X[0], X[:0]], ids=["rows", "one row", "no rows"])
def test_out_is_written_and_returned(x, run_by):
    predictor = small(dtype=np.float64).predictor()
    out = np.full((*x.shape[:-1], 5), np.nan)
    assert predictor(x, out) is out
    np.testing.assert_array_equal(out, predictor(x))
    out[:] = np.nan
    assert predictor(x.astype(np.float32), out=out) is out  # after x was converted
    assert np.isfinite(out).all()


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((37, 4), np.float32), ValueError, r"^out must have shape \(37, 5\); got \(37, 4\)"),
        (np.empty((38, 5), np.float32), ValueError, r"^out must have shape \(37, 5\); got \(38, 5\)"),
        (np.empty(5, np.float32), ValueError, r"^out must have shape \(37, 5\); got \(5,\)"),
        (np.empty((37, 5)), TypeError, "^out must be float32; got float64"),
        (np.empty((5, 37), np.float32).T, ValueError, "^out must be contiguous"),
        (read_only(np.empty((37, 5), np.float32)), ValueError, "^out must be .*writable"),
        ([[0.0] * 5] * 37, TypeError, "^out must be .*a NumPy array; got list"),
    ],
)
def test_other_outputs_are_refused(out, error, message, run_by):
    with pytest.raises(error, match=message):
        small().predictor()(X.astype(np.float32), out)


@pytest.mark.parametrize("first", [0, 1, 8, 36 * 9 + 8])
@pytest.mark.parametrize("reverse", [False, True])
def test_outputs_over_the_inputs_are_refused(first, reverse, run_by):
    memory = np.zeros(37 * 9 + 37 * 5, np.float32)
    x, out = memory[: 37 * 9].reshape(37, 9), memory[first:][: 37 * 5]
    with pytest.raises(ValueError, match="out must not share memory with x"):
        small().predictor()(x[::-1] if reverse else x, out.reshape(37, 5))


def test_outputs_beside_the_inputs_are_not(run_by):
    memory = np.zeros(37 * 5 + 37 * 9 + 37 * 5, np.float32)
    before, x, after = np.split(memory, [37 * 5, 37 * 14])
    for out, rows in itertools.product((before, after), (x.reshape(37, 9), x.reshape(37, 9)[::-1])):
        small().predictor()(rows, out.reshape(37, 5))


# Nets


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("bias", [True, False])
def test_torch_nets(dtype, bias):
    net = TwoLayerNet(9, 20, 5, "gelu", bias, dtype=dtype)
    predictor = net.predictor()
    assert predictor.dtype == (np.float64 if dtype is torch.float64 else np.float32)
    y = predictor(X)
    weights = [p.detach().double().numpy() for p in net.parameters()]
    w1, b1, w2, b2 = weights if bias else (weights[0], None, weights[1], None)
    exact = reference.forward(X, w1, b1, w2, b2, "gelu")[0]
    np.testing.assert_allclose(y, exact, rtol=1e-4 if dtype is not torch.float64 else 1e-12, atol=1e-6)
    np.testing.assert_allclose(y, net(torch.from_numpy(X).to(dtype)).detach().double(), atol=0.05)


def test_a_net_with_one_float64_layer_is_computed_in_float64():
    net = TwoLayerNet(9, 20, 5)
    net[2].double()
    assert net.predictor()(X).dtype == np.float64


def test_shared_modules_and_columns_of_larger_weights_are_read_as_they_are():
    net = TwoLayerNet(9, 20, 5)
    net[0].weight = nn.Parameter(torch.randn(9, 20).T)
    expected = net(torch.from_numpy(X).float()).detach().numpy()
    np.testing.assert_allclose(net.predictor()(X), expected, rtol=1e-4, atol=1e-6)
    twin = TwoLayerNet.from_sequential(net.to_sequential())
    np.testing.assert_array_equal(twin.predictor()(X), net.predictor()(X))


@pytest.mark.parametrize("make", [lambda: NumpyNet(9, 20, 5), lambda: TwoLayerNet(9, 20, 5)], ids=["numpy", "torch"])
def test_training_shows_after_refresh(make, run_by):
    net = make()
    predictor = net.predictor()
    before = predictor(X)
    fit(net, X.astype(np.float32), np.arange(37) % 5, lr=0.5)
    np.testing.assert_array_equal(predictor(X), before)
    predictor.refresh()
    after = predictor(X)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(after, net.predictor()(X))


def test_refresh_follows_a_net_that_took_another_form():
    net = small()
    predictor = net.predictor()
    other = NumpyNet(7, 30, 2, "relu", bias=False, dtype=np.float64)
    vars(net).update(vars(other))
    predictor.refresh()
    assert repr(predictor) == repr(other.predictor())
    np.testing.assert_array_equal(predictor(X[:, :7]), other.predictor()(X[:, :7]))


def test_a_net_that_is_no_longer_plain_is_refused_and_the_predictor_stays():
    net = TwoLayerNet(9, 20, 5)
    predictor = net.predictor()
    before = predictor(X)
    net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="net must be Linear → activation → Linear, without hooks"):
        net.predictor()
    with pytest.raises(ValueError, match="net must be Linear → activation → Linear, without hooks"):
        predictor.refresh()
    np.testing.assert_array_equal(predictor(X), before)


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("w1", np.zeros(9, np.float32), ValueError, r"net's w1 must have two dimensions; it has \(9,\)"),
        ("w2", np.zeros((5, 19), np.float32), ValueError, r"net's w2 must have shape \(5, 20\); it has \(5, 19\)"),
        ("b1", np.zeros(19, np.float32), ValueError, r"net's b1 must have shape \(20,\); it has \(19,\)"),
        ("b2", [0.0] * 5, TypeError, "net's b2 must be a NumPy array; got list"),
        ("b2", np.zeros(5, complex), ValueError, "net's parameters must be float32 or float64; got .*complex128"),
    ],
)
def test_nets_with_other_arrays_are_refused(name, array, error, message):
    net = small()
    setattr(net, name, array)
    with pytest.raises(error, match=message):
        net.predictor()


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (0, ValueError, "threads must be at least 1 and below .*; got 0"),
        (1.0, TypeError, "threads must be an integer; got float"),
        (True, TypeError, "threads must be an integer; got bool"),
    ],
)
def test_other_threads_are_refused(threads, error, message):
    with pytest.raises(error, match=message):
        small().predictor(threads)


def test_what_it_says_of_itself(monkeypatch):
    monkeypatch.setenv("TWOLAYER_NUM_THREADS", "3")
    predictor = small().predictor()
    assert repr(predictor) == "Predictor(9, 20, 5, activation='tanh', dtype=float32, threads=3)"
    assert predictor.threads == 3
    assert small().predictor(threads=2).threads == 2


# Without torch, without the library, and in several threads

WITHOUT_TORCH = """
import sys
import numpy as np
from twolayer import NumpyNet
net = NumpyNet(9, 20, 5)
predictor = net.predictor()
x = np.random.default_rng(0).standard_normal((37, 9)).astype(np.float32)
np.testing.assert_allclose(predictor(x), net(x), rtol=1e-5, atol=1e-6)
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize("disabled", ["", "1"], ids=["native", "fallback"])
def test_torch_is_not_imported_and_a_missing_library_is_announced_once(disabled):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        env=subprocess_environment(TWOLAYER_DISABLE_NATIVE=disabled, TWOLAYER_REQUIRE_NATIVE="0"),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("TWOLAYER_DISABLE_NATIVE is set") == bool(disabled)


@pytest.mark.parametrize("shape", [Shape(3, 9, 20, 5), MNIST, DEEP], ids=str)
def test_calls_from_several_threads_do_not_meet(shape):
    case = Case(shape, "tanh", torch.float32)
    predictor = make_predictor(case, threads=2)
    inputs = [np.roll(make_x(case), i, axis=1).copy() for i in range(4)]
    expected = [predictor(x) for x in inputs]
    wrong = []

    def call(x, y):
        for i in range(60):
            if not np.array_equal(predictor(x), y):
                wrong.append(x)
            if i % 10 == 0:
                predictor.refresh()

    threads = [threading.Thread(target=call, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert twolayer.info()["native"]["_core"]["loaded"]


# What _core itself refuses


def test_core_refuses_weights_that_do_not_meet():
    w1, b1, w2, b2, _ = small()._weights()
    for arguments, message in [
        ((w1[0], b1, w2, b2, 0, 1), "w1 must have shape"),
        ((w1, b1[1:], w2, b2, 0, 1), "b1 must have shape"),
        ((w1, b1, w2[:, 1:], b2, 0, 1), "w2 must have shape"),
        ((w1, b1, w2, b2[1:], 0, 1), "b2 must have shape"),
        ((w1.T, b1, w2, b2, 0, 1), "w1 must be contiguous"),
        ((w1, b1, w2, b2, 99, 1), "activation must be an id"),
        ((w1, b1, w2, b2, 0, 0), "threads must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            _core.PredictorFloat32(*arguments)
    with pytest.raises(TypeError, match="w1 must be float64; got float32"):
        _core.PredictorFloat64(w1, b1, w2, b2, 0, 1)
