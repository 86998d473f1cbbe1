"""Training in main memory: of a :class:`twolayer.NumpyNet`, or of a torch net on the CPU."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from .place import Orders, Place, check_numbers, is_tensor

Array = NDArray[Any]

_READ_AS_THEY_ARE = frozenset(np.dtype(name) for name in ("float32", "float64", "uint8"))


class Host(Place):
    """Arrays are NumPy's; the engine is that of ``_core``, or the reference where that is not loaded."""

    def make_engine(self, config: dict[str, Any], dtype: np.dtype[Any]) -> Any:
        core = _native.get_core()
        if core is None:
            from ..reference.engine import ReferenceEngine

            return ReferenceEngine(config)
        return (core.EngineFloat32 if dtype == np.float32 else core.EngineFloat64)(config)

    def path(self, engine: Any) -> str:
        return "numpy" if type(engine).__name__ == "ReferenceEngine" else "cpu"

    def make_orders(self) -> Orders:
        return Orders()

    def at_once(self, nets: int, cores: int) -> int:
        return min(nets, cores)

    def here(self) -> AbstractContextManager[object]:
        return nullcontext()

    def of_parameter(self, tensor: Any) -> Array:
        return tensor.detach().numpy()

    def problem_of(self, array: Array, trained: bool) -> str | None:
        if not array.flags.c_contiguous:
            return f"must be contiguous; its strides are {array.strides} bytes"
        return "must be writable; it is read-only" if trained and not array.flags.writeable else None

    def extent(self, array: Array) -> tuple[int, int]:
        return array.ctypes.data, array.nbytes

    def empty_like(self, array: Array) -> Array:
        return np.empty_like(array)

    def copy(self, array: Array) -> Array:
        return array.copy()

    def brought(self, array: Any, dtype: np.dtype[Any]) -> Array:
        return np.ascontiguousarray(array.detach().cpu().numpy() if is_tensor(array) else array, dtype=dtype)

    def to_host(self, array: Array) -> Array:
        return array

    def as_array(self, data: Any, name: str) -> Array:
        if is_tensor(data):
            try:
                return _on_cpu(data, name).detach().resolve_neg().numpy()
            except TypeError as error:  # sparse, or a dtype such as bfloat16
                raise TypeError(f"{name} must be a dense tensor of a dtype that NumPy has: {error}") from error
        if not isinstance(data, np.ndarray):
            raise TypeError(f"{name} must be a torch.Tensor or a NumPy array; got {type(data).__name__}")
        return data

    def as_inputs(self, x: Any, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], Any]:
        csr = self._as_csr(x, dtype)
        if csr is not None:
            return tuple(x.shape), csr
        if is_tensor(x) and x.dtype is sys.modules["torch"].bfloat16:
            tensor = _on_cpu(x, "x").detach()
            in_place = tensor.stride(-1) == 1 if tensor.dim() else False
            return tuple(tensor.shape), tensor if in_place else tensor.contiguous()
        array = self.as_array(x, "x")
        check_numbers("x", array)
        if array.dtype not in _READ_AS_THEY_ARE:
            array = array.astype(dtype)
        if array.ndim == 2 and not (array.strides[1] == array.itemsize and array.flags.aligned):
            array = np.array(array, order="C")
        return array.shape, array

    def _as_csr(self, x: Any, dtype: np.dtype[Any]) -> tuple[Array, Array, Array] | None:
        """Return a scipy CSR matrix, or a torch one, as (values, columns, offsets); None for a dense x."""
        if is_tensor(x):
            if x.layout is not sys.modules["torch"].sparse_csr:
                return None
            parts = x.values(), x.col_indices(), x.crow_indices()
            values, columns, offsets = (self.as_array(part, "x") for part in parts)
        elif hasattr(x, "format") and hasattr(x, "tocsr"):
            if x.format != "csr":
                raise TypeError(f"a sparse x must be in CSR format (x.tocsr()); got {x.format}")
            values, columns, offsets = x.data, x.indices, x.indptr
        else:
            return None
        check_numbers("x", values)
        columns = columns if columns.dtype in (np.int32, np.int64) else columns.astype(np.int64)
        return (
            np.ascontiguousarray(values, dtype=dtype),
            np.ascontiguousarray(columns),
            np.ascontiguousarray(offsets, dtype=np.int64),
        )

    def converted(self, array: Array, dtype: np.dtype[Any]) -> Array:
        return np.require(array, dtype, ["C", "A"])

    def broadcast(self, array: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(array, shape)


def _on_cpu(tensor: Any, name: str) -> Any:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the cpu, where the net is; it is on {tensor.device}")
    return tensor


HOST = Host()
