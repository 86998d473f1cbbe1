"""The net as a function of tensors."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _ops
from .registry import ACTIVATIONS, lookup

AnyTensor = TypeVar("AnyTensor", Tensor, Tensor | None)


def two_layer(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str = "sigmoid"
) -> Tensor:
    """Return ``activation(x w1ᵀ + b1) w2ᵀ + b2``, of shape (..., out).

    Args:
        x: (..., in); any number of leading batch dimensions, as :func:`torch.nn.functional.linear` takes them.
        w1: (hidden, in), as ``nn.Linear`` holds its weight.
        b1: (hidden,), or None.
        w2: (out, hidden).
        b2: (out,), or None.
        activation: a name in :data:`twolayer.registry.ACTIVATIONS`.

    All tensors are on one device and of one floating-point dtype, except under ``torch.autocast``, which casts them as
    it does for ``nn.Linear``. float32, float64 and bfloat16 run natively on the CPU and on CUDA, float16 on CUDA;
    everything else runs the PyTorch reference, with one warning. The result can be differentiated any number of times
    with respect to every tensor.

    Raises:
        TypeError: an argument is not a tensor, or a dtype is not floating-point or differs from x's.
        ValueError: a shape or a device does not fit, or there is no such activation. The message names the argument.
    """
    if has_torch_function_variadic(x, w1, b1, w2, b2):
        return handle_torch_function(two_layer, (x, w1, b1, w2, b2), x, w1, b1, w2, b2, activation)
    if type(activation) is not str or activation not in ACTIVATIONS:
        lookup(ACTIVATIONS, activation, "activation")  # raises the error
    if not torch._C._is_any_autocast_enabled():
        if not torch.compiler.is_compiling() and (y := _ops.run_plain(x, w1, b1, w2, b2, activation)) is not None:
            return y
    else:
        x, w1, w2 = _autocast(x), _autocast(w1), _autocast(w2)
        b1, b2 = _autocast(b1), _autocast(b2)
    _check_kinds(x, w1, b1, w2, b2)
    _check_shapes(x, w1, b1, w2, b2)
    # A graph shows the op; eager code goes straight to its autograd kernel.
    forward = torch.ops.twolayer.forward.default if torch.compiler.is_compiling() else _ops.forward_autograd
    if x.ndim == 2:
        return forward(x, w1, b1, w2, b2, activation)
    rows = x.unsqueeze(0) if x.ndim == 1 else x.flatten(0, -2)
    return forward(rows, w1, b1, w2, b2, activation).view(*x.shape[:-1], w2.shape[0])


def _autocast(tensor: AnyTensor) -> AnyTensor:
    """Cast to the autocast dtype what autocast would cast for ``nn.Linear``: any floating-point tensor but float64."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


# The checks are on every call's path, so they are written out: a loop over the arguments takes twice as long.


def _check_kinds(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> None:
    """Raise an error unless all are tensors (biases may be None) of one floating-point dtype on one device."""
    if not (
        isinstance(x, Tensor)
        and isinstance(w1, Tensor)
        and isinstance(w2, Tensor)
        and (b1 is None or isinstance(b1, Tensor))
        and (b2 is None or isinstance(b2, Tensor))
    ):
        types = _each("__class__", x, w1, b1, w2, b2)
        raise TypeError(f"x, w1 and w2 must be tensors, b1 and b2 tensors or None; got {types}")
    dtype, device = x.dtype, x.device
    if not (
        w1.dtype is dtype
        and w2.dtype is dtype
        and (b1 is None or b1.dtype is dtype)
        and (b2 is None or b2.dtype is dtype)
    ):
        raise TypeError(f"all tensors must have one dtype; got {_each('dtype', x, w1, b1, w2, b2)}")
    if not dtype.is_floating_point:
        raise TypeError(f"x, w1, b1, w2 and b2 must have a floating-point dtype; got {dtype}")
    if not (
        w1.device == device
        and w2.device == device
        and (b1 is None or b1.device == device)
        and (b2 is None or b2.device == device)
    ):
        raise ValueError(f"all tensors must be on one device; got {_each('device', x, w1, b1, w2, b2)}")


def _each(attribute: str, *arguments: object) -> str:
    """Return an attribute of every argument, as "x torch.float32, w1 torch.float64, …", leaving out None."""
    named = zip(("x", "w1", "b1", "w2", "b2"), arguments, strict=True)
    return ", ".join(f"{name} {getattr(argument, attribute)}" for name, argument in named if argument is not None)


def _check_shapes(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> None:
    """Raise an error unless x is (..., in), w1 (hidden, in), b1 (hidden,), w2 (out, hidden) and b2 (out,)."""
    if w1.ndim != 2:
        raise ValueError(f"w1 must have shape (hidden, in); got {tuple(w1.shape)}")
    hidden, features = w1.shape
    if w2.ndim != 2 or w2.shape[1] != hidden:
        raise ValueError(f"w2 must have shape (out, {hidden}), as w1 is {tuple(w1.shape)}; got {tuple(w2.shape)}")
    if x.ndim == 0 or x.shape[-1] != features:
        raise ValueError(f"x must have shape (..., {features}), as w1 is {tuple(w1.shape)}; got {tuple(x.shape)}")
    if b1 is not None and b1.shape != (hidden,):
        raise ValueError(f"b1 must have shape ({hidden},), as w1 is {tuple(w1.shape)}; got {tuple(b1.shape)}")
    if b2 is not None and b2.shape != (w2.shape[0],):
        raise ValueError(f"b2 must have shape ({w2.shape[0]},), as w2 is {tuple(w2.shape)}; got {tuple(b2.shape)}")
