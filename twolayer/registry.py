"""The one table of names: activation, loss and optimiser → native id and reference functions.

The id of a row is its position, and the C++ lists (``csrc/math/{activations,losses,optimizers}.h``) stand in the same
order; ``tests/test_registry.py`` fails when they differ. Nothing here imports torch: the torch function of an
activation or a loss is the function of the same name in :mod:`twolayer.reference.torch`, looked up when it is first
needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .reference import numpy as reference


@dataclass(frozen=True)
class Activation:
    """An elementwise function between the two layers.

    ``saved`` says which (batch, hidden) array the forward pass keeps for the backward pass: the activation's ``output``
    where the derivative is a function of it, else its ``input`` (the output is then recomputed, elementwise).
    ``module`` is the class in ``torch.nn`` (or, when it has none there, in :mod:`twolayer.nn`) and its arguments.
    """

    name: str
    id: int
    value: Callable[[Any], Any]
    derivative: Callable[[Any], Any]
    saved: Literal["input", "output"]
    module: str
    module_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A loss over a batch: ``value(z, y)`` → float and ``gradient(z, y)`` → d loss / d z, z of shape (batch, out).

    Both also take by keyword ``sample_weight`` (batch,) and what ``options`` names. ``targets`` says what ``y`` holds:
    ``"values"``, floats of z's shape; ``"classes_or_distributions"``, integers of shape (batch,), or such floats.
    ``reduction`` says whether the rows' losses are averaged or summed.
    """

    name: str
    id: int
    value: Callable[..., float]
    gradient: Callable[..., Any]
    targets: Literal["classes_or_distributions", "values"]
    reduction: Literal["mean", "sum"]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Optimizer:
    """An update rule with torch.optim's arithmetic; ``update(param, grad, state, **options)`` changes both in place.

    ``options`` names all it takes. ``states`` are the arrays it may keep for a parameter, by torch.optim's names and in
    the native order; ``keeps(state, options)`` tells whether it does under these options.
    """

    name: str
    id: int
    update: Callable[..., None]
    options: tuple[str, ...]
    states: tuple[str, ...]
    keeps: Callable[[str, Mapping[str, Any]], bool]


Row = TypeVar("Row", Activation, Loss, Optimizer)


def _table(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def _activation(id: int, name: str, saved: Literal["input", "output"], module: str, **options: Any) -> Activation:
    return Activation(name, id, *reference.ACTIVATIONS[name], saved, module, options)


def _loss(id: int, name: str) -> Loss:
    loss = reference.LOSSES[name]
    return Loss(name, id, loss.value, loss.gradient, loss.targets, loss.reduction, _keyword_names(loss.rows))


def _optimizer(id: int, name: str) -> Optimizer:
    rule = reference.OPTIMIZERS[name]
    return Optimizer(name, id, rule.update, _keyword_names(rule.update), rule.states, rule.keeps)


def _keyword_names(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


ACTIVATIONS = _table(
    [
        _activation(0, "identity", "output", "Identity"),
        _activation(1, "relu", "output", "ReLU"),
        _activation(2, "sigmoid", "output", "Sigmoid"),
        _activation(3, "tanh", "output", "Tanh"),
        _activation(4, "gelu", "input", "GELU"),
        _activation(5, "gelu_tanh", "input", "GELU", approximate="tanh"),
        _activation(6, "silu", "input", "SiLU"),
        _activation(7, "softplus", "input", "Softplus"),
        _activation(8, "leaky_relu", "output", "LeakyReLU"),
        _activation(9, "relu_squared", "input", "ReLUSquared"),
        _activation(10, "sine", "input", "Sine"),
    ]
)

LOSSES = _table(
    [
        _loss(0, "cross_entropy"),
        _loss(1, "mse"),
        _loss(2, "mse_sum"),
        _loss(3, "l1"),
        _loss(4, "smooth_l1"),
        _loss(5, "huber"),
        _loss(6, "bce_with_logits"),
    ]
)

OPTIMIZERS = _table(
    [
        _optimizer(0, "sgd"),
        _optimizer(1, "adam"),
        _optimizer(2, "adamw"),
        _optimizer(3, "rmsprop"),
        _optimizer(4, "adagrad"),
    ]
)


def lookup(table: Mapping[str, Row], name: object, argument: str) -> Row:
    """Return the row called ``name``; a ``ValueError`` names the argument, what is known and what is nearest."""
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string, one of {', '.join(table)}; got {type(name).__name__}")
    row = table.get(name)
    if row is None:
        import difflib  # not above, where every import would pay for it

        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{argument} must be one of {', '.join(table)}; got {name!r}{hint}")
    return row
