"""Where a net is trained: what differs between NumPy's arrays in main memory and tensors on a GPU.

Everything else of training is the same code. In main memory at every place: orders of rows, rates and losses.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any  # the place's own: NumPy's, or a tensor


class Place(ABC):
    """A place; the same one is equal to itself, also as a key."""

    @property
    def note(self) -> str:
        """What ``NetParameters.form`` ends with."""
        return ""

    # Engines

    @abstractmethod
    def make_engine(self, config: dict[str, Any], dtype: np.dtype[Any]) -> Any:
        """Return an engine for nets of that dtype, with the methods of ``_core.EngineFloat32``."""

    @abstractmethod
    def path(self, engine: Any) -> str:
        """Return what ``History.path`` calls the way that the engine's last run took."""

    @abstractmethod
    def make_orders(self) -> Orders: ...

    @abstractmethod
    def at_once(self, nets: int, cores: int) -> int:
        """Return how many of so many nets are best trained at the same time, if so many threads may compute."""

    @abstractmethod
    def here(self) -> AbstractContextManager[object]:
        """Return a context in which another thread's work on arrays comes in turn with the calling thread's."""

    # Arrays

    @abstractmethod
    def of_parameter(self, tensor: Any) -> Array:
        """Return an array over the memory of a torch parameter here."""

    @abstractmethod
    def problem_of(self, array: Array, trained: bool) -> str | None:
        """Return why an array cannot be a parameter, in words that follow its name; None if it can."""

    @abstractmethod
    def extent(self, array: Array) -> tuple[int, int]:
        """Return the address of a contiguous array, and its bytes."""

    @abstractmethod
    def empty_like(self, array: Array) -> Array: ...

    @abstractmethod
    def copy(self, array: Array) -> Array: ...

    @abstractmethod
    def brought(self, array: Any, dtype: np.dtype[Any]) -> Array:
        """Return an array or tensor of any place as a contiguous one of this place and dtype."""

    @abstractmethod
    def to_host(self, array: Array) -> NDArray[Any]: ...

    # Data

    @abstractmethod
    def as_array(self, data: Any, name: str) -> Array:
        """Return what the caller gave as an array over the same memory; refuse what is not here, or not dense."""

    @abstractmethod
    def as_inputs(self, x: Any, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], Any]:
        """Return the shape of x, and x as engines read it: as it is if they can, else copied, or converted to dtype."""

    @abstractmethod
    def converted(self, array: Array, dtype: np.dtype[Any]) -> Array:
        """Return it contiguous and of that dtype, itself where it is."""

    @abstractmethod
    def broadcast(self, array: Array, shape: tuple[int, ...]) -> Array: ...


class Orders:
    """Makes the order of rows of each epoch when it is asked for."""

    def take(self, make: Callable[[int], NDArray[Any]], epoch: int, more: bool) -> NDArray[Any]:
        """Return ``make(epoch)``; with ``more`` that of the next epoch will be wanted from the same ``make``."""
        return make(epoch)

    def drop(self) -> None:
        """Forget what was made ahead."""


def is_tensor(data: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.Tensor)


def kind_of(array: Array) -> str:
    """Return the kind of an array's numbers as NumPy's letter: b, i, u, f, c or another."""
    if isinstance(array, np.ndarray):
        return array.dtype.kind
    dtype = array.dtype
    if dtype.is_floating_point or dtype.is_complex:
        return "f" if dtype.is_floating_point else "c"
    return "b" if name_of_dtype(array) == "bool" else "i" if dtype.is_signed else "u"


def name_of_dtype(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


def check_numbers(name: str, array: Array, kinds: str = "fiub", purpose: str = "") -> None:
    """Raise ``TypeError`` unless the array's numbers are of one of these kinds."""
    if kind_of(array) not in kinds:
        raise TypeError(f"{name} must hold real numbers{purpose}; got {name_of_dtype(array)}")
