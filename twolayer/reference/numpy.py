"""The ground truth: the net's two passes and its training as explicit formulas in NumPy.

Activations, losses, optimisers and random numbers have modules of their own beside this one; what they offer can be
imported from here. The arithmetic is done in the dtype of what comes in; tests pass float64. Weights are as
``torch.nn.Linear`` holds them; x is (batch, in), w1 (hidden, in), b1 (hidden,) or None, w2 (out, hidden), b2 (out,) or
None.

    z1 = x w1ᵀ + b1    h = activation(z1)    y = h w2ᵀ + b2
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activations import ACTIVATIONS, LEAKY_RELU_SLOPE, SOFTPLUS_THRESHOLD
from .losses import LOSSES
from .optimizers import OPTIMIZERS
from .random import dropout_mask, permutation

__all__ = [
    "ACTIVATIONS",
    "LEAKY_RELU_SLOPE",
    "LOSSES",
    "OPTIMIZERS",
    "SOFTPLUS_THRESHOLD",
    "LossCurves",
    "backward",
    "clip_gradients",
    "dropout_mask",
    "forward",
    "loss_and_gradients",
    "penalty",
    "penalty_gradient",
    "permutation",
    "train",
]

Array = NDArray[Any]

# ---------------------------------------------------------------------------------------------------------------------
# The net.


def _unchanged(factor: Array) -> Array:
    return factor


def forward(
    x: Array,
    w1: Array,
    b1: Array | None,
    w2: Array,
    b2: Array | None,
    activation: str,
    *,
    mask: Array | None = None,
    rounded: Callable[[Array], Array] = _unchanged,
) -> tuple[Array, Array, Array]:
    """Return y (batch, out), the pre-activation z1 (batch, hidden) and h = activation(z1), times ``mask`` if given.

    mask (batch, hidden) is dropout's. ``rounded`` is applied to each factor of the two products, h included: training
    in a short format rounds them to it.
    """
    value, _ = ACTIVATIONS[activation]
    z1 = rounded(x) @ rounded(w1).T
    if b1 is not None:
        z1 += b1
    h = value(z1)
    if mask is not None:
        h *= mask
    h = rounded(h)
    y = h @ rounded(w2).T
    if b2 is not None:
        y += b2
    return y, z1, h


def backward(
    grad_y: Array,
    x: Array,
    w1: Array,
    w2: Array,
    z1: Array,
    activation: str,
    *,
    mask: Array | None = None,
    rounded: Callable[[Array], Array] = _unchanged,
    input_gradient: bool = True,
) -> dict[str, Array]:
    """Return the gradients by name: w1, b1, w2, b2 and, unless ``input_gradient`` is off, x.

    grad_y is (batch, out), z1 (batch, hidden) as ``forward`` returned it for this ``mask`` and ``rounded``; each
    gradient has the shape of its namesake.
    """
    value, derivative = ACTIVATIONS[activation]
    dropped = 1 if mask is None else mask
    grad_y = rounded(grad_y)
    grad_z1 = rounded((grad_y @ rounded(w2)) * dropped * derivative(z1))  # (batch, hidden)
    gradients = {
        "w1": grad_z1.T @ rounded(x),
        "b1": grad_z1.sum(axis=0),
        "w2": grad_y.T @ rounded(value(z1) * dropped),
        "b2": grad_y.sum(axis=0),
    }
    if input_gradient:
        gradients["x"] = grad_z1 @ rounded(w1)
    return gradients


# ---------------------------------------------------------------------------------------------------------------------
# What a training step adds: penalties and clipping.


def penalty(w1: Array, w2: Array, l1: float, l2: float) -> float:
    """l1 Σ|W| + l2/2 Σ W² over w1 and w2."""
    return sum(l1 * float(np.abs(w).sum()) + l2 / 2 * float(np.sum(w**2)) for w in (w1, w2))


def penalty_gradient(w: Array, l1: float, l2: float) -> Array:
    """The gradient of ``penalty`` with respect to one of its weights; that of |W| is 0 at 0."""
    return l1 * np.sign(w) + l2 * w


def loss_and_gradients(
    params: Mapping[str, Any],
    x: Array,
    y: Array,
    *,
    activation: str,
    loss: str,
    loss_options: Mapping[str, Any],
    l1: float = 0.0,
    l2: float = 0.0,
    mask: Array | None = None,
    rounded: Callable[[Array], Array] = _unchanged,
) -> tuple[float, dict[str, Array]]:
    """Return what a step lowers, the loss plus the penalty, and its gradients by name, of ``params`` that are not None.

    x is (batch, in), y as the loss takes it; ``loss_options`` go to the loss, ``mask`` and ``rounded`` to ``forward``.
    """
    w1, b1, w2, b2 = (params[name] for name in ("w1", "b1", "w2", "b2"))
    passes: dict[str, Any] = {"activation": activation, "mask": mask, "rounded": rounded}
    z, z1, _ = forward(x, w1, b1, w2, b2, **passes)
    grad_z = LOSSES[loss].gradient(z, y, **loss_options)
    gradients = backward(grad_z, x, w1, w2, z1, **passes, input_gradient=False)
    value = LOSSES[loss].value(z, y, **loss_options)
    if l1 or l2:
        value += penalty(w1, w2, l1, l2)
        for name in ("w1", "w2"):
            gradients[name] += penalty_gradient(params[name], l1, l2)
    return value, {name: gradient for name, gradient in gradients.items() if params[name] is not None}


def clip_gradients(gradients: Mapping[str, Array], clip_norm: float = 0.0, clip_value: float = 0.0) -> dict[str, Array]:
    """Shorten the gradients, taken as one vector, to length clip_norm, then clamp each number to ±clip_value.

    As torch.nn.utils.clip_grad_norm_ and clip_grad_value_ do; 0 leaves either out.
    """
    clipped = dict(gradients)
    if clip_norm:
        norm = np.sqrt(sum(np.sum(g**2, dtype=np.float64) for g in clipped.values()))
        factor = float(np.minimum(clip_norm / (norm + 1e-6), 1))
        clipped = {name: factor * g for name, g in clipped.items()}
    if clip_value:
        clipped = {name: np.clip(g, -clip_value, clip_value) for name, g in clipped.items()}
    return clipped


# ---------------------------------------------------------------------------------------------------------------------
# Training.

LearningRate = float | Sequence[float] | Array | Callable[[int, int], float]


def _rate(lr: LearningRate, step: int, epoch: int) -> float:
    if callable(lr):
        return lr(step, epoch)
    return lr if isinstance(lr, (int, float)) else float(lr[step])


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
    lr: LearningRate,
    optimizer: str = "sgd",
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    sample_weight: Array | None = None,
    loss_options: Mapping[str, Any] | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    clip_norm: float = 0.0,
    clip_value: float = 0.0,
    dropout: float = 0.0,
    frozen: Collection[str] = (),
    **optimizer_options: Any,
) -> LossCurves:
    """Train the net by mini-batches, changing ``params`` (w1, b1, w2, b2; a bias may be None) in place, in their dtype.

    Args:
        x: (n, in).
        y: integer classes (n,), or floats (n, out) or (out,), one target for all rows.
        lr: one for all steps, one for each, or a function of (step, epoch), both from 0 and counted from the start.
        sample_weight: (n,), what each row counts for.
        loss_options: the loss's own, such as label_smoothing.
        l1, l2: ``penalty``, part of the loss. clip_norm, clip_value: ``clip_gradients``, of those not frozen.
        dropout: the share of hidden values set to 0 in training; ``dropout_mask(seed, step, …)`` says which.
        frozen: names of parameters that are left as they are.
        optimizer_options: momentum, betas …, to the update rule as they are.

    A step takes the loss and the gradients with those of the penalty, clips them by norm, then by value, and updates.
    Losses are those before the step's update.
    """
    update = OPTIMIZERS[optimizer].update
    dtype = params["w1"].dtype
    if np.issubdtype(y.dtype, np.floating):
        y = _row_targets(y.astype(dtype), (len(x), len(params["w2"])))
    rows_per_epoch = len(x) - len(x) % batch_size if drop_last else len(x)
    if rows_per_epoch == 0:
        raise ValueError(f"x must have at least one batch of rows; got {len(x)} rows at batch_size {batch_size}")

    state: dict[str, dict[str, Any]] = {name: {} for name in params}
    curves = LossCurves([], [], [])
    for epoch in range(epochs):
        order = permutation(len(x), seed, epoch) if shuffle else np.arange(len(x))
        weighted_loss = 0.0
        for start in range(0, rows_per_epoch, batch_size):
            rows = order[start : min(start + batch_size, rows_per_epoch)]
            step = len(curves.step_loss)
            mask = dropout_mask(seed, step, len(rows), len(params["w1"]), dropout).astype(dtype) if dropout else None
            weight = None if sample_weight is None else sample_weight[rows].astype(dtype)
            batch_loss, gradients = loss_and_gradients(
                params,
                x[rows].astype(dtype, copy=False),
                y[rows],
                activation=activation,
                loss=loss,
                loss_options={**(loss_options or {}), "sample_weight": weight},
                l1=l1,
                l2=l2,
                mask=mask,
            )
            trained = {name: gradient for name, gradient in gradients.items() if name not in frozen}
            for name, gradient in clip_gradients(trained, clip_norm, clip_value).items():
                update(params[name], gradient, state[name], lr=_rate(lr, step, epoch), **optimizer_options)
            curves.step_loss.append(batch_loss)
            weighted_loss += batch_loss * len(rows)
        curves.loss.append(weighted_loss / rows_per_epoch)
        curves.last_batch_loss.append(curves.step_loss[-1])
    return curves
