"""The ground truth: every activation, loss and optimiser, and the net's two passes, as explicit formulas in NumPy.

The arithmetic is done in the dtype of what comes in; tests pass float64. Shapes: x (batch, in), w1 (hidden, in),
b1 (hidden,) or None, w2 (out, hidden), b2 (out,) or None; weights are as ``torch.nn.Linear`` holds them.

    z1 = x w1ᵀ + b1    h = activation(z1)    y = h w2ᵀ + b2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# ---------------------------------------------------------------------------------------------------------------------
# Activations: value and derivative, both as functions of the pre-activation z, elementwise.


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

# ---------------------------------------------------------------------------------------------------------------------
# Losses: value and gradient with respect to z, the net's output of shape (batch, out).


def cross_entropy(z: Array, labels: Array) -> float:
    """Mean over the batch of log Σⱼ exp(zⱼ) - z[label]; labels are integers of shape (batch,)."""
    shifted = z - z.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_normaliser = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_normaliser - shifted[np.arange(len(z)), labels]))


def cross_entropy_gradient(z: Array, labels: Array) -> Array:
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    gradient = exponentials / exponentials.sum(axis=1, keepdims=True)
    gradient[np.arange(len(z)), labels] -= 1
    return gradient / len(z)


def mse(z: Array, y: Array) -> float:
    """Mean of (z - y)² over all elements; y broadcasts to z's shape."""
    return float(np.mean((z - y) ** 2))


def mse_gradient(z: Array, y: Array) -> Array:
    return 2 * (z - y) / z.size


def mse_sum(z: Array, y: Array) -> float:
    """Sum of (z - y)² over all elements; y broadcasts to z's shape."""
    return float(np.sum((z - y) ** 2))


def mse_sum_gradient(z: Array, y: Array) -> Array:
    return 2 * (z - y)


LOSSES: dict[str, tuple[Callable[[Array, Array], float], Callable[[Array, Array], Array]]] = {
    "cross_entropy": (cross_entropy, cross_entropy_gradient),
    "mse": (mse, mse_gradient),
    "mse_sum": (mse_sum, mse_sum_gradient),
}

# ---------------------------------------------------------------------------------------------------------------------
# Optimisers: one step of torch.optim's arithmetic, changing param and state in place.


def sgd(
    param: Array,
    grad: Array,
    state: dict[str, Array],
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """torch.optim.SGD. ``state`` is empty before the first step, which fills the momentum buffer undampened."""
    if weight_decay:
        grad = grad + weight_decay * param
    if momentum:
        if "momentum_buffer" in state:
            state["momentum_buffer"] = momentum * state["momentum_buffer"] + (1 - dampening) * grad
        else:
            state["momentum_buffer"] = grad.copy()
        buffer = state["momentum_buffer"]
        grad = grad + momentum * buffer if nesterov else buffer
    param -= lr * grad


OPTIMIZERS: dict[str, Callable[..., None]] = {"sgd": sgd}

# ---------------------------------------------------------------------------------------------------------------------
# The net.


def forward(
    x: Array, w1: Array, b1: Array | None, w2: Array, b2: Array | None, activation: str
) -> tuple[Array, Array, Array]:
    """Return y (batch, out), the pre-activation z1 (batch, hidden) and h = activation(z1)."""
    value, _ = ACTIVATIONS[activation]
    z1 = x @ w1.T
    if b1 is not None:
        z1 += b1
    h = value(z1)
    y = h @ w2.T
    if b2 is not None:
        y += b2
    return y, z1, h


def backward(
    grad_y: Array, x: Array, w1: Array, w2: Array, z1: Array, activation: str, *, input_gradient: bool = True
) -> dict[str, Array]:
    """Return the gradients by name: w1, b1, w2, b2 and, unless ``input_gradient`` is off, x.

    grad_y is (batch, out), z1 (batch, hidden) as ``forward`` returned it; each gradient has the shape of its namesake.
    """
    value, derivative = ACTIVATIONS[activation]
    grad_z1 = (grad_y @ w2) * derivative(z1)  # (batch, hidden)
    gradients = {
        "w1": grad_z1.T @ x,
        "b1": grad_z1.sum(axis=0),
        "w2": grad_y.T @ value(z1),
        "b2": grad_y.sum(axis=0),
    }
    if input_gradient:
        gradients["x"] = grad_z1 @ w1
    return gradients


# ---------------------------------------------------------------------------------------------------------------------
# Batch order and training.

_UINT64 = (1 << 64) - 1
_SPLITMIX64_INCREMENT = 0x9E3779B97F4A7C15


def _splitmix64(state: int, count: int) -> NDArray[np.uint64]:
    """The first ``count`` outputs of SplitMix64 from ``state`` (Steele, Lea and Flood, 2014), all at once:
    its state is an arithmetic progression."""
    z = np.uint64(state) + np.uint64(_SPLITMIX64_INCREMENT) * np.arange(1, count + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which shuffled training visits n rows in an epoch (from 0): Fisher–Yates driven by SplitMix64.

    The generator starts from SplitMix64's first output from the state seed · 0x9E3779B97F4A7C15 + (epoch + 1) ·
    0xD1B54A32D192ED03 mod 2⁶⁴. For i from n - 1 down to 1, the next output r gives j = ⌊r (i + 1) / 2⁶⁴⌋, and rows i
    and j change places.
    """
    if not 0 <= n < 1 << 32:
        raise ValueError(f"n must be at least 0 and below 2**32, got {n}")
    state = (seed * _SPLITMIX64_INCREMENT + (epoch + 1) * 0xD1B54A32D192ED03) & _UINT64
    state = int(
        _splitmix64(state, 1)[0]
    )  # neighbouring seeds start one increment apart: else their draws would overlap
    draws = _splitmix64(state, max(n - 1, 0))
    bounds = np.arange(n, 1, -1, dtype=np.uint64)  # i + 1
    high, low = draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)
    partners = (high * bounds + (low * bounds >> np.uint64(32))) >> np.uint64(32)  # (draws * bounds) >> 64, no overflow

    order = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), partners.tolist(), strict=True):
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)


def _row_targets(y: Array, shape: tuple[int, int]) -> Array:
    """Give every row of the batch its target; y is (n, out) already or (out,), one target for all rows."""
    if y.shape not in (shape, shape[1:]):
        raise ValueError(f"y must be of shape {shape} or {shape[1:]}, got {y.shape}")
    return np.broadcast_to(y, shape)


class LossCurves(NamedTuple):
    """What ``train`` saw: per epoch the mean loss (over rows) and the last batch's; the loss of every step."""

    loss: list[float]
    last_batch_loss: list[float]
    step_loss: list[float]


def train(
    params: Mapping[str, Any],
    x: Array,
    y: Array,
    *,
    activation: str,
    loss: str,
    batch_size: int,
    epochs: int,
    optimizer: str = "sgd",
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    **optimizer_options: Any,
) -> LossCurves:
    """Train the net by mini-batches, changing ``params`` (w1, b1, w2, b2; a bias may be None) in place, in their dtype.

    x is (n, in), y integer labels (n,) or float targets (n, out), or (out,): one target for all rows. Losses are taken
    before the step's update. ``optimizer_options`` (lr, momentum, ...) go to the update rule as they are.
    """
    loss_value, loss_gradient = LOSSES[loss]
    update = OPTIMIZERS[optimizer]
    dtype = params["w1"].dtype
    if np.issubdtype(y.dtype, np.floating):
        y = _row_targets(y.astype(dtype), (len(x), len(params["w2"])))
    rows_per_epoch = len(x) - len(x) % batch_size if drop_last else len(x)
    if rows_per_epoch == 0:
        raise ValueError(f"x must have at least one batch of rows; got {len(x)} rows at batch_size {batch_size}")

    state: dict[str, dict[str, Array]] = {name: {} for name in params}
    curves = LossCurves([], [], [])
    for epoch in range(epochs):
        order = permutation(len(x), seed, epoch) if shuffle else np.arange(len(x))
        weighted_loss = 0.0
        for start in range(0, rows_per_epoch, batch_size):
            rows = order[start : min(start + batch_size, rows_per_epoch)]
            x_batch, y_batch = x[rows].astype(dtype, copy=False), y[rows]
            z, z1, _ = forward(x_batch, params["w1"], params["b1"], params["w2"], params["b2"], activation)
            batch_loss = loss_value(z, y_batch)
            gradients = backward(
                loss_gradient(z, y_batch), x_batch, params["w1"], params["w2"], z1, activation, input_gradient=False
            )
            for name, param in params.items():
                if param is not None:
                    update(param, gradients[name], state[name], **optimizer_options)
            curves.step_loss.append(batch_loss)
            weighted_loss += batch_loss * len(rows)
        curves.loss.append(weighted_loss / rows_per_epoch)
        curves.last_batch_loss.append(curves.step_loss[-1])
    return curves
