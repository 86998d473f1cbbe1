"""The tutorial's six programs, to be read beside it: two tasks, each written three ways with the whole loop in view.

Regression fits x (64, 1000) to one target y (10,) for all rows, by full-batch gradient descent on the sum of squares:
``regression_numpy``, ``regression_torch`` (both with gradients by hand) and ``regression_autograd``. Weights are held
as x @ w1 wants them, (in, hidden), and there are no biases.

Classification fits raw 0-255 pixels to ten digits by mini-batch descent on the mean cross-entropy:
``classification_parameters`` (a module with raw Parameters), ``classification_linear`` (nn.Linear) and
``classification_optim`` (nn.Linear and optim.SGD). Weights are in nn.Linear's layout, (out, in). Batches are taken in
order and the last short one is dropped.

Every program takes NumPy arrays, leaves them unchanged, computes in their dtype and returns a ``Run``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .run import OnEpoch, Run

Array = NDArray[Any]

# The final losses that the tutorial printed. The regression's depends on the draw: 3e-7 to 1.4e-4 have been seen.
PRINTED = {"regression": 1.88e-5, "parameters": 5.3542, "linear": 0.8863, "optim": 0.8116}


class RegressionData(NamedTuple):
    x: Array  # (64, 1000)
    y: Array  # (10,), the target of every row
    w1: Array  # (1000, 100)
    w2: Array  # (100, 10)


class ClassificationWeights(NamedTuple):
    w1: Array  # (hidden, in)
    b1: Array  # (hidden,)
    w2: Array  # (out, hidden)
    b2: Array  # (out,)


def regression_data(seed: int) -> RegressionData:
    """Draw the regression's data and initial weights from the standard normal distribution, in float32."""
    rng = np.random.default_rng(seed)
    shapes = [(64, 1000), (10,), (1000, 100), (100, 10)]
    return RegressionData(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))


def randn_weights(seed: int, in_features: int = 784, hidden: int = 100, out: int = 10) -> ClassificationWeights:
    """Draw weights and biases from the standard normal distribution, in float32, as the raw-Parameter program does."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(hidden, in_features), (hidden,), (out, hidden), (out,)]
    return ClassificationWeights(*(torch.randn(shape, generator=generator).numpy() for shape in shapes))


def linear_weights(seed: int, in_features: int = 784, hidden: int = 100, out: int = 10) -> ClassificationWeights:
    """Draw nn.Linear's own initial weights, uniform within ±1/√in, in float32, as the other two programs do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(in_features, hidden), nn.Linear(hidden, out)]
    return ClassificationWeights(*(param.detach().numpy() for layer in layers for param in layer.parameters()))


def regression_numpy(
    x: Array,
    y: Array,
    w1: Array,
    w2: Array,
    *,
    activation: Literal["relu", "identity"] = "relu",
    lr: float = 1e-6,
    steps: int = 500,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """NumPy, gradients by hand. x (batch, in), y (out,) or (batch, out), w1 (in, hidden), w2 (hidden, out).

    The tutorial's text names y = x as the activation, ``"identity"``; its code uses ReLU, ``"relu"``.
    """
    _check_activation(activation)
    w1, w2 = w1.copy(), w2.copy()
    losses = []
    for step in range(steps):
        # Forward.
        z = x @ w1  # (batch, hidden)
        h = np.maximum(z, 0) if activation == "relu" else z
        y_pred = h @ w2  # (batch, out)
        loss = float(np.square(y_pred - y).sum())

        # Backward.
        grad_y_pred = 2 * (y_pred - y)
        grad_w2 = h.T @ grad_y_pred
        grad_h = grad_y_pred @ w2.T
        grad_z = grad_h * (z > 0) if activation == "relu" else grad_h
        grad_w1 = x.T @ grad_z

        # Update.
        w1 -= lr * grad_w1
        w2 -= lr * grad_w2

        losses.append(loss)
        if on_epoch:
            on_epoch(step, loss)
    return Run(losses, w1.T, None, w2.T, None)


def regression_torch(
    x: Array,
    y: Array,
    w1: Array,
    w2: Array,
    *,
    activation: Literal["relu", "identity"] = "relu",
    lr: float = 1e-6,
    steps: int = 500,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """torch tensors, gradients still by hand; arguments as in ``regression_numpy``."""
    _check_activation(activation)
    inputs, target = torch.tensor(x), torch.tensor(y)
    weight1, weight2 = torch.tensor(w1), torch.tensor(w2)
    losses = []
    for step in range(steps):
        # Forward.
        z = inputs @ weight1  # (batch, hidden)
        h = z.clamp(min=0) if activation == "relu" else z
        y_pred = h @ weight2  # (batch, out)
        loss = (y_pred - target).square().sum().item()

        # Backward.
        grad_y_pred = 2 * (y_pred - target)
        grad_weight2 = h.T @ grad_y_pred
        grad_h = grad_y_pred @ weight2.T
        grad_z = grad_h * (z > 0) if activation == "relu" else grad_h
        grad_weight1 = inputs.T @ grad_z

        # Update.
        weight1 -= lr * grad_weight1
        weight2 -= lr * grad_weight2

        losses.append(loss)
        if on_epoch:
            on_epoch(step, loss)
    return Run(losses, weight1.T.numpy(), None, weight2.T.numpy(), None)


def regression_autograd(
    x: Array,
    y: Array,
    w1: Array,
    w2: Array,
    *,
    activation: Literal["relu", "identity"] = "relu",
    lr: float = 1e-6,
    steps: int = 500,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """torch tensors, gradients by autograd; arguments as in ``regression_numpy``."""
    _check_activation(activation)
    inputs, target = torch.tensor(x), torch.tensor(y)
    weight1, weight2 = torch.tensor(w1, requires_grad=True), torch.tensor(w2, requires_grad=True)
    losses = []
    for step in range(steps):
        z = inputs @ weight1  # (batch, hidden)
        h = z.clamp(min=0) if activation == "relu" else z
        y_pred = h @ weight2  # (batch, out)
        loss = (y_pred - target).square().sum()
        loss.backward()
        with torch.no_grad():
            for weight in (weight1, weight2):
                weight -= lr * weight.grad  # type: ignore[operator]
                weight.grad = None
        losses.append(loss.item())
        if on_epoch:
            on_epoch(step, losses[-1])
    return Run(losses, weight1.detach().T.numpy(), None, weight2.detach().T.numpy(), None)


class ParameterNet(nn.Module):
    """sigmoid(x w1ᵀ + b1) w2ᵀ + b2 with the four arrays as raw Parameters."""

    def __init__(self, w1: Array, b1: Array, w2: Array, b2: Array) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.tensor(w1))
        self.b1 = nn.Parameter(torch.tensor(b1))
        self.w2 = nn.Parameter(torch.tensor(w2))
        self.b2 = nn.Parameter(torch.tensor(b2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(x @ self.w1.T + self.b1)
        return h @ self.w2.T + self.b2


def classification_parameters(
    x: Array,
    y: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    *,
    lr: float = 1e-4,
    epochs: int = 30,
    batch_size: int = 64,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """A module with raw Parameters, updated by hand. x (n, in), y integer labels (n,).

    The tutorial starts this program from ``randn_weights`` and the other two from ``linear_weights``.
    """
    inputs, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    net = ParameterNet(w1, b1, w2, b2)
    batches = _full_batches(len(x), batch_size)
    losses = []
    for epoch in range(epochs):
        for k in range(batches):
            rows = slice(k * batch_size, (k + 1) * batch_size)
            loss = functional.cross_entropy(net(inputs[rows]), labels[rows])
            loss.backward()
            with torch.no_grad():
                for param in net.parameters():
                    param -= lr * param.grad  # type: ignore[operator, misc]
                    param.grad = None
        losses.append(loss.item())
        if on_epoch:
            on_epoch(epoch, losses[-1])
    return Run(losses, *(param.detach().numpy() for param in net.parameters()))


def classification_linear(
    x: Array,
    y: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    *,
    lr: float = 1e-4,
    epochs: int = 30,
    batch_size: int = 64,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """nn.Linear layers, still updated by hand; arguments as in ``classification_parameters``."""
    inputs, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    net = nn.Sequential(_linear(w1, b1), nn.Sigmoid(), _linear(w2, b2))
    batches = _full_batches(len(x), batch_size)
    losses = []
    for epoch in range(epochs):
        for k in range(batches):
            rows = slice(k * batch_size, (k + 1) * batch_size)
            loss = functional.cross_entropy(net(inputs[rows]), labels[rows])
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for param in net.parameters():
                    param -= lr * param.grad  # type: ignore[operator, misc]
        losses.append(loss.item())
        if on_epoch:
            on_epoch(epoch, losses[-1])
    return Run(losses, *(param.detach().numpy() for param in net.parameters()))


def classification_optim(
    x: Array,
    y: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    *,
    lr: float = 1e-4,
    epochs: int = 30,
    batch_size: int = 64,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """nn.Linear layers updated by optim.SGD; arguments as in ``classification_parameters``.

    The tutorial's loop, ``for epoch in range(epochs, batch)``, counts from 30 to 63: its figure is that of 34 epochs.
    This loop runs the ``epochs`` it is asked for.
    """
    inputs, labels = torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    net = nn.Sequential(_linear(w1, b1), nn.Sigmoid(), _linear(w2, b2))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    batches = _full_batches(len(x), batch_size)
    losses = []
    for epoch in range(epochs):
        for k in range(batches):
            rows = slice(k * batch_size, (k + 1) * batch_size)
            loss = functional.cross_entropy(net(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        if on_epoch:
            on_epoch(epoch, losses[-1])
    return Run(losses, *(param.detach().numpy() for param in net.parameters()))


def _linear(weight: Array, bias: Array) -> nn.Linear:
    out_features, in_features = weight.shape
    layer = nn.Linear(in_features, out_features)
    layer.weight, layer.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))
    return layer


def _full_batches(rows: int, batch_size: int) -> int:
    if rows < batch_size:
        raise ValueError(f"x must have at least one batch of rows; got {rows} rows at batch_size {batch_size}")
    return rows // batch_size


def _check_activation(activation: str) -> None:
    if activation not in ("relu", "identity"):
        raise ValueError(f"activation must be 'relu' or 'identity', got {activation!r}")
