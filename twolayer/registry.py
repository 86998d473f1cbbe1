"""The one table of names: activation, loss and optimiser → native id and reference functions.

The id of a row is its position, and the C++ lists (``csrc/math/{activations,losses,optimizers}.h``) stand in the same
order; ``tests/test_registry.py`` fails when they differ. Nothing here imports torch: the torch function of a row is the
one of the same name in :mod:`twolayer.reference.torch`, looked up when it is first needed.
"""

from __future__ import annotations

import difflib
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

    ``targets`` says what ``y`` holds: ``"classes"``, integers of shape (batch,); ``"values"``, floats of z's shape.
    """

    name: str
    id: int
    value: Callable[..., float]
    gradient: Callable[..., Any]
    targets: Literal["classes", "values"]


@dataclass(frozen=True)
class Optimizer:
    """An update rule with torch.optim's arithmetic; ``update(param, grad, state, **options)`` changes both in place."""

    name: str
    id: int
    update: Callable[..., None]


Row = TypeVar("Row", Activation, Loss, Optimizer)


def _table(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def _activation(id: int, name: str, saved: Literal["input", "output"], module: str, **options: Any) -> Activation:
    return Activation(name, id, *reference.ACTIVATIONS[name], saved, module, options)


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
        Loss("cross_entropy", 0, *reference.LOSSES["cross_entropy"], "classes"),
        Loss("mse", 1, *reference.LOSSES["mse"], "values"),
        Loss("mse_sum", 2, *reference.LOSSES["mse_sum"], "values"),
    ]
)

OPTIMIZERS = _table([Optimizer("sgd", 0, reference.OPTIMIZERS["sgd"])])


def lookup(table: Mapping[str, Row], name: object, argument: str) -> Row:
    """Return the row called ``name``; a ``ValueError`` names the argument, what is known and what is nearest."""
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string, one of {', '.join(table)}; got {type(name).__name__}")
    row = table.get(name)
    if row is None:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{argument} must be one of {', '.join(table)}; got {name!r}{hint}")
    return row
