"""Checks of arguments: each returns the value, or raises ``TypeError`` or ``ValueError`` that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def number(name: str, value: object, minimum: float, maximum: float = math.inf) -> float:
    """Return ``value`` as a float; it must be finite and in [minimum, maximum]."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    try:
        result = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # an array of several numbers, or 10**400
        raise TypeError(f"{name} must be a number; got {type(value).__name__}: {error}") from error
    if not (math.isfinite(result) and minimum <= result <= maximum):
        bound = "" if math.isinf(minimum) else f" and at least {minimum:g}"
        bound += "" if math.isinf(maximum) else f" and at most {maximum:g}"
        raise ValueError(f"{name} must be finite{bound}; got {result}")
    return result


def integer(name: str, value: object, *, minimum: int, bits: int = 63) -> int:
    """Return ``value`` as an int; it must be in [minimum, 2**bits)."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    result = int(value.__index__())
    if not minimum <= result < 2**bits:
        raise ValueError(f"{name} must be at least {minimum} and below 2**{bits}; got {result}")
    return result


def boolean(name: str, value: object) -> bool:
    """Return ``value``; it must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def check_numpy(arrays: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` unless the parameters of a net are NumPy arrays."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"net's {name} must be a NumPy array; got {type(array).__name__}")


def check_shapes(arrays: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the parameters of a net have ``nn.Linear``'s shapes, which meet."""
    for name in ("w1", "w2"):
        if arrays[name].ndim != 2:
            raise ValueError(f"net's {name} must have two dimensions; it has {tuple(arrays[name].shape)}")
    hidden, outputs = len(arrays["w1"]), len(arrays["w2"])
    for name, shape in {"b1": (hidden,), "w2": (outputs, hidden), "b2": (outputs,)}.items():
        if name in arrays and tuple(arrays[name].shape) != shape:
            raise ValueError(f"net's {name} must have shape {shape}; it has {tuple(arrays[name].shape)}")
