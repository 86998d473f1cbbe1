"""Training data, checked once and brought into the form the engines read: rows of numbers, and classes or values."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .registry import Loss

Array = NDArray[Any]


def as_array(data: Any, name: str) -> Array:
    """Return ``data`` as a NumPy array over the same memory; a torch tensor must be on the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(data, torch.Tensor):
        if data.device.type != "cpu":
            raise ValueError(f"{name} must be on the cpu, where the net is; it is on {data.device}")
        try:
            return data.detach().resolve_neg().numpy()
        except TypeError as error:  # sparse, or a dtype such as bfloat16
            raise TypeError(f"{name} must be a dense tensor of a dtype that NumPy has: {error}") from error
    if not isinstance(data, np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a NumPy array; got {type(data).__name__}")
    return data


def prepare_inputs(x: Any, in_features: int, dtype: np.dtype[Any]) -> Array:
    """Return x as (rows, in_features) in ``dtype``, each row contiguous; copied only when it is not so already."""
    array = as_array(x, "x")
    if array.ndim != 2 or array.shape[1] != in_features:
        raise ValueError(f"x must have shape (rows, {in_features}), as the net has; got {array.shape}")
    if array.shape[0] == 0:
        raise ValueError("x must have at least one row; got none")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"x must hold real numbers; got {array.dtype}")
    array = array.astype(dtype, copy=False)
    in_rows = array.strides[1] == array.itemsize and array.strides[0] >= 0 and array.flags.aligned
    return array if in_rows else np.array(array, order="C")


def prepare_targets(y: Any, rows: int, out_features: int, loss: Loss, dtype: np.dtype[Any]) -> Array:
    """Return y as the loss wants it: int64 classes (rows,), or values (rows, out_features) in ``dtype``.

    Values may also be given as (out_features,), one row for all, which is broadcast without a copy.
    """
    array = as_array(y, "y")
    if loss.targets == "classes":
        if array.dtype.kind not in "iu":
            raise TypeError(f"y must hold integer classes for loss {loss.name!r}; got {array.dtype}")
        if array.shape != (rows,):
            raise ValueError(f"y must have shape ({rows},), one class for each row of x; got {array.shape}")
        array = np.require(array, np.int64, ["C", "A"])
        outside = (array < 0) | (array >= out_features)
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(f"y must hold classes in [0, {out_features}); row {row} holds {array[row]}")
        return array
    if array.dtype.kind not in "fiu":
        raise TypeError(f"y must hold real numbers for loss {loss.name!r}; got {array.dtype}")
    if array.shape not in ((rows, out_features), (out_features,)):
        raise ValueError(f"y must have shape ({rows}, {out_features}) or ({out_features},); got {array.shape}")
    array = np.require(array, dtype, ["C", "A"])
    return np.broadcast_to(array, (rows, out_features))
