"""The activations: value and derivative, both as functions of the pre-activation z, elementwise, in z's dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def identity(z: Array) -> Array:
    return z.copy()


def identity_derivative(z: Array) -> Array:
    return np.ones_like(z)


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def relu_derivative(z: Array) -> Array:
    return np.where(z <= 0, 0, 1).astype(z.dtype)  # 0 at the kink and 1 at NaN, as torch has it


def sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))  # never above 1
    return np.where(z >= 0, 1, e) / (1 + e)


def sigmoid_derivative(z: Array) -> Array:
    return sigmoid(z) * sigmoid(-z)


def tanh(z: Array) -> Array:
    return np.tanh(z)


def tanh_derivative(z: Array) -> Array:
    return 1 - np.tanh(z) ** 2


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _normal_cdf(z: Array) -> Array:
    return (0.5 * _erfc(-z / math.sqrt(2))).astype(z.dtype)


def gelu(z: Array) -> Array:
    """z Φ(z), Φ the standard normal distribution function (Hendrycks and Gimpel, 2016)."""
    return z * _normal_cdf(z)


def gelu_derivative(z: Array) -> Array:
    density = np.exp(-0.5 * np.clip(z, -40, 40) ** 2) / math.sqrt(2 * math.pi)  # 0 from 40 on; z² would overflow
    return _normal_cdf(z) + z * density


def _gelu_tanh_gate(z: Array) -> tuple[Array, Array, Array]:
    """u = 2 √(2/π) (z + 0.044715 z³), as sigmoid(u) = (1 + tanh(u/2)) / 2, sigmoid(-u) and du/dz."""
    scale = 2 * math.sqrt(2 / math.pi)
    z = np.clip(z, -30, 30)  # both sigmoids are exactly 0 or 1 there; z³ would overflow
    u = scale * (z + 0.044715 * z**3)
    return sigmoid(u), sigmoid(-u), scale * (1 + 3 * 0.044715 * z**2)


def gelu_tanh(z: Array) -> Array:
    """The tanh approximation of GELU, z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2."""
    return z * _gelu_tanh_gate(z)[0]


def gelu_tanh_derivative(z: Array) -> Array:
    gate, complement, slope = _gelu_tanh_gate(z)
    return gate + z * gate * complement * slope


def silu(z: Array) -> Array:
    """z sigmoid(z), also called swish (Elfwing et al., 2017)."""
    return z * sigmoid(z)


def silu_derivative(z: Array) -> Array:
    return sigmoid(z) * (1 + z * sigmoid(-z))


SOFTPLUS_THRESHOLD = 20.0  # torch.nn.Softplus: linear above it


def softplus(z: Array) -> Array:
    return np.where(z > SOFTPLUS_THRESHOLD, z, np.log1p(np.exp(np.minimum(z, SOFTPLUS_THRESHOLD))))


def softplus_derivative(z: Array) -> Array:
    return np.where(z > SOFTPLUS_THRESHOLD, 1, sigmoid(z))


LEAKY_RELU_SLOPE = 0.01  # torch.nn.LeakyReLU's default


def leaky_relu(z: Array) -> Array:
    return np.where(z > 0, z, LEAKY_RELU_SLOPE * z)


def leaky_relu_derivative(z: Array) -> Array:
    return np.where(z > 0, 1, LEAKY_RELU_SLOPE).astype(z.dtype)


def relu_squared(z: Array) -> Array:
    """max(z, 0)² (So et al., Primer, 2021)."""
    return relu(z) ** 2


def relu_squared_derivative(z: Array) -> Array:
    return 2 * relu(z)


def sine(z: Array) -> Array:
    """sin z (Sitzmann et al., SIREN, 2020)."""
    return np.sin(z)


def sine_derivative(z: Array) -> Array:
    return np.cos(z)


Elementwise = Callable[[Array], Array]

ACTIVATIONS: dict[str, tuple[Elementwise, Elementwise]] = {
    "identity": (identity, identity_derivative),
    "relu": (relu, relu_derivative),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "tanh": (tanh, tanh_derivative),
    "gelu": (gelu, gelu_derivative),
    "gelu_tanh": (gelu_tanh, gelu_tanh_derivative),
    "silu": (silu, silu_derivative),
    "softplus": (softplus, softplus_derivative),
    "leaky_relu": (leaky_relu, leaky_relu_derivative),
    "relu_squared": (relu_squared, relu_squared_derivative),
    "sine": (sine, sine_derivative),
}
