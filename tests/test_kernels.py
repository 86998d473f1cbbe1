"""The forward and backward kernels against the float64 reference, on every instruction set that this CPU has."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import BOUNDS, CASES, DTYPES, INPUTS, MNIST, Case, Problem, Shape, ground_truth, name_of, problem
from guarded_memory import GuardedMemory
from hypothesis import given, settings
from hypothesis import strategies as st
from native_runs import poisoned, results_on, run_backward, run_forward, run_kernels, subprocess_environment

from twolayer import _core
from twolayer.reference import torch as torch_reference
from twolayer.registry import ACTIVATIONS

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_isa = pytest.mark.parametrize("isa", _core.isas_available())
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)

SMALL = Shape(7, 17, 33, 5)
# Each product has work for eight threads, and more than eight chunks of it.
WIDE = Shape(200, 260, 270, 140)


def assert_near_the_truth(results, case, seed=0):
    for name, exact in ground_truth(case, seed).items():
        assert results[name].shape == exact.value.shape
        error = exact.error_of(results[name])
        assert error <= BOUNDS[case.dtype], f"{name} is {error:.3g} eps off"


def assert_same_bits(results, others):
    assert results.keys() == others.keys()
    for name, result in results.items():
        assert torch.equal(result.view(torch.uint8), others[name].view(torch.uint8)), name


# Values


@every_case
def test_table(case):
    assert_near_the_truth(run_kernels(case), case)


@every_dtype
@pytest.mark.parametrize("without", [("b1",), ("b2",), ("b1", "b2")], ids=" ".join)
def test_missing_biases(dtype, without):
    case = Case(SMALL, "tanh", dtype, without=without)
    assert_near_the_truth(run_kernels(case), case)


sizes = st.integers(0, 40) | st.sampled_from([47, 48, 49, 63, 64, 65, 130, 257])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    shape=st.builds(Shape, sizes, sizes, sizes, sizes),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from(DTYPES),
    without=st.sets(st.sampled_from(["b1", "b2"])),
    threads=st.sampled_from([1, 2, 3, 8]),
    seed=st.integers(0, 1000),
)
def test_random_shapes(shape, activation, dtype, without, threads, seed):
    case = Case(shape, activation, dtype, without=tuple(sorted(without)))
    assert_near_the_truth(run_kernels(case, seed, threads=threads), case, seed)


@every_activation
@every_dtype
def test_saved_is_what_the_registry_says(activation, dtype):
    case = Case(SMALL, activation, dtype)
    given = problem(case)
    saved = run_forward(given, activation)["saved"]
    kept_input = run_forward(given, "identity")["saved"]  # its output is its input
    recovered = ACTIVATIONS[activation].value(kept_input.double().numpy())
    expected = kept_input if ACTIVATIONS[activation].saved == "input" else torch.from_numpy(recovered).to(dtype)
    torch.testing.assert_close(saved, expected, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@every_dtype
def test_what_is_not_saved_changes_nothing(dtype):
    case = Case(SMALL, "gelu", dtype)
    with_saved, without = (run_forward(problem(case), "gelu", save=save) for save in (True, False))
    assert_same_bits({"y": with_saved["y"]}, without)


SUBSETS = [subset for count in range(len(INPUTS) + 1) for subset in itertools.combinations(INPUTS, count)]


@every_dtype
@pytest.mark.parametrize("activation", ["tanh", "gelu"])  # one that saves its output, one that saves its input
def test_every_subset_of_gradients_has_the_same_bits(activation, dtype):
    case = Case(SMALL, activation, dtype)
    everything = run_kernels(case)
    for subset in SUBSETS:
        gradients = run_backward(problem(case), everything["saved"], activation, wanted=subset)
        assert_same_bits(gradients, {f"grad_{name}": everything[f"grad_{name}"] for name in subset})


def test_numpy_arrays_and_tensors_are_the_same_to_the_kernels():
    case = Case(SMALL, "sigmoid", torch.float32)
    given = problem(case)
    y, saved = np.empty((7, 5), np.float32), np.empty((7, 33), np.float32)
    _core.forward(*(t.numpy() for t in given[:5]), saved, y, ACTIVATIONS["sigmoid"].id, 1)
    assert_same_bits({"y": torch.from_numpy(y), "saved": torch.from_numpy(saved)}, run_forward(given, "sigmoid"))


# The same bits, whoever computes them


@every_dtype
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_every_number_of_threads_gives_the_same_bits(activation, dtype):
    case = Case(WIDE, activation, dtype)
    alone = run_kernels(case)
    for threads in (2, 3, 8, 8):  # eight twice: which thread takes which chunk is another story each time
        assert_same_bits(run_kernels(case, threads=threads), alone)


def test_threads_beyond_the_work_are_not_missed():
    case = Case(SMALL, "tanh", torch.float32)
    assert_same_bits(run_kernels(case, threads=10_000), run_kernels(case))


# Instruction sets, each in a process of its own; every array lies in guarded memory there.


@every_isa  # the one that varies fastest, as the ground truth of a case is kept for the next test
@every_case
def test_isa(case, isa):
    results = {name: isa_result(isa, case, name) for name in ground_truth(case)}
    assert_near_the_truth(results, case)
    for name, exact in ground_truth(case).items():
        portable = exact._replace(value=isa_result("portable", case, name).double().numpy())
        assert portable.error_of(results[name]) <= BOUNDS[case.dtype], f"{name} differs from portable"


def isa_result(isa, case, name):
    return torch.from_numpy(results_on(isa)[f"{case}: {name}"]).to(case.dtype)


@every_isa
def test_isa_is_the_one_asked_for(isa):
    assert results_on(isa)["isa"] == isa


@pytest.mark.parametrize("case", [Case(MNIST, "relu", dtype) for dtype in DTYPES], ids=str)
def test_another_process_gives_the_same_bits(case):
    results = run_kernels(case)
    assert_same_bits(results, {name: isa_result(_core.isa(), case, name) for name in results})


def run_python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=subprocess_environment(**variables),
        cwd="/",  # not a folder from which another twolayer could be imported
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_best_isa_is_chosen():
    run = run_python("from twolayer import _core; print(_core.isa())", TWOLAYER_ISA="")
    assert run.stdout.split() == [_core.isas_available()[-1]], run.stderr


def test_unknown_isa_is_refused():
    run = run_python("from twolayer import _core; _core.isa()", TWOLAYER_ISA="sse9")
    known = ", ".join(_core.isas_compiled())
    assert f"RuntimeError: TWOLAYER_ISA must be one of {known}; got sse9" in run.stderr


def test_missing_isa_is_refused():
    missing = sorted({*_core.isas_compiled()} - {*_core.isas_available()})
    if not missing:
        pytest.skip("this CPU has every instruction set that is compiled in")
    run = run_python("from twolayer import _core; _core.isa()", TWOLAYER_ISA=missing[0])
    assert f"RuntimeError: TWOLAYER_ISA={missing[0]}: this processor lacks it; it has portable" in run.stderr


@pytest.mark.parametrize("placement", ["start", "end"])
def test_guarded_memory_notices_a_write_beside_a_tensor(placement):
    memory = GuardedMemory(placement)
    tensor = memory.empty((3, 5), torch.float32)
    memory.check()
    beside = tensor.data_ptr() + (tensor.nbytes if placement == "start" else -1)
    ctypes.memset(beside, 0, 1)
    with pytest.raises(AssertionError, match="1 bytes outside"):
        memory.check()


@pytest.mark.parametrize(("placement", "offset"), [("start", -1), ("end", 60)])
def test_guarded_memory_ends_a_process_that_reads_outside(placement, offset):
    code = (
        "import ctypes, torch; from guarded_memory import GuardedMemory;"
        f"tensor = GuardedMemory({placement!r}).empty((3, 5), torch.float32);"
        f"print('still alive', flush=True); ctypes.string_at(tensor.data_ptr() + {offset}, 1); print('unnoticed')"
    )
    folders = subprocess_environment()["PYTHONPATH"]
    run = run_python(code, PYTHONPATH=f"{folders}:{sys.modules['guarded_memory'].__file__.rpartition('/')[0]}")
    assert run.returncode != 0
    assert run.stdout == "still alive\n"


# Numbers that are not finite

POISONED = ("x", "w1", "b1", "w2", "b2", "grad_y")
# At an infinite z1 these have their limit where torch's formulas give NaN.
HAVE_LIMITS = ("gelu", "gelu_tanh", "silu")


def dense(given, activation):
    """The results of the passes by torch's autograd."""
    inputs = [t.detach().clone().requires_grad_() for t in given[:5]]
    y = torch_reference.two_layer(*inputs, activation)
    gradients = torch.autograd.grad(y, inputs, given.grad_y)
    return {"y": y} | {f"grad_{name}": gradient for name, gradient in zip(INPUTS, gradients, strict=True)}


@every_dtype
@every_activation
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_non_finite_numbers_travel_as_in_dense_arithmetic(activation, poison, dtype):
    for name in POISONED:
        given = problem(Case(SMALL, activation, dtype))
        getattr(given, name).view(-1)[3] = poison
        saved = run_forward(given, activation)["saved"]
        results = run_forward(given, activation, save=False) | run_backward(given, saved, activation)
        for result, expected in dense(given, activation).items():
            ours, torchs = results[result].isfinite(), expected.isfinite()
            if activation in HAVE_LIMITS and name in ("x", "w1", "b1"):
                assert torch.all(ours | ~torchs), f"{result} is not finite where it should be, {name} holding {poison}"
            else:
                assert torch.equal(ours, torchs), f"{result} is finite elsewhere, {name} holding {poison}"


@every_dtype
@pytest.mark.parametrize("activation", HAVE_LIMITS)
def test_activations_have_their_limits(activation, dtype):
    case = Case(Shape(1, 1, 1, 1), activation, dtype)
    for infinite, value, slope in ((np.inf, np.inf, 1), (-np.inf, 0, 0)):
        one = torch.ones(1, 1, dtype=dtype)
        given = Problem(x=one, w1=one, b1=one[0] * infinite, w2=one, b2=None, grad_y=one)
        forward = run_forward(given, case.activation)
        gradients = run_backward(given, forward["saved"], activation, wanted=["b1"])
        assert (forward["y"].item(), gradients["grad_b1"].item()) == (value, slope)


# What is refused, before anything is written


def subclass(tensor):
    class Wrapper(torch.Tensor):
        pass

    return tensor.as_subclass(Wrapper)


def read_only(tensor):
    array = tensor.numpy()
    array.flags.writeable = False
    return array


def strided(tensor):
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def with_another_row(tensor):
    return torch.cat([tensor, tensor[:1]])


FORWARD = ("x", "w1", "b1", "w2", "b2", "saved", "y")
BACKWARD = ("grad_y", "x", "w1", "w2", "saved", *(f"grad_{name}" for name in INPUTS))
NOT_READ = {  # by what is done to an argument: the error, and what it says after the argument's name
    "double": (torch.Tensor.double, TypeError, "must be float32; got float64"),
    "half": (torch.Tensor.half, TypeError, "must be float32; got float16"),
    "to_list": (torch.Tensor.tolist, TypeError, "must be a torch.Tensor or a NumPy array; got list"),
    "subclass": (subclass, TypeError, "must be a torch.Tensor or a NumPy array; got .*Wrapper"),
    "meta": (lambda t: t.to("meta"), ValueError, "must be a dense tensor on the CPU"),
    "sparse": (torch.Tensor.to_sparse, ValueError, "must be a dense tensor on the CPU"),
    "strided": (strided, ValueError, "must be contiguous"),
    "dimension more": (lambda t: t[None], ValueError, r"must have shape \(.*\); got \(1, "),
    "five dimensions": (lambda t: t.view(1, 1, 1, 1, -1), ValueError, "must have at most 4 dimensions; got 5"),
}
NOT_WRITTEN = NOT_READ | {"read-only": (read_only, ValueError, "must be writable; it is read-only")}


def forward_arguments():
    given = problem(Case(SMALL, "relu", torch.float32))
    hidden, out = torch.full((7, 33), torch.nan), torch.full((7, 5), torch.nan)
    return dict(zip(FORWARD, (*given[:5], hidden, out), strict=True))


def backward_arguments():
    given = problem(Case(SMALL, "relu", torch.float32))
    saved = run_forward(given, "relu")["saved"]
    gradients = (poisoned(tuple(t.shape), t.dtype) for t in given[:5])
    return dict(zip(BACKWARD, (given.grad_y, given.x, given.w1, given.w2, saved, *gradients), strict=True))


def assert_refused(function, arguments, outputs, error, message, **numbers):
    with pytest.raises(error, match=message):
        function(*arguments.values(), **{"activation": 0, "threads": 1} | numbers)
    for name in outputs:
        if isinstance(arguments[name], torch.Tensor) and arguments[name].device.type == "cpu":
            assert arguments[name].to_dense().isnan().all(), f"{name} was written to"


def refusals(arguments, outputs):
    return [
        pytest.param(name, what, id=f"{name} {what}")
        for name in arguments
        for what in (NOT_WRITTEN if name in outputs else NOT_READ)
        if not (name == "x" and what in ("double", "half"))  # x decides which dtype the others must have
    ]


@pytest.mark.parametrize(("name", "what"), refusals(FORWARD, ("saved", "y")))
def test_forward_refuses(name, what):
    change, error, message = NOT_WRITTEN[what]
    arguments = forward_arguments()
    arguments[name] = change(arguments[name])
    assert_refused(_core.forward, arguments, ("saved", "y"), error, f"^{name} {message}")


@pytest.mark.parametrize(("name", "what"), refusals(BACKWARD, BACKWARD[5:]))
def test_backward_refuses(name, what):
    change, error, message = NOT_WRITTEN[what]
    arguments = backward_arguments()
    arguments[name] = change(arguments[name])
    assert_refused(_core.backward, arguments, BACKWARD[5:], error, f"^{name} {message}")


# One row too many is a wrong shape, but x's and the weights' rows are what the others are measured by.
@pytest.mark.parametrize(("name", "blamed"), [("x", "saved"), ("w1", "w2"), ("w2", "b2")])
def test_forward_refuses_shapes_that_do_not_meet(name, blamed):
    arguments = forward_arguments()
    arguments[name] = with_another_row(arguments[name]) if name != "w1" else arguments[name][:-1]
    assert_refused(_core.forward, arguments, ("saved", "y"), ValueError, rf"^{blamed} must have shape \(.*\); got \(")


@pytest.mark.parametrize("name", BACKWARD[4:])
def test_backward_refuses_shapes_that_do_not_meet(name):
    arguments = backward_arguments()
    arguments[name] = with_another_row(arguments[name])
    assert_refused(_core.backward, arguments, BACKWARD[5:], ValueError, rf"^{name} must have shape \(.*\); got \(")


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_x_of_another_dtype_is_refused(dtype):
    arguments = {name: t.to(dtype) for name, t in forward_arguments().items()}
    assert_refused(_core.forward, arguments, (), TypeError, "x must be float32, float64 or bfloat16")


@pytest.mark.parametrize("id", [-1, len(ACTIVATIONS)])
def test_activation_out_of_range_is_refused(id):
    message = rf"activation must be an id in \[0, {len(ACTIVATIONS)}\); got {id}"
    assert_refused(_core.forward, forward_arguments(), ("saved", "y"), ValueError, message, activation=id)
    assert_refused(_core.backward, backward_arguments(), BACKWARD[5:], ValueError, message, activation=id)


@pytest.mark.parametrize(
    ("call", "name"),
    [(_core.forward, "h"), (_core.backward, "h"), (_core.backward, "grad_z")],
    ids=["forward h", "backward h", "backward grad_z"],
)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (with_another_row, ValueError, r"must have shape \(.*\); got \("),
        (torch.Tensor.double, TypeError, "must be float32; got float64"),
    ],
)
def test_what_backward_may_be_given_besides_is_checked(call, name, change, error, message):
    forward = call is _core.forward
    arguments = forward_arguments() if forward else backward_arguments()
    outputs = ("saved", "y") if forward else BACKWARD[5:]
    hidden = change(torch.zeros(len(arguments["x"]), len(arguments["w1"])))
    with pytest.raises(error, match=f"^{name} {message}"):
        call(**arguments, activation=0, threads=1, **{name: hidden})
    assert all(arguments[output].isnan().all() for output in outputs)
