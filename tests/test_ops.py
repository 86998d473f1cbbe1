"""The registered ops and the loader: schemas, fakes, dispatch, compilation, and what happens without native code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.testing import assert_close

from twolayer import _native, _ops, two_layer
from twolayer.reference import torch as reference
from twolayer.registry import ACTIVATIONS

needs_native = pytest.mark.skipif(_native.core is None, reason=f"native library: {_native.core_error}")
ops = torch.ops.twolayer


def arguments(dtype=torch.float64, grad=False, bias=True):
    """Random (x, w1, b1, w2, b2), seeded."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5), (7, 5), (7,), (3, 7), (3,))
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for shape in shapes]
    if not bias:
        tensors[2] = tensors[4] = None
    return tensors


# The ops


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu"])  # one keeps its output for backward, one its input
def test_opcheck(activation, bias, grad):
    x, w1, _, w2, _ = tensors = arguments(torch.float32, grad, bias)
    y, saved = (t.detach().requires_grad_(grad) for t in reference.forward_saved(*tensors, activation))
    torch.library.opcheck(ops.forward.default, (*tensors, activation))
    torch.library.opcheck(ops.forward_saved.default, (*tensors, activation))
    for needs in ([True] * 5, [False, True, bias, True, bias], [True, False, False, False, False]):
        torch.library.opcheck(ops.backward.default, (y, x, w1, w2, saved, activation, needs))


def test_every_op_is_differentiable_by_itself():
    x, w1, _, w2, _ = tensors = arguments(grad=True)
    assert torch.autograd.gradcheck(lambda *t: ops.forward(*t, "tanh"), tensors)
    assert torch.autograd.gradcheck(lambda *t: ops.forward_saved(*t, "tanh"), tensors)
    saved = torch.rand(6, 7, dtype=torch.float64, requires_grad=True)
    grad_y = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: tuple(ops.backward(*t, "tanh", [True] * 5)), (grad_y, x, w1, w2, saved))


def test_vmap_over_the_ops():
    x, *rest = arguments()
    rows = torch.stack([x, 2 * x])
    in_dims = (0, None, None, None, None, None)
    separate = [ops.forward_saved(row, *rest, "relu") for row in rows]
    mapped = torch.vmap(ops.forward_saved, in_dims=in_dims)(rows, *rest, "relu")
    assert_close(mapped, tuple(torch.stack(parts) for parts in zip(*separate, strict=True)))
    assert_close(torch.vmap(ops.forward, in_dims=in_dims)(rows, *rest, "relu"), mapped[0])


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_op_equals_the_reference(activation, dtype):
    x, w1, _, w2, _ = tensors = arguments(dtype)
    y, saved = ops.forward_saved(*tensors, activation)
    assert_close((y, saved), reference.forward_saved(*tensors, activation))
    assert torch.equal(ops.forward(*tensors, activation), y)
    grad_y = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
    for needs in ([True] * 5, [False, True, True, True, True], [True, False, True, False, False]):
        ours = ops.backward(grad_y, x, w1, w2, saved, activation, needs)
        assert len(ours) == sum(needs)
        assert_close(ours, reference.backward(grad_y, x, w1, w2, saved, activation, needs))


@needs_native
def test_which_implementation_runs(monkeypatch):
    called = []

    class Spy:
        def __getattr__(self, name):
            called.append(name)
            return getattr(_native.core, name)

    monkeypatch.setattr(_ops, "_core", Spy())
    two_layer(*arguments())
    assert called == ["plain_forward"]
    ops.forward(*arguments(), "sigmoid")
    assert called[1:] == ["forward_by_blas", "forward"]
    called.clear()
    two_layer(*(t.to("meta") for t in arguments()))
    torch.vmap(two_layer, in_dims=(0, None, None, None, None))(*arguments())
    assert "forward" not in called


# Compilation and export


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    torch._dynamo.reset()
    compiled = torch.compile(two_layer, fullgraph=True, backend=backend)
    tensors, ours = arguments(torch.float32, grad=True), arguments(torch.float32, grad=True)
    with torch.no_grad():
        assert_close(compiled(*tensors, "gelu"), two_layer(*tensors, "gelu"))
    two_layer(*tensors, "gelu").square().sum().backward()
    compiled(*ours, "gelu").square().sum().backward()
    assert_close([t.grad for t in ours], [t.grad for t in tensors])


def test_compiled_training_runs_the_ops():
    graphs = []

    def backend(module, inputs):
        def keep(module, inputs):
            graphs.append({str(node.target) for node in module.graph.nodes})
            return make_boxed_func(module.forward)

        return aot_autograd(fw_compiler=keep)(module, inputs)

    torch._dynamo.reset()
    torch.compile(two_layer, fullgraph=True, backend=backend)(*arguments(grad=True)).sum().backward()
    forward, backward = graphs
    assert "twolayer.forward_saved.default" in forward
    assert "twolayer.backward.default" in backward


@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_a_dynamic_batch(strict):
    class Net(torch.nn.Module):
        def forward(self, x, w1, b1, w2, b2):
            return two_layer(x, w1, b1, w2, b2, "silu")

    x, *rest = arguments()
    batch = ({0: torch.export.Dim("batch")}, None, None, None, None)
    exported = torch.export.export(Net(), (x, *rest), dynamic_shapes=batch, strict=strict)
    assert [n for n in exported.graph.nodes if n.target is ops.forward.default]
    more = torch.randn(11, 5, dtype=x.dtype)
    assert_close(exported.module()(more, *rest), two_layer(more, *rest, "silu"))


# Aloud and once


def test_a_dtype_without_kernel_is_announced_once_and_runs(monkeypatch, recwarn):
    monkeypatch.setattr(_native, "_announced", set())
    tensors = arguments(torch.float16)
    first, second = two_layer(*tensors), two_layer(*tensors)
    assert_close(first, reference.two_layer(*tensors, "sigmoid"))
    assert torch.equal(first, second)
    (warning,) = [w for w in recwarn if w.category is RuntimeWarning]
    expected = (
        "no native kernel for a Tensor of torch.float16 on cpu" if _native.core else "native library is not loaded"
    )
    assert expected in str(warning.message)


CHILD = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import twolayer
    assert "torch" not in sys.modules, "importing twolayer imported torch"
    import torch
    info = twolayer.info()
    early = len(caught)
    torch.manual_seed(0)
    net, x = twolayer.TwoLayerNet(5, 7, 3, "gelu"), torch.randn(4, 5)
    try:
        results = []
        for _ in range(2):
            net.zero_grad()
            y = net(x)
            y.square().sum().backward()
            results = [y.tolist(), *(p.grad.tolist() for p in net.parameters())]
        error = None
    except ImportError as caught_error:
        error = str(caught_error)
messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
print(json.dumps({"info": info, "early": early, "results": results, "error": error, "messages": messages}))
"""


def run_child(**environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWOLAYER_")}
    root = os.path.dirname(os.path.dirname(_native.__file__))
    inherited["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def without_native():
    return run_child(TWOLAYER_DISABLE_NATIVE="1")


def test_without_native_code_there_is_one_warning_with_reason_and_cure(without_native):
    assert without_native["early"] == 0
    (message,) = without_native["messages"]
    assert "native library is not loaded" in message
    assert "unset it to load the library" in message
    core = without_native["info"]["native"]["_core"]
    assert (core["loaded"], core["path"]) == (False, None)
    assert core["reason"] in message


@needs_native
def test_fallback_and_native_give_the_same_results(without_native):
    native = run_child()
    assert native["messages"] == []
    assert native["info"]["native"]["_core"]["loaded"]
    for ours, fallback in zip(native["results"], without_native["results"], strict=True):
        assert_close(torch.tensor(ours), torch.tensor(fallback))


def test_required_native_code_that_is_missing_is_an_error():
    child = run_child(TWOLAYER_DISABLE_NATIVE="1", TWOLAYER_REQUIRE_NATIVE="1")
    assert "unset it to load the library" in child["error"]
    assert child["messages"] == []


def test_a_library_that_cannot_be_loaded_is_told_with_what_was_built(tmp_path, monkeypatch):
    broken = tmp_path / "_broken.so"
    broken.touch()
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "_native.py"))
    monkeypatch.delenv("TWOLAYER_DISABLE_NATIVE", raising=False)
    module, reason = _native._load("_broken")
    assert module is None
    assert "files built: _broken.so" in reason
    assert "reinstall twolayer" in reason


def test_info_is_json_and_agrees_with_the_library():
    info = json.loads(json.dumps(_native.info()))
    assert info["versions"]["torch"] == torch.__version__
    if _native.core is not None:
        assert info["isa"]["in_use"] in info["isa"]["available"]
        assert set(info["isa"]["available"]) <= set(info["isa"]["compiled"])


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_malformed_thread_count_is_refused(text, monkeypatch):
    monkeypatch.setenv("TWOLAYER_NUM_THREADS", text)
    with pytest.raises(ValueError, match="TWOLAYER_NUM_THREADS must be a positive integer"):
        _native.num_threads()


def test_thread_count_is_the_variable_or_the_usable_cores(monkeypatch):
    monkeypatch.setenv("TWOLAYER_NUM_THREADS", "3")
    assert _native.num_threads() == 3
    monkeypatch.delenv("TWOLAYER_NUM_THREADS")
    assert 1 <= _native.num_threads() <= os.cpu_count()
