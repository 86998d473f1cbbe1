"""The ops on CUDA: the kernels of ``_cuda``, or the PyTorch reference, aloud, where that cannot be used.

A small net is a launch or a few; ``_cuda`` decides by size. The products of a large one are torch's own, by cuBLAS: in
eager calls on plain tensors by torch's ops and its autograd, whose nodes cost the host less than one of ours, and as an
op with our passes over the hidden layer between them. Nothing here waits for the device, and all memory is torch's, so
every call can be captured in a CUDA graph. Shapes are those of ``_ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _native
from ._tensors import IDS, PLAIN_TYPES, empty_gradients, have_kernels
from .reference import torch as reference
from .registry import ACTIVATIONS

DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_device_type = "cuda"  # of the tensors that the module takes


def _kernels(*tensors: Tensor | None) -> Any:
    """Return the module ``_cuda`` if it takes these tensors, of which the first is one; else say why, return None."""
    first: Any = tensors[0]
    if not have_kernels(DTYPES, *tensors):
        _native.announce(
            f"twolayer has no CUDA kernel for a {type(first).__name__} of {first.dtype}, so its slower PyTorch "
            "reference runs (kernels: plain float32, float64, bfloat16 and float16 tensors)"
        )
        return None
    module = _native.get_cuda()
    if module is not None and (problem := module.device_problem(first.device.index or 0)):
        _native.announce(f"twolayer's slower PyTorch reference runs on {first.device}: {problem}")
        return None
    return module


def _tf32() -> bool:
    """Whether torch's own products of float32 may be computed in TF32."""
    return torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"  # allow_tf32 raises where both were set


def forward(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str) -> Tensor:
    module = _kernels(x, w1, b1, w2, b2)
    if module is None:
        return reference.two_layer(x, w1, b1, w2, b2, activation)
    if module.forward_by_blas(*x.shape, *w2.t().shape):
        return _large_forward(module, x, w1, b1, w2, b2, activation, keep_input=False)[0]
    y = x.new_empty(x.shape[0], w2.shape[0])
    _call_forward(module, x, w1, b1, w2, b2, activation, None, y)
    return y


def forward_saved(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    module = _kernels(x, w1, b1, w2, b2)
    if module is None:
        return reference.forward_saved(x, w1, b1, w2, b2, activation)
    if module.forward_by_blas(*x.shape, *w2.t().shape):
        return _large_forward(module, x, w1, b1, w2, b2, activation, keep_input=_saves_input(activation))[:2]
    y = x.new_empty(x.shape[0], w2.shape[0])
    saved = x.new_empty(x.shape[0], w1.shape[0])
    _call_forward(module, x, w1, b1, w2, b2, activation, saved, y)
    return y, saved


def backward(
    grad_y: Tensor, x: Tensor, w1: Tensor, w2: Tensor, saved: Tensor, activation: str, needs: Sequence[bool]
) -> list[Tensor]:
    module = _kernels(grad_y, x, w1, w2, saved)
    if module is None:
        return reference.backward(grad_y, x, w1, w2, saved, activation, needs)
    if module.backward_by_blas(*x.shape, *w2.t().shape):
        gradients = _large_backward(module, grad_y, x, w1, w2, saved, activation, needs)
    else:
        gradients = empty_gradients(x, w1, w2, needs)
        module.backward(
            grad_y.contiguous(),
            x.contiguous(),
            w1.contiguous(),
            w2.contiguous(),
            saved.contiguous(),
            *gradients,
            IDS[activation],
            _tf32(),
        )
    return [gradient for gradient in gradients if gradient is not None]


def _saves_input(activation: str) -> bool:
    return ACTIVATIONS[activation].saved == "input"


def _call_forward(
    module: Any,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    saved: Tensor | None,
    y: Tensor,
) -> None:
    module.forward(
        x.contiguous(),
        w1.contiguous(),
        None if b1 is None else b1.contiguous(),
        w2.contiguous(),
        None if b2 is None else b2.contiguous(),
        saved,
        y,
        IDS[activation],
        _tf32(),
    )


# Large nets. Autocast must not see their products: the tensors are of the dtype that was asked for.


def _large_forward(
    module: Any,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str,
    *,
    keep_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the activation's input and output, which share their memory unless the input is to be kept."""
    with torch._C._DisableAutocast():
        z = F.linear(x, w1, b1)  # b1 is added before z is rounded
        h = torch.empty_like(z) if keep_input else z
        module.bias_activate(z, None, None, h, IDS[activation])
        return F.linear(h, w2, b2), z, h


def _large_backward(
    module: Any,
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    saved: Tensor,
    activation: str,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needs
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = None, None, None, None, None
    saved, grad_y = saved.contiguous(), grad_y.contiguous()
    with torch._C._DisableAutocast():
        if needs_x or needs_w1 or needs_b1:
            grad_z = grad_y @ w2
            grad_b1 = grad_z.new_empty(grad_z.shape[1]) if needs_b1 else None
            module.derive_sum(saved, grad_z, grad_b1, IDS[activation])
            grad_x = grad_z @ w1 if needs_x else None
            grad_w1 = grad_z.t() @ x if needs_w1 else None
        if needs_w2:
            h = saved
            if _saves_input(activation):
                h = torch.empty_like(saved)
                module.activate(saved, h, IDS[activation])
            grad_w2 = grad_y.t() @ h
        if needs_b2:
            grad_b2 = grad_y.new_empty(grad_y.shape[1])
            module.derive_sum(None, grad_y, grad_b2, IDS[activation])
    return [grad_x, grad_w1, grad_b1, grad_w2, grad_b2]


# The short way, without the dispatcher, for eager calls on plain tensors: dense, contiguous, of torch's own classes.


def plain_forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> Tensor | tuple[Tensor, Tensor, Tensor | None] | None:
    """Return y, or (y, saved, None) for ``TwoLayerFunction`` if a gradient is wanted; None where the call is not plain.

    The y of a large net has been through torch's own autograd.
    """
    if type(x) not in PLAIN_TYPES or x is None or x.device.type != _device_type:
        return None
    module: Any = _native.get_cuda()
    if module is None:
        return None
    result = module.plain_forward(x, w1, b1, w2, b2, IDS[activation], _tf32(), torch.is_grad_enabled())
    return reference.two_layer(x, w1, b1, w2, b2, activation) if result is True else result


def plain_backward(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    saved: Tensor,
    activation: str,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...] | None:
    """Return what ``TwoLayerFunction.backward`` does; None where the call is not plain."""
    if grad_y.device.type != _device_type or (module := _native.get_cuda()) is None:
        return None
    grad_y = grad_y.contiguous()  # of a sum it is one number, expanded
    result = module.plain_backward(grad_y, x, w1, w2, saved, IDS[activation], needs, _tf32())
    if result is not True:
        return result
    with torch._C._AutoDispatchBelowAutograd():
        gradients = _large_backward(module, grad_y, x, w1, w2, saved, activation, needs[:5])
    return (*gradients, None, None)
