"""The engines of ``_cuda``, on NumPy arrays as those of ``_core`` are: both can be put through the same runs."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import Trained, Training, name_of, training_data
from native_runs import engine_config, run_steps, stored
from numpy.typing import NDArray

from twolayer.reference.numpy import permutation

Array = NDArray[Any]
Arrays = tuple[Array | None, ...]


class DeviceEngine:
    """``module``'s engine of that dtype; what belongs on ``device`` is copied there, and back."""

    def __init__(self, module: ModuleType, device: str, dtype: Any, config: Mapping[str, Any]) -> None:
        engine = {"float32": module.EngineFloat32, "float64": module.EngineFloat64}[np.dtype(dtype).name]
        self._engine = engine({"device": 0, **config})
        self._device = device

    def _placed(self, array: Any) -> Any:
        if array is None or isinstance(array, tuple):
            return array if array is None else tuple(map(self._placed, array))
        return torch.as_tensor(array).to(self._device)

    def _read(self, store: Callable[..., None], arrays: Arrays) -> None:
        placed = self._placed(arrays)
        store(placed)
        for array, tensor in zip(arrays, placed, strict=True):
            if array is not None:
                array[...] = tensor.cpu().numpy()

    def load(self, parameters: Arrays) -> None:
        self._engine.load(self._placed(parameters))

    def store(self, parameters: Arrays) -> None:
        self._read(self._engine.store, parameters)

    def keeps_state(self, state: int) -> bool:
        return bool(self._engine.keeps_state(state))

    def load_state(self, state: int, values: Arrays) -> None:
        self._engine.load_state(state, self._placed(values))

    def store_state(self, state: int, values: Arrays) -> None:
        self._read(lambda tensors: self._engine.store_state(state, tensors), values)

    @property
    def steps(self) -> int:
        return int(self._engine.steps)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._engine.steps = steps

    @property
    def path(self) -> str:
        return str(self._engine.path)

    def run(self, x: Any, y: Any, row_weight: Any, class_weight: Any, *rest: Any) -> bool:
        return bool(self._engine.run(*map(self._placed, (x, y, row_weight, class_weight)), *rest))

    def evaluate(self, x: Any, y: Any, row_weight: Any, class_weight: Any, *rest: Any) -> tuple[float, float, int]:
        loss, divisor, hits = self._engine.evaluate(*map(self._placed, (x, y, row_weight, class_weight)), *rest)
        return float(loss), float(divisor), int(hits)


@contextmanager
def emulated_device(
    module: Any,
    *,
    seed: int = 0,
    multiprocessors: int = 132,
    shared_bytes: int = 227 << 10,
    capability: int = 90,
    memory: int = 1 << 40,
) -> Iterator[None]:
    """Have the emulated ``module`` run as on such a device, whose allocations get no more than ``memory`` bytes."""
    library = ctypes.CDLL(str(module.__spec__.origin))

    def settle(memory: int, *settings: Any) -> None:
        library.set_memory(ctypes.c_int64(memory))
        library.set_emulation(*settings, ctypes.c_int64(0), -1)

    settle(memory, ctypes.c_uint64(seed), multiprocessors, shared_bytes, capability)
    try:
        yield
    finally:
        settle(1 << 40, ctypes.c_uint64(0), 132, 227 << 10, 90)


# Trainings of the table, on ``make(dtype, config)``: the fixture ``cuda_engine``.

SMALL = Training("cross_entropy", "tanh", torch.float32, momentum=0.9)
LONG = replace(SMALL, rows=40 * 8 + 3, activation="gelu")  # some graphs of steps, and some more
every_path = pytest.mark.parametrize("path", ["auto", "graph"])


def new(make: Callable[..., DeviceEngine], training: Training, **changes: Any) -> DeviceEngine:
    """An engine for the training, which has not been loaded."""
    return make(name_of(training.dtype), engine_config(training, **changes))


def loaded(make: Callable[..., DeviceEngine], training: Training, **changes: Any) -> DeviceEngine:
    fresh = new(make, training, **changes)
    fresh.load(tuple(training_data(training).parameters.values()))
    return fresh


def run_in_pieces(fresh: DeviceEngine, training: Training, cuts: Sequence[int]) -> Trained:
    """One epoch, a call of ``run`` for each piece between the cuts."""
    x, y, _ = training_data(training)
    order, losses = permutation(training.rows, 0, 0), np.full(training.batches, np.nan)
    for first, stop in itertools.pairwise((0, *cuts, training.batches)):
        run_steps(fresh, x, y, losses[first:stop], training.shape.batch, lr=training.lr, order=order, first_step=first)
    return Trained(losses, stored(fresh, training))


def assert_same_bits(trained: Trained, other: Trained) -> None:
    np.testing.assert_array_equal(trained.step_loss, other.step_loss)
    assert trained.parameters.keys() == other.parameters.keys()
    for name, parameter in trained.parameters.items():
        np.testing.assert_array_equal(parameter, other.parameters[name], err_msg=name)
