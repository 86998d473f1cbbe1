"""Training data, checked once and brought into the form the engines read: rows of inputs, their targets and weights.

Inputs are handed on as they are wherever an engine can read them (float32, float64, bfloat16, uint8, CSR): nothing the
size of the data is copied, and a memory-mapped array is read batch by batch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..registry import Loss

Array = NDArray[Any]

_READ_AS_THEY_ARE = frozenset(np.dtype(name) for name in ("float32", "float64", "uint8"))


@dataclass(frozen=True)
class Rows:
    """Checked data: what the engines' ``run`` and ``evaluate`` take as x, y and weights."""

    count: int
    x: Any  # (count, in): an array, a bfloat16 tensor, or a CSR matrix as (values, columns, offsets)
    y: Array  # classes (count,), or values (count, out)
    sample_weight: Array | None  # (count,)
    class_weight: Array | None  # (out,)


def prepare_rows(
    x: Any,
    y: Any,
    *,
    in_features: int,
    out_features: int,
    loss: Loss,
    dtype: np.dtype[Any],
    ignore_index: int,
    scaled: bool,
    sample_weight: Any = None,
    class_weight: Any = None,
) -> Rows:
    """Check x, y and their weights; raise ``TypeError`` or ``ValueError`` naming the one that is wrong."""
    count, inputs = _prepare_inputs(x, in_features, dtype)
    if scaled and isinstance(inputs, tuple):
        raise ValueError("input_scale and input_shift go with a dense x; x is sparse, so scale its values")
    if count == 0:
        raise ValueError("x must have at least one row; got none")
    targets = _prepare_targets(y, count, out_features, loss, dtype, ignore_index)
    if class_weight is not None and loss.name != "cross_entropy":
        raise ValueError(f"class_weight goes with loss 'cross_entropy'; the loss is {loss.name!r}")
    return Rows(
        count,
        inputs,
        targets,
        _prepare_weight("sample_weight", sample_weight, count, dtype),
        _prepare_weight("class_weight", class_weight, out_features, dtype),
    )


def _prepare_inputs(x: Any, in_features: int, dtype: np.dtype[Any]) -> tuple[int, Any]:
    csr = _as_csr(x, dtype)
    if csr is not None:
        shape = tuple(x.shape)
        if len(shape) != 2 or shape[1] != in_features:
            raise ValueError(f"x must have shape (rows, {in_features}), as the net has; got {shape}")
        return int(shape[0]), csr
    if _is_tensor(x) and x.dtype is sys.modules["torch"].bfloat16:
        array = _on_cpu(x, "x").detach()
        in_place = array.stride(-1) == 1 if array.dim() else False
        shape = tuple(array.shape)
        array = array if in_place else array.contiguous()
    else:
        array = as_array(x, "x")
        shape = array.shape
        if array.dtype.kind not in "fiub":
            raise TypeError(f"x must hold real numbers; got {array.dtype}")
        if array.dtype not in _READ_AS_THEY_ARE:
            array = array.astype(dtype)
        if array.ndim == 2 and not (array.strides[1] == array.itemsize and array.flags.aligned):
            array = np.array(array, order="C")
    if len(shape) != 2 or shape[1] != in_features:
        raise ValueError(f"x must have shape (rows, {in_features}), as the net has; got {tuple(shape)}")
    return int(shape[0]), array


def _as_csr(x: Any, dtype: np.dtype[Any]) -> tuple[Array, Array, Array] | None:
    """Return a scipy CSR matrix, or a torch one, as (values, columns, offsets); None for a dense x."""
    if _is_tensor(x):
        if x.layout is not sys.modules["torch"].sparse_csr:
            return None
        parts = x.values(), x.col_indices(), x.crow_indices()
        values, columns, offsets = (as_array(part, "x") for part in parts)
    elif hasattr(x, "format") and hasattr(x, "tocsr"):
        if x.format != "csr":
            raise TypeError(f"a sparse x must be in CSR format (x.tocsr()); got {x.format}")
        values, columns, offsets = x.data, x.indices, x.indptr
    else:
        return None
    if values.dtype.kind not in "fiub":
        raise TypeError(f"x must hold real numbers; got {values.dtype}")
    columns = columns if columns.dtype in (np.int32, np.int64) else columns.astype(np.int64)
    return (
        np.ascontiguousarray(values, dtype=dtype),
        np.ascontiguousarray(columns),
        np.ascontiguousarray(offsets, dtype=np.int64),
    )


def _prepare_targets(
    y: Any, rows: int, out_features: int, loss: Loss, dtype: np.dtype[Any], ignore_index: int
) -> Array:
    """Return y as int64 classes (rows,), or as values (rows, out_features); one row of values for all is broadcast."""
    array = as_array(y, "y")
    if loss.name == "cross_entropy" and array.dtype.kind in "iu":
        return _prepare_classes(array, rows, out_features, ignore_index)
    if loss.name == "cross_entropy" and not (array.dtype.kind == "f" and array.ndim == 2):
        raise TypeError(
            f"y must hold integer classes ({rows},) or a distribution ({rows}, {out_features}) for loss "
            f"'cross_entropy'; got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind not in "fiub":
        raise TypeError(f"y must hold real numbers for loss {loss.name!r}; got {array.dtype}")
    if array.shape not in ((rows, out_features), (out_features,)):
        raise ValueError(f"y must have shape ({rows}, {out_features}) or ({out_features},); got {array.shape}")
    return np.broadcast_to(np.require(array, dtype, ["C", "A"]), (rows, out_features))


def _prepare_classes(array: Array, rows: int, out_features: int, ignore_index: int) -> Array:
    if array.shape != (rows,):
        raise ValueError(f"y must have shape ({rows},), one class for each row of x; got {array.shape}")
    classes = np.require(array, np.int64, ["C", "A"])
    outside = ((classes < 0) | (classes >= out_features)) & (classes != ignore_index)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"y must hold classes in [0, {out_features}); row {row} holds {array[row]}")
    return classes


def _prepare_weight(name: str, weight: Any, count: int, dtype: np.dtype[Any]) -> Array | None:
    if weight is None:
        return None
    given = as_array(weight, name)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers; got {given.dtype}")
    array = np.require(given, dtype, ["C", "A"])
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},); got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{name} must be finite and at least 0 everywhere")
    return array


def as_array(data: Any, name: str) -> Array:
    """Return ``data`` as a NumPy array over the same memory; a torch tensor must be dense and on the CPU."""
    if _is_tensor(data):
        try:
            return _on_cpu(data, name).detach().resolve_neg().numpy()
        except TypeError as error:  # sparse, or a dtype such as bfloat16
            raise TypeError(f"{name} must be a dense tensor of a dtype that NumPy has: {error}") from error
    if not isinstance(data, np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a NumPy array; got {type(data).__name__}")
    return data


def _is_tensor(data: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.Tensor)


def _on_cpu(tensor: Any, name: str) -> Any:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the cpu, where the net is; it is on {tensor.device}")
    return tensor
