"""Training on a GPU: of a torch net whose parameters are there, on data that are there too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _native
from .._tensors import PLAIN_TYPES
from .place import Orders, Place, check_numbers

_READ_AS_THEY_ARE = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.uint8})
_AT_ONCE = 64  # nets: each has a thread that waits for it, and a cluster of blocks


@dataclass(frozen=True)
class Cuda(Place):
    """Arrays are tensors on ``device``; the engine is that of ``_cuda``. Two for the same device are equal."""

    device: torch.device

    @property
    def note(self) -> str:
        return f", on {self.device}"

    def make_engine(self, config: dict[str, Any], dtype: np.dtype[Any]) -> Any:
        index = self.device.index or 0
        module, reason = _native.cuda_state()
        if module is None:
            raise RuntimeError(self._refusal(f"twolayer's CUDA library is not loaded: {reason}"))
        if problem := module.device_problem(index):
            raise RuntimeError(self._refusal(problem))
        engine = module.EngineFloat32 if dtype == np.float32 else module.EngineFloat64
        return engine({**config, "device": index})

    def _refusal(self, reason: str) -> str:
        return (
            f"net is on {self.device}, where fit cannot train it: {reason}. On the CPU it can: net.cpu(), with data "
            "that are there too"
        )

    def path(self, engine: Any) -> str:
        return f"cuda {engine.path}"

    def make_orders(self) -> Orders:
        return OrdersAhead()

    def at_once(self, nets: int, cores: int) -> int:
        return min(nets, _AT_ONCE)

    def here(self) -> AbstractContextManager[object]:
        of_device = torch.get_device_module(self.device)
        return of_device.stream(of_device.current_stream(self.device))

    def of_parameter(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def problem_of(self, array: Tensor, trained: bool) -> str | None:
        if type(array) not in PLAIN_TYPES:
            return f"must be a plain tensor; it is a {type(array).__name__}"
        return None if array.is_contiguous() else f"must be contiguous; its strides are {array.stride()}"

    def extent(self, array: Tensor) -> tuple[int, int]:
        return array.data_ptr(), array.nbytes

    def empty_like(self, array: Tensor) -> Tensor:
        return torch.empty_like(array)

    def copy(self, array: Tensor) -> Tensor:
        return array.clone()

    def brought(self, array: Any, dtype: np.dtype[Any]) -> Tensor:
        tensor = array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, dtype))
        return self.converted(tensor, dtype)

    def to_host(self, array: Tensor) -> NDArray[Any]:
        return array.cpu().numpy()

    def as_array(self, data: Any, name: str) -> Tensor:
        if not isinstance(data, Tensor):
            given = "a NumPy array" if isinstance(data, np.ndarray) else type(data).__name__
            raise TypeError(
                f"{name} must be a tensor on {self.device}, where the net is, as torch.as_tensor({name}, "
                f"device='{self.device}') makes one; got {given}"
            )
        if data.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, where the net is; it is on {data.device}")
        if data.layout is not torch.strided:
            raise TypeError(f"{name} must be dense for a net on {self.device}; it is {data.layout}")
        if type(data) not in PLAIN_TYPES:
            raise TypeError(f"{name} must be a plain tensor for a net on {self.device}; got {type(data).__name__}")
        return data.detach().resolve_neg()

    def as_inputs(self, x: Any, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], Tensor]:
        if hasattr(x, "tocsr"):
            raise TypeError(f"x must be dense for a net on {self.device}; it is a {type(x).__name__}")
        tensor = self.as_array(x, "x")
        check_numbers("x", tensor)
        if tensor.dtype not in _READ_AS_THEY_ARE:
            tensor = tensor.to(_of_torch(dtype))
        in_place = tensor.stride(-1) == 1 if tensor.dim() else False
        return tuple(tensor.shape), tensor if in_place else tensor.contiguous()

    def converted(self, array: Tensor, dtype: np.dtype[Any]) -> Tensor:
        return array.to(self.device, _of_torch(dtype)).contiguous()

    def broadcast(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        return array.expand(shape)


class OrdersAhead(Orders):
    """Makes the next epoch's order while the device works on the present one, on a thread that ends with ``drop``."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._next: Future[NDArray[Any]] | None = None

    def take(self, make: Callable[[int], NDArray[Any]], epoch: int, more: bool) -> NDArray[Any]:
        order = make(epoch) if self._next is None else self._next.result()
        self._next = None
        if more:
            self._thread = self._thread or ThreadPoolExecutor(1, "twolayer-order")
            self._next = self._thread.submit(make, epoch + 1)
        return order

    def drop(self) -> None:
        if self._thread is not None:
            # An order that is still being made is not waited for: Ctrl-C is to be fast.
            self._thread.shutdown(wait=self._next is None or self._next.done())
        self._thread = self._next = None


def _of_torch(dtype: np.dtype[Any]) -> torch.dtype:
    return getattr(torch, dtype.name)
