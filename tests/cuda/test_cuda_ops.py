"""``two_layer``, its ops and nets on CUDA, and on the CPU with emulated kernels, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from cases import BOUNDS, CASES, CUDA_DTYPES, INPUTS, MNIST, Case, Shape, ground_truth, name_of, problem
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import twolayer
from twolayer import TwoLayerNet, _cuda_ops, _native, two_layer
from twolayer.reference import torch as reference
from twolayer.registry import ACTIVATIONS

ops = torch.ops.twolayer
NAMES = INPUTS
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=name_of)
SMALL = Shape(7, 17, 33, 5)
OUT_OF_BLAS = 200  # so many outputs leave both passes of any net to torch's products
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of the norm


def arguments(device, batch=(6,), features=5, hidden=7, out=3, dtype=torch.float64, bias=True, grad=False, seed=0):
    """Random (x, w1, b1, w2, b2), of sizes that keep the activations where they bend."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*batch, features), (hidden, features), (hidden,), (out, hidden), (out,))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for weight in (tensors[1], tensors[3]):
        weight /= max(weight.shape[1], 1) ** 0.5
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    if not bias:
        tensors[2] = tensors[4] = None
    return [t if t is None else t.requires_grad_(grad) for t in tensors]


def detached(tensors, dtype=None, grad=True):
    return [t if t is None else t.detach().to(dtype or t.dtype, copy=True).requires_grad_(grad) for t in tensors]


def value_and_gradients(function, tensors, activation):
    tensors = detached(tensors)
    y = function(*tensors, activation)
    grad_y = torch.linspace(-1, 2, y.numel(), dtype=torch.float32, device=y.device).to(y.dtype).view_as(y)
    return y, *torch.autograd.grad(y, [t for t in tensors if t is not None], grad_y)


def assert_near_the_truth(tensors, activation, tolerance=None):
    """Hold the value and all gradients of ``two_layer`` to those of the reference in float64, and return them."""
    ours = value_and_gradients(two_layer, tensors, activation)
    truth = value_and_gradients(reference.two_layer, detached(tensors, torch.float64), activation)
    for mine, exact in zip(ours, truth, strict=True):
        assert mine.dtype is tensors[0].dtype
        assert mine.device == tensors[0].device
        assert mine.shape == exact.shape
        error = (mine.double() - exact).norm()
        assert error <= (tolerance or TOLERANCE[mine.dtype]) * exact.norm(), f"{error / exact.norm():.2e}"
    return ours


@pytest.fixture
def calls(device, monkeypatch):
    """The names of the functions of ``_cuda`` that were called, each with its result and its arguments."""
    seen, (module, _) = [], _native.cuda_state()

    class Spy:
        def __getattr__(self, name):
            def call(*arguments):
                result = getattr(module, name)(*arguments)
                seen.append((name, result, arguments))
                return result

            return call

    monkeypatch.setattr(_native, "_cuda_found", (Spy(), None))
    return seen


def names(calls):
    return [name for name, _, _ in calls]


# ---- The case table, straight at the kernels.


def run_kernels(module, case, tf32=False):
    given, tensor = problem(case), {"dtype": case.dtype, "device": case.device}
    batch, _, hidden, out = case.shape
    y, saved = (torch.full(shape, torch.nan, **tensor) for shape in ((batch, out), (batch, hidden)))
    activation = ACTIVATIONS[case.activation].id
    module.forward(*given[:5], saved, y, activation, tf32)
    shapes = [given.x.shape, given.w1.shape, (hidden,), given.w2.shape, (out,)]
    gradients = [torch.full(shape, torch.nan, **tensor) for shape in shapes]
    module.backward(given.grad_y, given.x, given.w1, given.w2, saved, *gradients, activation, tf32)
    return {"y": y, "saved": saved} | {f"grad_{name}": g for name, g in zip(INPUTS, gradients, strict=True)}


def assert_table_entry(case, results, eps=None):
    for name, exact in ground_truth(case).items():
        error = exact.error_of(results[name], eps)
        assert error <= BOUNDS[case.dtype], f"{name} is {error:.3g} eps off"


def on(device, cases):
    return [Case(case.shape, case.activation, dtype, device) for case in cases for dtype in CUDA_DTYPES]


TABLE = list(dict.fromkeys(on("cuda", CASES)))


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_table(case, gpu):
    assert_table_entry(case, run_kernels(_native.get_cuda(), case))


@every_activation
@every_dtype
def test_table_emulated(activation, dtype, emulated):  # tests/cuda has the whole table without this module
    case = Case(SMALL, activation, dtype)
    assert_table_entry(case, run_kernels(_native.get_cuda(), case))


TF32_EPS = 2.0**-10  # of a factor rounded to ten bits


@pytest.mark.parametrize("shape", [SMALL, MNIST], ids=str)
def test_tf32_rounds_factors_and_no_more(shape, device):
    case = Case(shape, "tanh", torch.float32, device)
    assert_table_entry(case, run_kernels(_native.get_cuda(), case, tf32=True), TF32_EPS)


def test_the_module_knows_the_activations_of_the_registry(device):
    assert _native.get_cuda().activations() == list(ACTIVATIONS)


# ---- Values and derivatives through autograd.


@every_activation
@every_dtype
def test_is_near_the_truth(activation, dtype, device):
    assert_near_the_truth(arguments(device, (33,), 20, 50, 9, dtype), activation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 3), (2, 0, 3)])
def test_every_kind_of_batch(batch, bias, device):
    y, *_ = assert_near_the_truth(arguments(device, batch, bias=bias), "silu")
    assert y.shape == (*batch, 3)


@pytest.mark.parametrize("empty", ["features", "hidden", "out"])
def test_a_dimension_of_no_size(empty, device):
    assert_near_the_truth(arguments(device, **{empty: 0}), "gelu")


@pytest.mark.parametrize("out", [3, OUT_OF_BLAS], ids=["our products", "torch's products"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])  # one keeps its output for backward, one its input
def test_gives_only_the_gradient_asked_for(activation, out, device):
    tensors = arguments(device, out=out)
    everything = dict(zip(NAMES, value_and_gradients(two_layer, tensors, activation)[1:], strict=True))
    for wanted in NAMES:
        named = dict(zip(NAMES, detached(tensors, grad=False), strict=True))
        named[wanted].requires_grad_()
        y = two_layer(**named, activation=activation)
        grad_y = torch.linspace(-1, 2, y.numel(), dtype=torch.float32, device=device).to(y.dtype).view_as(y)
        y.backward(grad_y)
        assert {name for name, tensor in named.items() if tensor.grad is not None} == {wanted}
        assert_close(named[wanted].grad, everything[wanted])


@pytest.mark.parametrize("out", [3, OUT_OF_BLAS], ids=["our products", "torch's products"])
def test_strided_arguments_and_gradients(out, device):
    tensors = [t.T.contiguous().T if t.ndim == 2 else torch.stack([t, t], 1)[:, 0] for t in arguments(device, out=out)]
    assert not any(t.is_contiguous() for t in tensors)
    leaves = [t.detach().requires_grad_() for t in tensors]
    y, plain = (function(*leaves, "silu") for function in (two_layer, reference.two_layer))
    assert_close(y, plain)
    for grad_y in (torch.randn(out, 6, dtype=y.dtype, device=device).T, torch.ones_like(y[:1]).expand_as(y)):
        ours, expected = (torch.autograd.grad(of, leaves, grad_y, retain_graph=True) for of in (y, plain))
        assert_close(ours, expected)


def test_negated_views(device):
    x, *rest = arguments(device)
    negated = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert negated.is_neg()
    assert_close(two_layer(negated, *rest, "tanh"), two_layer(x, *rest, "tanh"))


@every_activation
def test_second_derivatives(activation, device):
    tensors = arguments(device, (3,), 4, 5, 2, grad=True)
    assert gradcheck(lambda *t: two_layer(*t, activation), tensors, fast_mode=True)
    assert gradgradcheck(lambda *t: two_layer(*t, activation), tensors, fast_mode=True)


def test_a_changed_argument_is_noticed_by_backward(device):
    tensors = arguments(device, grad=True)
    y = two_layer(*tensors, "tanh")
    with torch.no_grad():
        tensors[3].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_dtype
@pytest.mark.parametrize("out", [9, OUT_OF_BLAS], ids=["our products", "torch's products"])
def test_the_same_bits_on_every_run(dtype, out, device):
    tensors = arguments(device, (70,), 40, 90, out, dtype)
    first, second = (value_and_gradients(two_layer, tensors, "gelu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- Which way a call goes.


def test_a_plain_call_is_one_native_call_each_way(device, calls):
    tensors = arguments(device, grad=True)
    two_layer(*tensors, "gelu").sum().backward()
    assert names(calls) == ["plain_forward", "plain_backward"]
    calls.clear()
    with torch.no_grad():
        two_layer(*tensors, "gelu")
    ((name, result, _),) = calls
    assert (name, type(result)) == ("plain_forward", Tensor)


# One that both passes leave to torch, and one of which backward alone would.
@pytest.mark.parametrize("sizes", [(9, 5, 7, OUT_OF_BLAS), (64, 784, 1024, 110)], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_a_plain_call_of_a_large_net_is_torchs_own(activation, sizes, device, calls):
    batch, *layers = sizes
    tensors = arguments(device, (batch,), *layers, grad=True)
    y = two_layer(*tensors, activation)
    y.backward(torch.ones_like(y))
    ((name, result, _),) = calls
    assert (name, result) == ("plain_forward", True)
    assert_near_the_truth(tensors, activation)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_a_large_net_as_an_op_has_torchs_products_and_our_passes(activation, device, calls):
    tensors = arguments(device, (9,), 5, 7, OUT_OF_BLAS, grad=True)
    tensors = [t.detach().T.contiguous().T.requires_grad_() if t.ndim == 2 else t for t in tensors]
    y = two_layer(*tensors, activation)
    y.backward(torch.ones_like(y))
    decisions = {"plain_forward", "plain_backward", "device_problem", "forward_by_blas", "backward_by_blas"}
    passes = ["bias_activate", "derive_sum", *([] if activation == "tanh" else ["activate"]), "derive_sum"]
    assert [name for name in names(calls) if name not in decisions] == passes
    calls.clear()
    assert_near_the_truth(tensors, activation)


@pytest.mark.parametrize("grad", [True, False])
def test_torchs_switch_of_tf32_is_heeded(grad, device, calls):
    before = torch.backends.cuda.matmul.allow_tf32
    tensors = arguments(device, dtype=torch.float32, grad=grad)
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            y = two_layer(*tensors, "tanh")
            if grad:
                y.sum().backward()
                assert calls.pop()[2][-1] is allowed  # plain_backward's last argument
            assert calls.pop()[2][-2] is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_what_has_no_kernel_runs_the_reference_and_says_so(device, calls, recwarn, monkeypatch):
    monkeypatch.setattr(_native, "_announced", set())

    class Subclass(Tensor):
        pass

    x, *rest = arguments(device)
    y = ops.forward(x.as_subclass(Subclass), *rest, "tanh")
    assert_close(y.as_subclass(Tensor), reference.two_layer(x, *rest, "tanh"))
    assert not {"forward", "plain_forward"} & set(names(calls))
    (warning,) = [w for w in recwarn if w.category is RuntimeWarning]
    assert "no CUDA kernel for a Subclass of torch.float64" in str(warning.message)


def test_a_gpu_too_old_runs_the_reference_and_says_so(device, recwarn, monkeypatch):
    monkeypatch.setattr(_native, "_announced", set())

    class Old:
        def plain_forward(self, *arguments):
            return None

        def device_problem(self, index):
            assert index == 0
            return "the library has no code that this GPU can run"

    monkeypatch.setattr(_native, "_cuda_found", (Old(), None))
    tensors = arguments(device)
    assert_close(two_layer(*tensors, "tanh"), reference.two_layer(*tensors, "tanh"))
    (warning,) = [w for w in recwarn if w.category is RuntimeWarning]
    assert f"reference runs on {tensors[0].device}: the library has no code" in str(warning.message)


# ---- What a kernel refuses.


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("x", lambda t: t.T.contiguous().T, ValueError, "x must be contiguous"),
        ("w1", lambda t: t[:, 1:].contiguous(), ValueError, r"w1 must have shape \(-1, 5\); got \(7, 4\)"),
        ("b1", lambda t: t.float(), TypeError, "b1 must be float64; got float32"),
        ("w2", lambda t: None, TypeError, "w2 must be a torch.Tensor; got None"),
        ("x", lambda t: t.cpu().numpy(), TypeError, "x must be a torch.Tensor; got numpy.ndarray"),
        ("x", lambda t: t.to(torch.int64), TypeError, "x must be float32, float64, bfloat16 or float16; got int64"),
    ],
)
def test_kernels_refuse_what_does_not_fit(name, change, error, message, device):
    named = dict(zip(NAMES, arguments(device), strict=True))
    named[name] = change(named[name])
    y = torch.empty(6, 3, dtype=torch.float64, device=device)
    with pytest.raises(error, match=message):
        _native.get_cuda().forward(*named.values(), None, y, 0, False)


def test_kernels_refuse_an_unknown_activation(device):
    y, count = torch.empty(6, 3, dtype=torch.float64, device=device), len(ACTIVATIONS)
    with pytest.raises(ValueError, match=rf"activation must be an id in \[0, {count}\); got {count}"):
        _native.get_cuda().forward(*arguments(device), None, y, count, False)


def test_kernels_refuse_tensors_on_the_cpu(gpu):
    y = torch.empty(6, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="x must be a dense tensor on a CUDA device"):
        _native.get_cuda().forward(*arguments("cpu"), None, y, 0, False)


def test_two_devices_are_refused(gpu):
    x, *rest = arguments(gpu)
    with pytest.raises(ValueError, match="all tensors must be on one device; got x cpu, w1 cuda:0"):
        two_layer(x.cpu(), *rest)


# ---- The rest of torch.


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
def test_opcheck(activation, grad, device):
    x, w1, _, w2, _ = tensors = arguments(device, dtype=torch.float32, grad=grad)
    y, saved = (t.detach().requires_grad_(grad) for t in reference.forward_saved(*tensors, activation))
    torch.library.opcheck(ops.forward.default, (*tensors, activation))
    torch.library.opcheck(ops.forward_saved.default, (*tensors, activation))
    torch.library.opcheck(ops.backward.default, (y, x, w1, w2, saved, activation, [True] * 5))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend, device):
    if backend == "inductor" and device == "cpu":
        pytest.skip("inductor on the CPU is tested without emulation")
    torch._dynamo.reset()
    compiled = torch.compile(two_layer, fullgraph=True, backend=backend)
    eager = value_and_gradients(two_layer, arguments(device, dtype=torch.float32), "gelu")
    assert_close(value_and_gradients(compiled, arguments(device, dtype=torch.float32), "gelu"), eager)


def test_a_compiled_step_runs_the_ops(device, calls):
    graphs = []

    def backend(module, inputs):
        def keep(module, inputs):
            graphs.append({str(node.target) for node in module.graph.nodes})
            return make_boxed_func(module.forward)

        return aot_autograd(fw_compiler=keep)(module, inputs)

    torch._dynamo.reset()
    torch.compile(two_layer, fullgraph=True, backend=backend)(*arguments(device, grad=True)).sum().backward()
    assert "twolayer.forward_saved.default" in graphs[0]
    assert "twolayer.backward.default" in graphs[1]
    assert {"forward", "backward"} <= set(names(calls))


@pytest.mark.parametrize("out", [3, OUT_OF_BLAS], ids=["our products", "torch's products"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_autocast(dtype, out, device, calls):
    tensors = arguments(device, out=out, dtype=torch.float32, grad=True)
    with torch.autocast(device, dtype):
        y = two_layer(*tensors, "gelu")
        expected = reference.two_layer(*tensors, "gelu")
        ops.forward(*(t.detach() for t in tensors), "gelu")  # an op's tensors are of the dtype that is meant
    assert (y.dtype, expected.dtype) == (dtype, dtype)
    assert_close(y, expected, rtol=3e-2, atol=3e-2)
    y.float().square().sum().backward()
    assert all(t.grad.dtype is torch.float32 for t in tensors)
    assert {"forward", "backward"} & set(names(calls)) or {"bias_activate", "derive_sum"} <= set(names(calls))


def test_vmap_and_functional_gradients(device):
    x, *rest = arguments(device)
    rows = torch.stack([x, 2 * x])
    mapped = torch.vmap(two_layer, in_dims=(0, None, None, None, None))(rows, *rest)
    assert_close(mapped, torch.stack([two_layer(row, *rest) for row in rows]))
    gradient = torch.func.grad(lambda x: two_layer(x, *rest).sum())(x)
    leaf = x.clone().requires_grad_()
    two_layer(leaf, *rest).sum().backward()
    assert_close(gradient, leaf.grad)


@every_activation
def test_a_net_is_its_sequential(activation, device):
    net = TwoLayerNet(5, 7, 3, activation, device=device)
    plain, x = net.to_sequential(), torch.randn(6, 5, device=device)
    assert_close(net(x), plain(x))
    net(x).square().sum().backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    plain(x).square().sum().backward()
    assert_close(ours, [p.grad for p in plain.parameters()])


def test_a_fused_model_trains(device, calls):
    torch.manual_seed(0)
    model = twolayer.fuse(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 1)).to(device))
    x = torch.randn(64, 5, device=device)
    y = x.square().mean(1, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {"plain_forward", "plain_backward"} <= set(names(calls))


def test_fit_refuses_a_net_on_a_gpu(gpu):
    with pytest.raises(ValueError, match="must be on the cpu to be trained by fit"):
        twolayer.fit(TwoLayerNet(5, 7, 3, device=gpu), torch.randn(8, 5), torch.zeros(8, dtype=torch.int64))


# ---- A GPU's own matters.


@pytest.mark.parametrize("out", [3, OUT_OF_BLAS], ids=["our products", "torch's products"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_a_training_step_can_be_captured_in_a_graph(activation, out, gpu):
    tensors = arguments(gpu, (64,), 20, 30, out, torch.float32, grad=True)
    x, *parameters = tensors
    x.requires_grad_(False)

    def step():
        for parameter in parameters:
            parameter.grad = None
        y = two_layer(*tensors, activation)
        y.square().sum().backward()
        return y

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    gradients = [parameter.grad for parameter in parameters]
    x.copy_(torch.randn_like(x))
    with torch.no_grad():
        for tensor in (y, *gradients):
            tensor.fill_(torch.nan)
    graph.replay()
    replayed = [tensor.clone() for tensor in (y, *gradients)]
    expected = [step(), *(parameter.grad for parameter in parameters)]
    if out == OUT_OF_BLAS:  # cuBLAS may choose otherwise for a graph
        assert_close(replayed, expected)
    else:
        assert all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))


def test_kernels_run_on_the_current_stream(gpu):
    tensors = arguments(gpu, (64,), 20, 30, 3, torch.float32)
    expected = two_layer(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        tensors[0].mul_(1)
        two_layer(*tensors)
        torch.cuda.synchronize()  # what is loaded with its first use may wait for the device
        torch.cuda._sleep(100_000_000)  # some 50 ms, in which another stream would read the old x
        tensors[0].mul_(2)
        y = two_layer(*tensors)
    assert not stream.query()
    stream.synchronize()
    assert not torch.equal(y, expected)
    assert torch.equal(y, two_layer(*tensors))


def test_nothing_waits_for_the_device(gpu):
    tensors = arguments(gpu, (64,), 20, 30, 3, torch.float32, grad=True)
    for _ in range(2):  # the second adds to gradients
        two_layer(*tensors, "gelu").sum().backward()
    torch.cuda._sleep(1)
    torch.cuda.synchronize()  # all kernels are loaded, which may wait for the device
    torch.cuda._sleep(1_000_000_000)
    two_layer(*tensors, "gelu").sum().backward()
    assert not torch.cuda.current_stream().query()


def test_a_device_that_is_not_the_current_one(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    tensors = arguments("cuda:1", grad=True)
    assert torch.cuda.current_device() == 0
    assert_near_the_truth(tensors, "gelu")
    assert torch.cuda.current_device() == 0


def test_more_than_2_to_the_31_elements(gpu):
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GB of GPU memory")
    module, activation, dtype = _native.get_cuda(), ACTIVATIONS["tanh"].id, torch.bfloat16
    batch, features, hidden, out = 2**26 + 3, 33, 8, 2
    x = torch.zeros(batch, features, dtype=dtype, device=gpu)  # 2.2e9 elements, 4.4 GB
    x[-1] = torch.linspace(-1, 1, features)
    _, w1, b1, w2, b2 = arguments(gpu, features=features, hidden=hidden, out=out, dtype=dtype)
    grad_y = torch.zeros(batch, out, dtype=dtype, device=gpu)
    grad_y[-1] = 1

    def both_passes(x, grad_y):
        y, saved, grad_w1 = x.new_empty(len(x), out), x.new_empty(len(x), hidden), torch.empty_like(w1)
        module.forward(x, w1, b1, w2, b2, saved, y, activation, False)
        module.backward(grad_y, x, w1, w2, saved, None, grad_w1, None, None, None, activation, False)
        return y[-1], saved[-1], grad_w1

    assert_close(both_passes(x, grad_y), both_passes(x[-1:].clone(), grad_y[-1:]))
    bias, total = torch.ones(features, dtype=dtype, device=gpu), torch.empty(features, dtype=dtype, device=gpu)
    expected = torch.tanh(x[-1] + bias)
    module.bias_activate(x, bias, None, x, activation)
    assert_close(x[-1], expected)
    x[:-1] = 0
    module.derive_sum(None, x, total, activation)
    assert_close(total, expected)


def test_a_graph_of_the_op_is_captured_by_compile(gpu):
    torch._dynamo.reset()
    tensors = arguments(gpu, (64,), 20, 30, 3, torch.float32)
    compiled = torch.compile(two_layer, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()
            y = compiled(*tensors, "gelu").clone()
    assert_close(y, two_layer(*tensors, "gelu"))


def test_the_device_type_is_cuda():
    assert _cuda_ops._device_type == "cuda"
