"""``two_layer`` against the same net in plain torch ops: values, derivatives, transforms, and what it refuses."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from torch import Tensor, func
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from twolayer import _native, _ops, two_layer
from twolayer.reference import numpy as ground_truth
from twolayer.reference import torch as reference
from twolayer.registry import ACTIVATIONS

needs_native = pytest.mark.skipif(_native.core is None, reason=f"native library: {_native.core_error}")
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
NAMES = ("x", "w1", "b1", "w2", "b2")


def arguments(batch=(6,), features=5, hidden=7, out=3, dtype=torch.float64, bias=True, grad=False, seed=0):
    """Random (x, w1, b1, w2, b2)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*batch, features), (hidden, features), (hidden,), (out, hidden), (out,))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    if not bias:
        tensors[2] = tensors[4] = None
    return [t if t is None else t.requires_grad_(grad) for t in tensors]


def detached(tensors, grad=True):
    return [t if t is None else t.detach().clone().requires_grad_(grad) for t in tensors]


def output_weights(y):
    """The gradient given to ``y``: float32 numbers in every dtype, whose sums do not cancel."""
    return torch.linspace(-1, 2, y.numel(), dtype=torch.float32).to(y.dtype).view_as(y)


def value_and_gradients(function, tensors, activation):
    tensors = detached(tensors)
    y = function(*tensors, activation)
    inputs = [t for t in tensors if t is not None]
    return y, *torch.autograd.grad(y, inputs, output_weights(y))


# Values and first derivatives


@every_activation
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (6,), (0,), (2, 3), (2, 0, 3)])
def test_equals_plain_torch_ops(activation, bias, batch):
    tensors = arguments(batch, bias=bias)
    ours = value_and_gradients(two_layer, tensors, activation)
    plain = value_and_gradients(reference.two_layer, tensors, activation)
    assert ours[0].shape == (*batch, 3)
    assert_close(ours, plain)


@every_activation
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13), (torch.bfloat16, 3e-2)]
)
def test_is_near_the_ground_truth(activation, dtype, tolerance):
    tensors = arguments((33,), 20, 50, 9, dtype)
    y = two_layer(*tensors, activation)
    truth, _, _ = ground_truth.forward(*(t.double().numpy() for t in tensors), activation)
    error = np.linalg.norm(y.double().numpy() - truth) / np.linalg.norm(truth)
    assert y.dtype == dtype
    assert error < tolerance


@pytest.mark.parametrize("wanted", NAMES)
def test_gives_only_the_gradient_asked_for(wanted):
    tensors = arguments()
    plain = dict(zip(NAMES, value_and_gradients(reference.two_layer, tensors, "tanh")[1:], strict=True))
    named = dict(zip(NAMES, detached(tensors, grad=False), strict=True))
    named[wanted].requires_grad_()
    y = two_layer(**named, activation="tanh")
    y.backward(output_weights(y))
    assert {name for name, tensor in named.items() if tensor.grad is not None} == {wanted}
    assert_close(named[wanted].grad, plain[wanted])


def test_non_contiguous_arguments_and_gradient():
    tensors = [t.T.contiguous().T if t.ndim == 2 else torch.stack([t, t], 1)[:, 0] for t in arguments()]
    assert not any(t.is_contiguous() for t in tensors)
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = two_layer(*leaves, "silu")
    grad_y = torch.randn(3, 6, dtype=y.dtype).T
    plain = reference.two_layer(*leaves, "silu")
    assert_close(y, plain)
    assert_close(torch.autograd.grad(y, leaves, grad_y), torch.autograd.grad(plain, leaves, grad_y))


def test_expanded_gradient_of_a_sum():
    ours, plain = (detached(arguments()) for _ in range(2))
    two_layer(*ours, "gelu").sum().backward()
    reference.two_layer(*plain, "gelu").sum().backward()
    assert_close([t.grad for t in ours], [t.grad for t in plain])


def test_in_place_change_between_forward_and_backward_is_refused():
    tensors = detached(arguments())
    y = two_layer(*tensors, "relu").sum()
    with torch.no_grad():
        tensors[3].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_no_graph_where_no_gradient_is_wanted():
    tensors = detached(arguments())
    with torch.no_grad():
        assert not two_layer(*tensors).requires_grad
    with torch.inference_mode():
        assert two_layer(*tensors).is_inference()
    assert two_layer(*detached(tensors, grad=False)).grad_fn is None


@pytest.mark.filterwarnings("ignore:twolayer has no native kernel for a Labelled")
def test_tensor_subclass_without_dispatch_keeps_its_class():
    class Labelled(torch.Tensor):
        pass

    x, *rest = arguments()
    y = two_layer(x.as_subclass(Labelled), *rest)
    assert type(y) is Labelled
    assert_close(y.as_subclass(torch.Tensor), two_layer(x, *rest))


# Higher derivatives and function transforms


@every_activation
def test_gradcheck_and_gradgradcheck(activation):
    tensors = arguments((3,), 4, 5, 2, grad=True, seed=1)
    assert gradcheck(lambda *t: two_layer(*t, activation), tensors, check_batched_grad=True)
    assert gradgradcheck(lambda *t: two_layer(*t, activation), tensors)


def test_gradgradcheck_without_biases_and_in_leading_dimensions():
    x, w1, _, w2, _ = arguments((2, 2), 3, 4, 2, grad=True)
    assert gradgradcheck(lambda x, w1, w2: two_layer(x, w1, None, w2, None, "gelu"), (x, w1, w2))


def test_third_derivative():
    def third(function):
        x, *rest = arguments((2,), 3, 4, 2)
        x.requires_grad_()
        value = function(x, *rest, "tanh").sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.square().sum()
        return gradient

    assert_close(third(two_layer), third(reference.two_layer))


@pytest.mark.parametrize("transform", [func.grad, func.jacrev, func.jacfwd, func.hessian])
def test_func_derivatives(transform):
    tensors = arguments((3,))

    def scalar(function):
        return lambda w1, b1: function(tensors[0], w1, b1, *tensors[3:], "sigmoid").square().sum()

    transformed = [transform(scalar(f), argnums=(0, 1))(*tensors[1:3]) for f in (two_layer, reference.two_layer)]
    assert_close(*transformed)


def test_func_vmap_over_inputs_and_over_ensembles():
    x, *weights = arguments((4, 6))
    in_rows = func.vmap(two_layer, in_dims=(0, None, None, None, None, None))(x, *weights, "relu")
    assert_close(in_rows, two_layer(x, *weights, "relu"))
    nets = [arguments(seed=seed)[1:] for seed in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*nets, strict=True)]
    ensemble = func.vmap(two_layer, in_dims=(None, 0, 0, 0, 0, None))(x[0], *stacked, "relu")
    assert_close(ensemble, torch.stack([two_layer(x[0], *net, "relu") for net in nets]))


def test_per_sample_gradients():
    x, *weights = arguments((5,))
    gradient = func.grad(lambda w1, row: two_layer(row, w1, *weights[1:], "silu").sum())
    per_sample = func.vmap(gradient, in_dims=(None, 0))(weights[0], x)
    assert_close(per_sample, torch.stack([gradient(weights[0], row) for row in x]))


def test_forward_mode_derivative():
    x, *weights = arguments()
    tangent = torch.ones_like(x)
    with forward_ad.dual_level():
        ours, plain = (
            forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent), *weights, "tanh")).tangent
            for function in (two_layer, reference.two_layer)
        )
    assert_close(ours, plain)


# Autocast, meta and fake tensors


def test_autocast_casts_as_linear_does():
    tensors = detached(arguments(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = two_layer(*tensors, "relu")
        plain = reference.two_layer(*detached(tensors), "relu")
    assert y.dtype == plain.dtype == torch.bfloat16
    assert_close(y, plain, atol=5e-2, rtol=5e-2)
    y.sum().backward()
    assert {t.grad.dtype for t in tensors} == {torch.float32}


def test_autocast_admits_mixed_dtypes_but_leaves_float64_alone():
    x, *weights = arguments(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert two_layer(x.bfloat16(), *weights).dtype == torch.bfloat16
        assert two_layer(*arguments()).dtype == torch.float64


@pytest.mark.parametrize("batch", [(6,), (0,), (2, 3), ()])
def test_meta_and_fake_tensors_have_the_right_shape(batch):
    y = two_layer(*(t.to("meta") for t in arguments(batch, dtype=torch.bfloat16)))
    assert (y.device.type, y.shape, y.dtype) == ("meta", (*batch, 3), torch.bfloat16)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in arguments(batch)]
        y = two_layer(*fakes)
        gradients = torch.autograd.grad(y.sum(), fakes)
    assert y.shape == (*batch, 3)
    assert [g.shape for g in gradients] == [t.shape for t in fakes]


# Refusals


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x", (6, 4)),
        ("w1", (7,)),
        ("w1", (7, 5, 1)),
        ("b1", (1,)),
        ("b1", (7, 1)),
        ("w2", (3, 6)),
        ("w2", (7,)),
        ("b2", (1,)),
    ],
)
def test_wrong_shape_names_the_argument(name, shape):
    named = dict(zip(NAMES, arguments(), strict=True))
    named[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^{name} must have shape .*got {str(shape)[:-1]}".replace("(", r"\(")):
        two_layer(**named)


def test_scalar_x_is_refused():
    with pytest.raises(ValueError, match=r"^x must have shape \(\.\.\., 5\)"):
        two_layer(torch.tensor(1.0, dtype=torch.float64), *arguments()[1:])


@pytest.mark.parametrize("name", NAMES)
def test_other_dtype_and_other_device_and_no_tensor_are_refused(name):
    tensors = dict(zip(NAMES, arguments(), strict=True))
    with pytest.raises(TypeError, match=rf"one dtype; got .*{name} torch\.float32"):
        two_layer(**{**tensors, name: tensors[name].float()})
    with pytest.raises(ValueError, match=rf"one device; got .*{name} meta"):
        two_layer(**{**tensors, name: tensors[name].to("meta")})
    with pytest.raises(TypeError, match=rf"must be tensors.*{name} <class 'numpy.ndarray'>"):
        two_layer(**{**tensors, name: tensors[name].numpy()})


def test_missing_weight_is_refused():
    x, w1, b1, _, b2 = arguments()
    with pytest.raises(TypeError, match="w2 must be tensors"):
        two_layer(x, w1, b1, None, b2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_dtypes_that_are_not_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match="floating-point"):
        two_layer(*(t.to(dtype) for t in arguments()))


@pytest.mark.parametrize(("activation", "error"), [("sigmiod", ValueError), (None, TypeError), ([], TypeError)])
def test_unknown_activation_is_refused(activation, error):
    with pytest.raises(error, match=r"^activation must be"):
        two_layer(*arguments(), activation)


# The short way of plain calls


def fast_calls(monkeypatch):
    """Return a list that gets what each native call for a plain forward pass returned."""
    results, call = [], _ops._core.plain_forward

    class Core:
        def __getattr__(self, name):
            return getattr(_native.core, name)

        def plain_forward(self, *arguments):
            results.append(call(*arguments))
            return results[-1]

    monkeypatch.setattr(_ops, "_core", Core())
    return results


def _negated(t):
    return (torch.complex(torch.zeros_like(t), -t)).conj().imag


@needs_native
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [lambda t: torch.stack([t, t], -1)[..., 0], lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag],
    ids=["strided", "negated view"],
)
def test_what_is_not_plain_goes_the_careful_way(change, name, monkeypatch):
    named = dict(zip(NAMES, arguments(), strict=True))
    expected = reference.two_layer(*named.values(), "tanh")
    named[name] = change(named[name])
    calls = fast_calls(monkeypatch)
    assert_close(two_layer(**named, activation="tanh"), expected)
    assert calls
    assert all(result is None for result in calls)


@needs_native
def test_plain_call_is_taken_and_grad_mode_decides_what_it_saves(monkeypatch):
    tensors, calls = arguments(grad=True), fast_calls(monkeypatch)
    assert two_layer(*tensors).requires_grad
    with torch.no_grad():
        two_layer(*tensors)
    two_layer(*detached(tensors, grad=False))
    assert [type(result) for result in calls] == [tuple, Tensor, Tensor]


def test_a_function_mode_sees_the_call():
    seen = []

    class Log(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Log():
        two_layer(*arguments())
    assert two_layer in seen


@every_activation
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_jit_trace_holds_operations_and_not_their_results(activation, grad):
    traced = torch.jit.trace(lambda *tensors: two_layer(*tensors, activation), arguments(grad=grad))
    others = arguments((4,), seed=1)
    assert_close(traced(*others), two_layer(*others, activation))


@needs_native
def test_a_dispatch_mode_sees_both_passes():
    seen = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    y = two_layer(*arguments(grad=True), "gelu")
    with Log():
        y.sum().backward()
    assert "twolayer.backward.default" in seen


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("batch", [9, 400], ids=["small", "large"])
def test_what_is_kept_for_backward_gives_the_bits_that_the_op_computes_again(activation, dtype, batch):
    features, hidden = (5, 7) if batch == 9 else (500, 600)
    tensors = arguments((batch,), features, hidden, 3, dtype)
    kept = value_and_gradients(two_layer, tensors, activation)
    y, saved = torch.ops.twolayer.forward_saved(*tensors, activation)
    x, w1, _, w2, _ = tensors
    again = torch.ops.twolayer.backward(output_weights(y), x, w1, w2, saved, activation, [True] * 5)
    for ours, expected in zip(kept, (y, *again), strict=True):
        assert torch.equal(ours, expected)


@needs_native
def test_a_dispatch_mode_sees_the_op():
    seen = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Log():
        two_layer(*arguments())
    assert "twolayer.forward.default" in seen


# Large nets, whose products are torch's own


@needs_native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "batch", "tolerance"),
    [(torch.float32, 400, 1e-5), (torch.float64, 200, 1e-12), (torch.bfloat16, 60, 3e-2)],
)
@pytest.mark.parametrize("out", [30, 100], ids=["our products with w2", "torch's products with w2"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "gelu"])
def test_large_nets_are_near_the_ground_truth(activation, out, dtype, batch, tolerance, bias):
    tensors = arguments((batch,), 500, 600, out, dtype, bias)
    work = (batch, 500, 600, out, dtype.itemsize)
    if dtype is not torch.bfloat16:
        assert _native.core.forward_by_blas(*work)
        assert _native.core.backward_by_blas(*work)
        assert _native.core.outputs_by_blas(batch, 600, out, dtype.itemsize) == (out == 100)
    ours = value_and_gradients(two_layer, tensors, activation)
    truth = value_and_gradients(
        reference.two_layer, [t if t is None else t.detach().double() for t in tensors], activation
    )
    for mine, exact in zip(ours, truth, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - exact).norm() <= tolerance * exact.norm()


@needs_native
@pytest.mark.parametrize("out", [30, 100])
def test_large_net_gives_only_the_gradient_asked_for(out):
    tensors = arguments((300,), 500, 600, out)
    all_of_them = value_and_gradients(two_layer, tensors, "gelu")[1:]
    for position, name in enumerate(NAMES):
        named = dict(zip(NAMES, detached(tensors, grad=False), strict=True))
        named[name].requires_grad_()
        y = two_layer(**named, activation="gelu")
        y.backward(output_weights(y))
        assert {n for n, t in named.items() if t.grad is not None} == {name}
        assert_close(named[name].grad, all_of_them[position])


@needs_native
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_below_that_size_every_number_of_threads_gives_the_same_bits(activation):
    tensors = arguments((130,), 150, 170, 40, torch.float32)  # 4.2M multiply-adds: for several threads
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(value_and_gradients(two_layer, tensors, activation))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes_on_several_threads():
    tensors = arguments((130,), 150, 170, 40, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = two_layer(*tensors)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(two_layer(*tensors), expected) else 1)
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
    finally:
        torch.set_num_threads(before)
