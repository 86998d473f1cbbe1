"""Training in JAX: an epoch is one jitted ``lax.scan`` over its batches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from ..reference.run import OnEpoch, Run
from .problem import Problem, Train, Weights, run_epochs, run_of

ACTIVATIONS = {"identity": lambda z: z, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}
Params = dict[str, Any]


def _cross_entropy(z: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1).mean()


LOSSES = {
    "cross_entropy": _cross_entropy,
    "mse": lambda z, y: jnp.mean((z - y) ** 2),
    "mse_sum": lambda z, y: jnp.sum((z - y) ** 2),
}


@functools.cache
def _epoch(activation: str, loss: str, lr: float) -> Any:
    """The jitted epoch (params, x (batches, rows, in), y) → (params, the last batch's loss); its update is SGD's."""

    def batch_loss(params: Params, x: Any, y: Any) -> Any:
        h = ACTIVATIONS[activation](x @ params["w1"].T + params.get("b1", 0.0))
        return LOSSES[loss](h @ params["w2"].T + params.get("b2", 0.0), y)

    def step(params: Params, batch: tuple[Any, Any]) -> tuple[Params, Any]:
        value, gradients = jax.value_and_grad(batch_loss)(params, *batch)
        return jax.tree.map(lambda param, gradient: param - lr * gradient, params, gradients), value

    def epoch(params: Params, x: Any, y: Any) -> tuple[Params, Any]:
        params, losses = lax.scan(step, params, (x, y))
        return params, losses[-1]

    return jax.jit(epoch, donate_argnums=0)


def scan_program(problem: Problem, start: Weights) -> Train:
    """The whole epoch in one call, on data that JAX holds already."""
    jax.config.update("jax_enable_x64", problem.dtype == "float64")
    rows = problem.batches * problem.batch_size

    def batches(array: np.ndarray) -> Any:
        return jnp.asarray(array[:rows].reshape(problem.batches, problem.batch_size, *array.shape[1:]))

    x = batches(problem.x.astype(problem.dtype, copy=False))
    y = batches(problem.y.astype(problem.dtype if problem.y.dtype.kind == "f" else np.int32))
    params = {name: jnp.asarray(array.astype(problem.dtype)) for name, array in start.arrays().items()}
    epoch = _epoch(problem.activation, problem.loss, problem.lr)

    def train(on_epoch: OnEpoch | None) -> Run:
        def one() -> float:
            nonlocal params
            params, loss = epoch(params, x, y)
            return float(loss)

        losses = run_epochs(problem, one, on_epoch)
        return run_of(losses, {name: np.asarray(param) for name, param in params.items()})

    return train
