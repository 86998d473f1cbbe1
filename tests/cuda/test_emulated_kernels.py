"""The CUDA kernels without a GPU: the case table on the emulated device, in guarded memory, in shuffled orders."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import BOUNDS, CASES, INPUTS, MNIST, SHAPES, Case, Exact, Problem, Shape, ground_truth, problem
from guarded_memory import GuardedMemory
from torch import Tensor

from twolayer.reference import numpy as numpy_reference
from twolayer.reference import torch as torch_reference
from twolayer.registry import ACTIVATIONS

pytest.importorskip("ninja", reason="the emulation is built with ninja")
import emulation

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation is written for g++ on Linux")

ALL_BOUNDS = BOUNDS | {torch.float16: 1}  # of numbers, in eps times their magnitude
RELATIVE_BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of norms
TF32_BOUND = 1e-3

ARITHMETICS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float64": (torch.float64, False),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
DEVICES = {
    "large": {},
    "without clusters": {"multiprocessors": 108, "shared_bytes": 163 << 10, "capability": 80},
    "small": {"multiprocessors": 2, "shared_bytes": 99 << 10, "capability": 120},  # makes tiles as large as they get
}
every_arithmetic = pytest.mark.parametrize("arithmetic", ARITHMETICS)
every_device = pytest.mark.parametrize("device", DEVICES)
# Under a sanitizer, which is slow: what is computed of a number touches no memory, so two activations will do.
SHOWN = ["tanh", "gelu"] if emulation.SANITIZERS else list(ACTIVATIONS)  # one saves its output, one its input
TABLE = [(shape, act) for shape, act in dict.fromkeys((c.shape, c.activation) for c in CASES) if act in SHOWN]
TABLE += [(MNIST, "relu")] if emulation.SANITIZERS else []
SMALL = Shape(7, 17, 33, 5)
WIDE_OUT = Shape(9, 12, 20, 150)  # more outputs than a block of the forward pass takes
PARTS = Shape(600, 20, 9, 3)  # a batch that blocks of the backward pass share


class Net:
    """A case's arrays in guarded memory, and the kernels on them."""

    def __init__(self, case: Case, tf32: bool = False, placement: str = "end", seed: int = 0) -> None:
        self.case, self.tf32 = case, tf32
        self.memory = GuardedMemory(placement)
        self.given = Problem(*(None if t is None else self.memory.copy(t) for t in problem(case, seed)))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.memory.empty(shape, dtype).fill_(0xFF if dtype is torch.uint8 else torch.nan)

    def empty_result(self, *shape: int) -> Tensor:
        return self.empty(shape, self.case.dtype)

    def call(self, name: str, arrays: list[Tensor | None]) -> None:
        activation = ACTIVATIONS[self.case.activation].id
        emulation.call_net(name, self.case.shape, activation, arrays, self.case.dtype, self.tf32, self.scratch)
        self.memory.check()

    def scratch(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that is aligned as torch's is, whatever its size; the sanitizer is its guard."""
        return torch.full(shape, 0xFF, dtype=dtype)

    def forward(self, save: bool = True) -> dict[str, Tensor]:
        batch, _, hidden, out = self.case.shape
        saved = self.empty_result(batch, hidden) if save else None
        y = self.empty_result(batch, out)
        self.call("forward", [*self.given[:5], saved, y, None, None])
        return {"y": y} | ({"saved": saved} if saved is not None else {})

    def backward(self, saved: Tensor, wanted: Collection[str] = INPUTS, h: Tensor | None = None) -> dict[str, Tensor]:
        batch, in_features, hidden, out = self.case.shape
        shapes = {"x": (batch, in_features), "w1": (hidden, in_features), "b1": (hidden,), "w2": (out, hidden)}
        shapes |= {"b2": (out,), "z": (batch, hidden)}
        gradients = {name: self.empty_result(*shape) if name in wanted else None for name, shape in shapes.items()}
        x, w1, _, w2, _, grad_y = self.given
        *five, grad_z = gradients.values()
        self.call("backward", [grad_y, x, w1, w2, saved, *five, h, grad_z])
        return {f"grad_{name}": gradient for name, gradient in gradients.items() if gradient is not None}

    def run(self) -> dict[str, Tensor]:
        results = self.forward()
        return results | self.backward(results["saved"])


def case_of(shape: Shape, activation: str, arithmetic: str) -> Case:
    return Case(shape, activation, ARITHMETICS[arithmetic][0])


def norm_error(result: Tensor, exact: Exact, of: str) -> float:
    """The norm of the error over the norm of the value, or of the magnitude; infinite where one is not a number."""
    difference, whole = np.linalg.norm(result.double().numpy() - exact.value), np.linalg.norm(getattr(exact, of))
    return 0 if difference == 0 else float(np.nan_to_num(difference / whole, nan=np.inf))


def assert_near_the_truth(results: dict[str, Tensor], case: Case, tf32: bool, seed: int = 0) -> None:
    for name, exact in ground_truth(case, seed).items():
        assert results[name].shape == exact.value.shape
        if tf32:
            assert norm_error(results[name], exact, "magnitude") < TF32_BOUND, name
        else:
            error = exact.error_of(results[name])
            assert error <= ALL_BOUNDS[case.dtype], f"{name} is {error:.3g} eps off"


def assert_same_bits(results: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert results.keys() == others.keys()
    for name, result in results.items():
        assert torch.equal(result.view(torch.uint8), others[name].view(torch.uint8)), name


# Values


@every_arithmetic
@pytest.mark.parametrize(("shape", "activation"), TABLE, ids=lambda part: str(part))
def test_table(shape, activation, arithmetic):
    case, tf32 = case_of(shape, activation, arithmetic), ARITHMETICS[arithmetic][1]
    placement = "start" if ACTIVATIONS[activation].id % 2 else "end"
    assert_near_the_truth(Net(case, tf32, placement).run(), case, tf32)


@every_arithmetic
def test_relative_error(arithmetic):
    """Of the tutorial's net, as a whole: what is promised of each arithmetic."""
    case, tf32 = case_of(MNIST, "relu", arithmetic), ARITHMETICS[arithmetic][1]
    results = Net(case, tf32).run()
    for name, exact in ground_truth(case).items():
        bound = TF32_BOUND if tf32 else RELATIVE_BOUNDS[case.dtype]
        assert norm_error(results[name], exact, "value") < bound, name


@every_device
@every_arithmetic
@pytest.mark.parametrize("shape", [*SHAPES[3:], WIDE_OUT, PARTS], ids=str)
def test_devices(shape, arithmetic, device):
    case, tf32 = case_of(shape, "gelu", arithmetic), ARITHMETICS[arithmetic][1]
    with emulation.device(**DEVICES[device]):
        assert_near_the_truth(Net(case, tf32).run(), case, tf32)


@every_arithmetic
@pytest.mark.parametrize("shape", [Shape(5, 0, 3, 2), Shape(5, 3, 0, 2), Shape(5, 3, 4, 0), Shape(0, 0, 0, 0)], ids=str)
def test_no_width(shape, arithmetic):
    case, tf32 = case_of(shape, "sigmoid", arithmetic), ARITHMETICS[arithmetic][1]
    assert_near_the_truth(Net(case, tf32).run(), case, tf32)


@every_arithmetic
@pytest.mark.parametrize("without", [("b1",), ("b2",), ("b1", "b2")], ids=" ".join)
def test_missing_biases(arithmetic, without):
    case = replace(case_of(SMALL, "tanh", arithmetic), without=without)
    tf32 = ARITHMETICS[arithmetic][1]
    assert_near_the_truth(Net(case, tf32).run(), case, tf32)


# What is asked for


@every_arithmetic
def test_what_is_not_saved_changes_nothing(arithmetic):
    case, tf32 = case_of(SMALL, "gelu", arithmetic), ARITHMETICS[arithmetic][1]
    with_saved, without = (Net(case, tf32).forward(save) for save in (True, False))
    assert_same_bits({"y": with_saved["y"]}, without)


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])  # one that saves its output, one that saves its input
def test_every_subset_of_gradients_has_the_same_bits(activation, arithmetic):
    net = Net(case_of(SMALL, activation, arithmetic))
    everything = net.run()
    for count in range(len(INPUTS) + 1):
        for subset in itertools.combinations(INPUTS, count):
            gradients = net.backward(everything["saved"], subset)
            assert_same_bits(gradients, {f"grad_{name}": everything[f"grad_{name}"] for name in subset})


@pytest.mark.parametrize("shape", [SMALL, WIDE_OUT], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("in_place", [True, False])
def test_hidden_layer_given_and_kept(activation, shape, in_place):
    net = Net(Case(shape, activation, torch.float64))
    batch, _, hidden, out = shape
    x, w1, b1, w2, b2, grad_y = net.given
    z = net.memory.copy(torch.nn.functional.linear(x, w1, b1))
    expected = net.run()
    h = z if in_place else net.empty_result(batch, hidden)
    y = net.empty_result(batch, out)
    z_before = z.clone()
    net.call("forward", [None, None, b1, w2, b2, None, y, z, h])
    value = torch_reference.ACTIVATIONS[activation]
    torch.testing.assert_close(h, value(z_before), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(y, expected["y"], rtol=1e-14, atol=1e-14)
    gradients = net.backward(expected["saved"], (*INPUTS, "z"), h=h if activation == "gelu" else None)
    z_before.requires_grad_()
    (grad_z,) = torch.autograd.grad(value(z_before), z_before, grad_y @ w2)
    torch.testing.assert_close(gradients.pop("grad_z"), grad_z, rtol=1e-13, atol=1e-13)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-13, atol=1e-13)


def test_grad_z_alone():
    net = Net(Case(PARTS, "gelu", torch.float32))
    saved = net.forward()["saved"]
    everything = net.backward(saved, (*INPUTS, "z"))
    assert_same_bits(net.backward(saved, ("z",)), {"grad_z": everything["grad_z"]})


# Passes over a hidden layer, between products that are not ours


def draw(memory: GuardedMemory, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return memory.copy(torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).to(dtype))


def close(result: Tensor, exact: Tensor, magnitude: Tensor | float = 1.0) -> None:
    """Within a few roundings of float32 (float64), and one to the dtype."""
    computed = torch.float64 if result.dtype is torch.float64 else torch.float32
    unit = 20 * torch.finfo(computed).eps + (0 if result.dtype is computed else torch.finfo(result.dtype).eps)
    assert torch.all((result.double() - exact).abs() <= unit * (exact.abs() + magnitude))


def value_and_slope(z: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """In float64."""
    value, slope = numpy_reference.ACTIVATIONS[activation]
    return torch.from_numpy(value(z.double().numpy())), torch.from_numpy(slope(z.double().numpy()))


LAYERS = [(3, 5), (1, 1), (40, 64), (300, 7), (33, 260), (1, 5000), (5, 1100)]  # (batch, hidden)
every_dtype = pytest.mark.parametrize("dtype", ALL_BOUNDS, ids=str)
every_activation = pytest.mark.parametrize("activation", SHOWN)
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def call_pass(name: str, dtype: torch.dtype, sizes: tuple[int, ...], activation: str, arrays: list[Tensor | None]):
    arguments = (emulation.DTYPES[dtype], *map(ctypes.c_int64, sizes), ACTIVATIONS[activation].id)
    function = getattr(emulation.library(), name)
    if name == "derive_sum":
        emulation.call_in_scratch(function, (*arguments, emulation.pointers(arrays)))
    else:
        function(*arguments, emulation.pointers(arrays))
        emulation.check()


@every_dtype
@every_activation
@pytest.mark.parametrize("bias", [True, False])
def test_bias_and_activation(activation, dtype, bias):
    for layer, placement in itertools.product(LAYERS, ["start", "end"]):
        memory = GuardedMemory(placement)
        z, b1 = draw(memory, dtype, *layer), draw(memory, dtype, layer[1], seed=1) if bias else None
        saved, h = memory.empty(layer, dtype).fill_(torch.nan), memory.empty(layer, dtype).fill_(torch.nan)
        before = z.double() + (b1.double() if bias else 0)
        call_pass("bias_activate", dtype, layer, activation, [z, b1, saved, h])
        memory.check()
        exact, _ = value_and_slope(before, activation)
        close(h, exact, magnitude=10)
        close(saved, exact if ACTIVATIONS[activation].saved == "output" else before, magnitude=10)
        call_pass("bias_activate", dtype, layer, activation, [z, b1, None, z])
        assert_same_bits({"h": z}, {"h": h})


@every_dtype
@every_activation
def test_derivative_and_sums(activation, dtype):
    for layer, placement in itertools.product(LAYERS, ["start", "end"]):
        memory = GuardedMemory(placement)
        z, grad = draw(memory, dtype, *layer), draw(memory, dtype, *layer, seed=1)
        value, slope = value_and_slope(z, activation)
        saved = memory.copy(value.to(dtype) if ACTIVATIONS[activation].saved == "output" else z)
        total = memory.empty(layer[1:], dtype).fill_(torch.nan)
        before = grad.clone().double()
        call_pass("derive_sum", dtype, layer, activation, [saved, grad, total])
        memory.check()
        close(grad, before * slope, magnitude=50 * before.abs())  # of what was saved, the slope has a rounding too
        close(total, grad.double().sum(0), magnitude=50 * before.abs().sum(0))


@every_dtype
@every_device
def test_column_sums_alone(dtype, device):
    for layer in [*LAYERS, (0, 5), (5000, 3)]:
        memory = GuardedMemory("end")
        grad = draw(memory, dtype, *layer)
        before, total = grad.clone(), memory.empty(layer[1:], dtype).fill_(torch.nan)
        with emulation.device(**DEVICES[device]):
            call_pass("derive_sum", dtype, layer, "tanh", [None, grad, total])
            memory.check()
            again = torch.empty_like(total)
            call_pass("derive_sum", dtype, layer, "tanh", [None, grad, again])
        assert_same_bits({"grad": grad, "sum": total}, {"grad": before, "sum": again})
        close(total, before.double().sum(0), magnitude=before.double().abs().sum(0))


@every_dtype
@every_activation
@pytest.mark.parametrize("count", [0, 1, 1000, 1003])
def test_passes_over_numbers(activation, dtype, count):
    memory = GuardedMemory("end")
    z, grad = draw(memory, dtype, count), draw(memory, dtype, count, seed=1)
    h = memory.empty((count,), dtype).fill_(torch.nan)
    call_pass("activate", dtype, (count,), activation, [z, h])
    value, slope = value_and_slope(z, activation)
    close(h, value, magnitude=10)
    expected = grad.double() * slope
    call_pass("derive", dtype, (count,), activation, [h if ACTIVATIONS[activation].saved == "output" else z, grad])
    memory.check()
    close(grad, expected, magnitude=50)


# The same bits, in whatever order blocks and threads run


@every_arithmetic
@pytest.mark.parametrize("shape", [SMALL, PARTS, WIDE_OUT], ids=str)
def test_every_order_gives_the_same_bits(shape, arithmetic):
    net = Net(case_of(shape, "silu", arithmetic), ARITHMETICS[arithmetic][1])
    first = net.run()
    for seed in (1, 2, 3):
        with emulation.device(seed=seed):
            assert_same_bits(net.run(), first)


def test_clusters_share_hidden_units():
    """A wide layer and few rows: the clusters' contributions are added in a second launch."""
    emulation.take_counts()
    case = Case(Shape(5, 20, 600, 7), "gelu", torch.float32)
    results = {}
    for name, device in DEVICES.items():
        with emulation.device(**device):
            results[name] = Net(case).forward()
        assert emulation.take_counts().launches == (1 if name == "small" else 2)
        for result in results[name]:
            error = ground_truth(case)[result].error_of(results[name][result])
            assert error <= ALL_BOUNDS[case.dtype]
    assert_same_bits({"saved": results["large"]["saved"]}, {"saved": results["without clusters"]["saved"]})


def test_launches():
    emulation.take_counts()
    net = Net(Case(MNIST, "sigmoid", torch.float32))
    saved = net.forward()["saved"]
    forward = emulation.take_counts()
    net.backward(saved)
    backward = emulation.take_counts()
    assert (forward.launches, backward.launches) == (1, 1)
    assert (forward.clusters, forward.blocks) == (4, 32)  # each cluster shares out the hidden layer of 16 rows
    assert backward.blocks > 100


# Numbers that are not finite


@pytest.mark.skipif(bool(emulation.SANITIZERS), reason="only values can tell")
@every_arithmetic
@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid", "softplus", "relu_squared", "sine"])
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_non_finite_numbers_travel_as_in_dense_arithmetic(activation, poison, arithmetic):
    case, tf32 = case_of(SMALL, activation, arithmetic), ARITHMETICS[arithmetic][1]
    for name in ("x", "w1", "b1", "w2", "b2", "grad_y"):
        net = Net(case, tf32)
        getattr(net.given, name).view(-1)[3] = poison
        results = net.run()
        inputs = [t.detach().clone().requires_grad_() for t in net.given[:5]]
        y = torch_reference.two_layer(*inputs, activation)
        gradients = torch.autograd.grad(y, inputs, net.given.grad_y)
        expected = {"y": y} | {f"grad_{name}": gradient for name, gradient in zip(INPUTS, gradients, strict=True)}
        for result, torchs in expected.items():
            same = torch.equal(results[result].isfinite(), torchs.isfinite())
            assert same, f"{result} is finite elsewhere, {name} holding {poison}"


@pytest.mark.skipif(bool(emulation.SANITIZERS), reason="only values can tell")
@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16"])
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["x", "w1", "grad_y"])
def test_infinite_factors_give_infinite_gradients(name, poison, arithmetic):
    """Also beside floats of few bits, of whose two parts the low one is 0."""
    net = Net(case_of(SMALL, "identity", arithmetic))
    net.given.w2.fill_(1)
    net.given.grad_y.copy_(torch.arange(1, 1 + net.given.grad_y.numel()).view_as(net.given.grad_y) % 4 + 1)
    getattr(net.given, name).view(-1)[3] = poison
    results = net.run()
    x, w1, b1, _, _, grad_y = (t.double() for t in net.given)
    h, grad_z = x @ w1.T + b1, grad_y.sum(1, keepdim=True).expand(-1, SMALL.hidden)
    expected = {"grad_x": grad_z @ w1, "grad_w1": grad_z.T @ x, "grad_w2": grad_y.T @ h}
    for result, exact in expected.items():
        kept = (torch.where(t.isfinite(), 0, t) for t in (results[result].double(), exact))
        torch.testing.assert_close(*kept, rtol=0, atol=0, equal_nan=True, msg=f"{result} with {poison} in {name}")


# The test must be able to fail


FEW_BLOCKS = {"multiprocessors": 2, "capability": 80}  # each takes several tiles of hidden units


@pytest.mark.skipif(bool(emulation.SANITIZERS), reason="only values can tell")
# One slice of the products; one more than the ring has stages, so that the last is where the sums go.
@pytest.mark.parametrize("shape", [Shape(20, 60, 40, 5), Shape(570, 570, 16, 5)], ids=str)
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_every_barrier_is_needed(name, shape):
    """Leave out one of the barriers of each thread: values are wrong, in one order of the threads or another."""
    net = Net(Case(shape, "gelu", torch.float32))
    with emulation.device(**FEW_BLOCKS):
        right = net.forward()
        emulation.take_counts()
        run = net.forward if name == "forward" else functools.partial(net.backward, right["saved"])
        right = run()
    unnoticed = []
    for skipped in range(emulation.take_counts().barriers):
        for seed in range(4):
            with emulation.device(seed=seed, skipped_barrier=skipped, **FEW_BLOCKS):
                results = run()
            if any(not torch.equal(result, right[key]) for key, result in results.items()):
                break
        else:
            unnoticed.append(skipped)
    assert not unnoticed
