"""The net in plain, differentiable torch ops, for every device and dtype without a kernel and for double backward.

Shapes: x (batch, in), w1 (hidden, in), b1 (hidden,) or None, w2 (out, hidden), b2 (out,) or None. The backward formulas
are torch's own ops, so half precision rounds where ``nn.Sequential`` rounds and NaN travels as it does there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from .. import registry
from .numpy import LEAKY_RELU_SLOPE, SOFTPLUS_THRESHOLD

aten = torch.ops.aten


def identity(z: Tensor) -> Tensor:
    return z


def relu_squared(z: Tensor) -> Tensor:
    return torch.relu(z).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": identity,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "softplus": partial(functional.softplus, threshold=SOFTPLUS_THRESHOLD),
    "leaky_relu": partial(functional.leaky_relu, negative_slope=LEAKY_RELU_SLOPE),
    "relu_squared": relu_squared,
    "sine": torch.sin,
}


def silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    if torch.is_grad_enabled():  # aten.silu_backward has no derivative of its own
        gate = torch.sigmoid(z)
        return grad * gate * (1 + z * (1 - gate))
    return aten.silu_backward(grad, z)


# (gradient of the activation's output, saved) -> gradient of its input. ``saved`` is the output a or the input z, as
# ``registry.ACTIVATIONS[name].saved`` says.
ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda grad, a: grad,
    "relu": lambda grad, a: aten.threshold_backward(grad, a, 0),  # 0 where a <= 0, so that a NaN lets grad through
    "sigmoid": aten.sigmoid_backward,  # grad a (1 - a)
    "tanh": aten.tanh_backward,  # grad (1 - a²)
    "gelu": aten.gelu_backward,
    "gelu_tanh": partial(aten.gelu_backward, approximate="tanh"),
    "silu": silu_backward,
    "softplus": lambda grad, z: aten.softplus_backward(grad, z, 1, SOFTPLUS_THRESHOLD),
    "leaky_relu": lambda grad, a: aten.leaky_relu_backward(grad, a, LEAKY_RELU_SLOPE, True),
    "relu_squared": lambda grad, z: grad * (2 * torch.relu(z)),
    "sine": lambda grad, z: grad * torch.cos(z),
}


def mse(z: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(z, y.expand_as(z))


def mse_sum(z: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(z, y.expand_as(z), reduction="sum")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "mse": mse,
    "mse_sum": mse_sum,
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
}


def two_layer(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str) -> Tensor:
    """Return activation(x w1ᵀ + b1) w2ᵀ + b2, (batch, out)."""
    return functional.linear(ACTIVATIONS[activation](functional.linear(x, w1, b1)), w2, b2)


def forward_saved(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Return y (batch, out) and what ``backward`` needs: the activation's output or its input, (batch, hidden)."""
    z1 = functional.linear(x, w1, b1)
    h = ACTIVATIONS[activation](z1)
    return functional.linear(h, w2, b2), h if registry.ACTIVATIONS[activation].saved == "output" else z1


def backward(
    grad_y: Tensor, x: Tensor, w1: Tensor, w2: Tensor, saved: Tensor, activation: str, needs: Sequence[bool]
) -> list[Tensor]:
    """Return the gradients of (x, w1, b1, w2, b2), in that order, leaving out those whose flag in ``needs`` is off.

    Every tensor argument may require grad. In a double backward ``saved`` must be a differentiable function of x, w1
    and b1, as ``forward_saved`` returns it: the second derivative of the activation flows through it.
    """
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needs
    gradients = []
    if needs_x or needs_w1 or needs_b1:
        grad_z1 = ACTIVATION_BACKWARD[activation](grad_y @ w2, saved)  # (batch, hidden)
        if needs_x:
            gradients.append(grad_z1 @ w1)
        if needs_w1:
            gradients.append(grad_z1.T @ x)
        if needs_b1:
            gradients.append(grad_z1.sum(0))
    if needs_w2:
        h = saved if registry.ACTIVATIONS[activation].saved == "output" else ACTIVATIONS[activation](saved)
        gradients.append(grad_y.T @ h)
    if needs_b2:
        gradients.append(grad_y.sum(0))
    return gradients
