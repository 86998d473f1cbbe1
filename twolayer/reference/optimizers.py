"""The optimisers: one step of torch.optim's arithmetic, changing ``param`` in place and ``state`` by torch's names.

``state`` is empty before the first step of a parameter, and holds afterwards what ``torch.optim`` keeps for it: arrays
of the parameter's shape and, where the rule counts steps, ``step``. Defaults are torch's; ``lr`` must be given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Any]


def sgd(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """torch.optim.SGD. The first step fills the momentum buffer undampened."""
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


def adam(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    eps_hat: bool = False,
) -> None:
    """torch.optim.Adam (Kingma and Ba, 2015; amsgrad: Reddi et al., 2018).

    With ``eps_hat``, eps is added before the correction of the mean square: their ε̂, as in scikit-learn and TensorFlow.
    """
    if weight_decay:
        grad = grad + weight_decay * param
    beta1, beta2 = betas
    step = state["step"] = state.get("step", 0) + 1
    mean = state["exp_avg"] = beta1 * _kept(state, "exp_avg", param) + (1 - beta1) * grad
    square = state["exp_avg_sq"] = beta2 * _kept(state, "exp_avg_sq", param) + (1 - beta2) * grad**2
    if amsgrad:
        square = state["max_exp_avg_sq"] = np.maximum(_kept(state, "max_exp_avg_sq", param), square)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    eps = eps / math.sqrt(correction2) if eps_hat else eps
    param -= lr / correction1 * mean / (np.sqrt(square) / math.sqrt(correction2) + eps)


def adamw(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    eps_hat: bool = False,
) -> None:
    """torch.optim.AdamW: Adam with weights that decay beside it (Loshchilov and Hutter, 2019)."""
    param *= 1 - lr * weight_decay
    adam(param, grad, state, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, eps_hat=eps_hat)


def rmsprop(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> None:
    """torch.optim.RMSprop (Hinton, 2012; centered: Graves, 2013)."""
    if weight_decay:
        grad = grad + weight_decay * param
    square = state["square_avg"] = alpha * _kept(state, "square_avg", param) + (1 - alpha) * grad**2
    if centered:
        mean = state["grad_avg"] = alpha * _kept(state, "grad_avg", param) + (1 - alpha) * grad
        square = square - mean**2
    grad = grad / (np.sqrt(square) + eps)
    if momentum:
        grad = state["momentum_buffer"] = momentum * _kept(state, "momentum_buffer", param) + grad
    param -= lr * grad


def adagrad(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> None:
    """torch.optim.Adagrad (Duchi, Hazan and Singer, 2011)."""
    if weight_decay:
        grad = grad + weight_decay * param
    step = state["step"] = state.get("step", 0) + 1
    before = state.get("sum", np.full_like(param, initial_accumulator_value))
    state["sum"] = before + grad**2
    param -= lr / (1 + (step - 1) * lr_decay) * grad / (np.sqrt(state["sum"]) + eps)


def _kept(state: State, name: str, param: Array) -> Array:
    return state[name] if name in state else np.zeros_like(param)


@dataclass(frozen=True)
class Optimizer:
    """An update rule ``update(param, grad, state, **options)`` and the names of the arrays it may keep.

    A state in ``kept_with`` is kept only where the option named there is not 0 or False.
    """

    update: Callable[..., None]
    states: tuple[str, ...]
    kept_with: Mapping[str, str] = field(default_factory=dict)

    def keeps(self, state: str, options: Mapping[str, Any]) -> bool:
        """Whether the rule keeps that state under these options."""
        return state not in self.kept_with or bool(options[self.kept_with[state]])


_ADAM_STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(sgd, ("momentum_buffer",), {"momentum_buffer": "momentum"}),
    "adam": Optimizer(adam, _ADAM_STATES, {"max_exp_avg_sq": "amsgrad"}),
    "adamw": Optimizer(adamw, _ADAM_STATES, {"max_exp_avg_sq": "amsgrad"}),
    "rmsprop": Optimizer(
        rmsprop,
        ("square_avg", "momentum_buffer", "grad_avg"),
        {"momentum_buffer": "momentum", "grad_avg": "centered"},
    ),
    "adagrad": Optimizer(adagrad, ("sum",)),
}
