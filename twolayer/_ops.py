"""``torch.ops.twolayer``: schemas, an implementation per device, fakes and autograd.

``forward`` is the net; ``forward_saved`` also returns what ``backward`` needs; ``backward`` returns the gradients asked
for. Shapes: x (batch, in), w1 (hidden, in), b1 (hidden,), w2 (out, hidden), b2 (out,), saved (batch, hidden).

Which code runs is the dispatcher's decision: the native kernels on the CPU and, in ``_cuda_ops``, on CUDA; the PyTorch
reference on other devices, under function transforms, and where no native library is loaded. All can be differentiated
any number of times.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import _cuda_ops, _native
from ._tensors import IDS, empty_gradients, have_kernels
from .reference import torch as reference
from .registry import ACTIVATIONS

_library = torch.library.Library("twolayer", "DEF")
_library.define("forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation) -> Tensor")
_library.define(
    "forward_saved(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation) -> (Tensor y, Tensor saved)"
)
_library.define(
    "backward(Tensor grad_y, Tensor x, Tensor w1, Tensor w2, Tensor saved, str activation, bool[5] needs) -> Tensor[]"
)
_forward = torch.ops.twolayer.forward.default
_forward_saved = torch.ops.twolayer.forward_saved.default
_backward = torch.ops.twolayer.backward.default


# ---- every device: the reference -------------------------------------------------------------------------------------


def _aloud(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` of the reference as an op's implementation: it says once why no kernel of ours runs."""

    def run(tensor: Tensor, *arguments: Any) -> Any:
        if tensor.is_cpu and _native.get_core() is None:  # get_core has said it
            return function(tensor, *arguments)
        kind = f"a {type(tensor).__name__} of {tensor.dtype} on {tensor.device.type}"
        _native.announce(
            f"twolayer has no native kernel for {kind}, so its slower PyTorch reference runs "
            "(kernels: plain float32, float64 and bfloat16 tensors on cpu, and these and float16 on cuda)"
        )
        return function(tensor, *arguments)

    return run


_reference_forward = _aloud(reference.two_layer)
_reference_forward_saved = _aloud(reference.forward_saved)
_reference_backward = _aloud(reference.backward)

_library.impl("forward", _reference_forward, "CompositeExplicitAutograd")
_library.impl("forward_saved", _reference_forward_saved, "CompositeExplicitAutograd")
_library.impl("backward", _reference_backward, "CompositeExplicitAutograd")


# ---- CPU: the native kernels -----------------------------------------------------------------------------------------

_core: Any = _native.core
_NATIVE_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16})


def _native_forward(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str) -> Tensor:
    if not have_kernels(_NATIVE_DTYPES, x, w1, b1, w2, b2):
        return _reference_forward(x, w1, b1, w2, b2, activation)
    if _left_to_blas(_core.forward_by_blas, x, w1, w2):
        return _large_forward(x, w1, b1, w2, b2, activation, keep_input=False)[0]
    y = x.new_empty(x.shape[0], w2.shape[0])
    _call_forward(x, w1, b1, w2, b2, activation, None, y)
    return y


def _native_forward_saved(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    if not have_kernels(_NATIVE_DTYPES, x, w1, b1, w2, b2):
        return _reference_forward_saved(x, w1, b1, w2, b2, activation)
    return _native_forward_kept(x, w1, b1, w2, b2, activation)[:2]


def _native_forward_kept(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return y, saved, and the activation's output where that is not ``saved`` and was stored on the way."""
    if _left_to_blas(_core.forward_by_blas, x, w1, w2):
        return _large_forward_kept(x, w1, b1, w2, b2, activation)
    y = x.new_empty(x.shape[0], w2.shape[0])
    saved = x.new_empty(x.shape[0], w1.shape[0])
    _call_forward(x, w1, b1, w2, b2, activation, saved, y)
    return y, saved, None


def _call_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    saved: Tensor | None,
    y: Tensor,
) -> None:
    _core.forward(
        x.contiguous(),
        w1.contiguous(),
        None if b1 is None else b1.contiguous(),
        w2.contiguous(),
        None if b2 is None else b2.contiguous(),
        saved,
        y,
        IDS[activation],
        torch.get_num_threads(),
    )


def _native_backward(
    grad_y: Tensor, x: Tensor, w1: Tensor, w2: Tensor, saved: Tensor, activation: str, needs: Sequence[bool]
) -> list[Tensor]:
    if not have_kernels(_NATIVE_DTYPES, grad_y, x, w1, w2, saved):
        return _reference_backward(grad_y, x, w1, w2, saved, activation, needs)
    return _native_backward_kept(grad_y, x, w1, w2, saved, None, activation, needs)


def _native_backward_kept(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    saved: Tensor,
    h: Tensor | None,
    activation: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients asked for; ``h`` is the activation's output where it was kept, else it is computed again."""
    if _left_to_blas(_core.backward_by_blas, x, w1, w2):
        return _large_backward(grad_y, x, w1, w2, saved, h, activation, needs)
    gradients = empty_gradients(x, w1, w2, needs)
    _core.backward(
        grad_y.contiguous(),
        x.contiguous(),
        w1.contiguous(),
        w2.contiguous(),
        saved.contiguous(),
        *gradients,
        IDS[activation],
        torch.get_num_threads(),
        None if h is None else h.contiguous(),
    )
    return [gradient for gradient in gradients if gradient is not None]


# Large nets: torch's own products, which then are faster than ours, and our passes over the hidden layer between them.


def _left_to_blas(decide: Callable[..., bool], x: Tensor, w1: Tensor, w2: Tensor) -> bool:
    """Whether torch's products are used, which ``decide`` says by the net's size and its bytes per number."""
    return decide(x.shape[0], x.shape[1], w1.shape[0], w2.shape[0], x.dtype.itemsize)


def _large_forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str, keep_input: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the activation's input and output, which share their memory unless the input is to be kept."""
    z = F.linear(x, w1, b1)
    h = torch.empty_like(z) if keep_input else z
    threads = torch.get_num_threads()
    if _core.outputs_by_blas(*z.shape, w2.shape[0], z.dtype.itemsize):
        _core.activate(z, h, IDS[activation], threads)
        return F.linear(h, w2, b2), z, h
    y = z.new_empty(z.shape[0], w2.shape[0])
    bias = None if b2 is None else b2.contiguous()
    _core.finish_forward(z, w2.contiguous(), bias, h, y, IDS[activation], threads)
    return y, z, h


def _large_forward_kept(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what ``_native_forward_kept`` does."""
    y, z, h = _large_forward(x, w1, b1, w2, b2, activation, ACTIVATIONS[activation].saved == "input")
    return y, z, None if h is z else h


def _large_backward(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    saved: Tensor,
    h: Tensor | None,
    activation: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needs
    saved, threads = saved.contiguous(), torch.get_num_threads()
    if _core.outputs_by_blas(*saved.shape, w2.shape[0], saved.dtype.itemsize):
        grad_z = grad_b1 = grad_w2 = grad_b2 = None
        if needs_x or needs_w1 or needs_b1:
            grad_z = grad_y @ w2
            _core.multiply_by_derivative(saved, grad_z, IDS[activation], threads)
            grad_b1 = grad_z.sum(0) if needs_b1 else None
        if needs_w2:
            if ACTIVATIONS[activation].saved == "output":
                h = saved
            elif h is None:
                h = torch.empty_like(saved)
                _core.activate(saved, h, IDS[activation], threads)
            grad_w2 = grad_y.t() @ h
        if needs_b2:
            grad_b2 = grad_y.sum(0)
    else:
        grad_z = torch.empty_like(saved) if needs_x or needs_w1 else None
        inner = empty_gradients(x, w1, w2, (False, False, needs_b1, needs_w2, needs_b2))
        _core.backward(
            grad_y.contiguous(),
            x.contiguous(),
            w1.contiguous(),
            w2.contiguous(),
            saved,
            *inner,
            IDS[activation],
            threads,
            h,
            grad_z,
        )
        grad_b1, grad_w2, grad_b2 = inner[2:]
    grad_x = grad_z @ w1 if grad_z is not None and needs_x else None
    grad_w1 = grad_z.t() @ x if grad_z is not None and needs_w1 else None
    return [g for g in (grad_x, grad_w1, grad_b1, grad_w2, grad_b2) if g is not None]


def _dispatch_keys(tensor: Tensor) -> int:
    return int(torch._C._dispatch_keys(tensor).raw_repr())


with torch.inference_mode():
    _PLAIN_KEYS = frozenset({_dispatch_keys(torch.empty(0)), 0})
with torch.inference_mode(False):
    _PLAIN_KEYS |= {_dispatch_keys(torch.empty(0))}


def _is_plain_call(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would bring a call on these tensors to the CPU kernels above and do nothing else.

    Then eager code calls them itself: the way through the dispatcher costs more than a small net's arithmetic.
    """
    if _core is None or torch._C._len_torch_dispatch_stack() or not have_kernels(_NATIVE_DTYPES, *tensors):
        return False
    return _PLAIN_KEYS.issuperset(0 if tensor is None else _dispatch_keys(tensor) for tensor in tensors)


def _openmp_functions() -> list[int]:
    """Return the addresses of ``GOMP_parallel`` and ``omp_get_thread_num`` in torch's OpenMP library; 0 without one."""
    try:
        library = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        functions = library.GOMP_parallel, library.omp_get_thread_num
        return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    except (OSError, AttributeError):
        return [0, 0]


if _core is not None:
    _core.borrow_threads(*_openmp_functions())
    _library.impl("forward", _native_forward, "CPU")
    _library.impl("forward_saved", _native_forward_saved, "CPU")
    _library.impl("backward", _native_backward, "CPU")


# ---- CUDA ------------------------------------------------------------------------------------------------------------

_library.impl("forward", _cuda_ops.forward, "CUDA")
_library.impl("forward_saved", _cuda_ops.forward_saved, "CUDA")
_library.impl("backward", _cuda_ops.backward, "CUDA")


# ---- meta and fake tensors: shapes only ------------------------------------------------------------------------------


@torch.library.register_fake("twolayer::forward", lib=_library)
def _fake_forward(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], w2.shape[0])


@torch.library.register_fake("twolayer::forward_saved", lib=_library)
def _fake_forward_saved(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], w2.shape[0]), x.new_empty(x.shape[0], w1.shape[0])


@torch.library.register_fake("twolayer::backward", lib=_library)
def _fake_backward(
    grad_y: Tensor, x: Tensor, w1: Tensor, w2: Tensor, saved: Tensor, activation: str, needs: Sequence[bool]
) -> list[Tensor]:
    return [gradient for gradient in empty_gradients(x, w1, w2, needs) if gradient is not None]


# torch.onnx.export puts these aten ops in the place of ours; torch.export and torch.compile keep the op.
register_decomposition(_forward)(reference.two_layer)


# ---- autograd and function transforms --------------------------------------------------------------------------------


def _is_transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp …), forward-mode AD or torch.jit.trace is at work: only torch ops will do."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _autograd_kernel(op: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``op``'s autograd kernel: ``function`` of the reference where a derivative is wanted, else ``op``."""

    def run(*arguments: Any) -> Any:
        wants_grad = torch.is_grad_enabled() and any(getattr(a, "requires_grad", False) for a in arguments)
        if wants_grad or _is_transformed():
            return function(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return run


_backward_autograd = _autograd_kernel(_backward, reference.backward)


class TwoLayerFunction(torch.autograd.Function):
    """y = act(x w1ᵀ + b1) w2ᵀ + b2, with a backward pass that computes only the gradients asked for.

    ``computed`` is (y, saved, h) where the native library has them already, else None; h is the activation's output
    where backward wants it beside ``saved``, else None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        activation: str,
        computed: tuple[Tensor, Tensor, Tensor | None] | None,
    ) -> Tensor:
        h = None
        if computed is not None:
            y, saved, h = computed
        elif _is_plain_call(x, w1, b1, w2, b2):
            y, saved, h = _native_forward_kept(x, w1, b1, w2, b2, activation)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                y, saved = _forward_saved(x, w1, b1, w2, b2, activation)
        ctx.save_for_backward(x, w1, b1, w2, saved, h)
        ctx.activation = activation
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, b1, w2, saved, h = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative also flows through the hidden layer
            saved = _differentiable_saved(x, w1, b1, ctx.activation)
        elif not _may_differ():
            if grad_y.is_cuda or _core is None:
                plain = _cuda_ops.plain_backward(grad_y, x, w1, w2, saved, ctx.activation, needs)
            else:
                threads = torch.get_num_threads()
                plain = _core.plain_backward(grad_y, x, w1, w2, saved, h, IDS[ctx.activation], needs, threads)
                if plain is True:
                    plain = _placed(_large_backward(grad_y, x, w1, w2, saved, h, ctx.activation, needs[:5]), needs)
            if plain is not None:
                return plain
            if _is_plain_call(grad_y, x, w1, w2, saved, h):
                gradients = _native_backward_kept(grad_y, x, w1, w2, saved, h, ctx.activation, needs[:5])
                return _placed(gradients, needs)
        return _placed(_backward_autograd(grad_y, x, w1, w2, saved, ctx.activation, needs[:5]), needs)


def _placed(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradients where they were asked for, None elsewhere."""
    following = iter(gradients)
    return tuple(next(following) if need else None for need in needs)


def _differentiable_saved(x: Tensor, w1: Tensor, b1: Tensor | None, activation: str) -> Tensor:
    z1 = F.linear(x, w1, b1)
    return reference.ACTIVATIONS[activation](z1) if ACTIVATIONS[activation].saved == "output" else z1


# Function.apply without its own Python: what it prepares for are transforms and their tensors, which are not plain.
_apply = super(torch.autograd.Function, TwoLayerFunction).apply


def _may_differ() -> bool:
    """Whether a call on plain tensors may have to do more than compute: a mode or a transform is at work."""
    return torch._C._len_torch_dispatch_stack() > 0 or _is_transformed()


def run_plain(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> Tensor | None:
    """Return what ``forward_autograd`` does, in one native call that also checks; None for all but plain arguments.

    Plain are dense contiguous CPU or CUDA tensors of torch's own classes whose shapes and dtypes fit. ``activation`` is
    a name.
    """
    if _may_differ():
        return None
    result: Any
    if _core is None or getattr(x, "is_cuda", False):
        result = _cuda_ops.plain_forward(x, w1, b1, w2, b2, activation)
    else:
        threads = torch.get_num_threads()
        result = _core.plain_forward(x, w1, b1, w2, b2, IDS[activation], threads, torch.is_grad_enabled())
    if type(result) is bool:
        if not result:
            return _large_forward(x, w1, b1, w2, b2, activation, keep_input=False)[0]
        with torch._C._AutoDispatchBelowAutograd():
            result = _large_forward_kept(x, w1, b1, w2, b2, activation)
    if type(result) is tuple:
        return _apply(x, w1, b1, w2, b2, activation, result)
    return result


def forward_autograd(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> Tensor:
    """``forward``'s autograd kernel, which eager code calls straight, without the dispatcher's detour."""
    if _is_transformed():
        return reference.two_layer(x, w1, b1, w2, b2, activation)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or w1.requires_grad
        or w2.requires_grad
        or (b1 is not None and b1.requires_grad)
        or (b2 is not None and b2.requires_grad)
    ):
        return TwoLayerFunction.apply(x, w1, b1, w2, b2, activation, None)
    if _is_plain_call(x, w1, b1, w2, b2):
        return _native_forward(x, w1, b1, w2, b2, activation)
    with torch._C._AutoDispatchBelowAutograd():
        return _forward(x, w1, b1, w2, b2, activation)


_library.impl("forward", forward_autograd, "Autograd")
_library.impl("forward_saved", _autograd_kernel(_forward_saved, reference.forward_saved), "Autograd")
_library.impl("backward", _backward_autograd, "Autograd")

for _key in ("FuncTorchBatched", "Batched"):  # torch.func.vmap, and autograd's own for is_grads_batched
    _library.impl("forward", reference.two_layer, _key)
    _library.impl("forward_saved", reference.forward_saved, _key)
    _library.impl("backward", reference.backward, _key)
