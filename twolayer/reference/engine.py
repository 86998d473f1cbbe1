"""The training engine in NumPy: what ``fit`` runs where the native library is not loaded.

It has the methods of the native ``_core.EngineFloat32`` and ``EngineFloat64``, and takes the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from . import numpy as reference

Array = NDArray[Any]
Parameters = tuple[Array | None, ...]

NAMES = ("w1", "b1", "w2", "b2")
STATE_NAMES = ("momentum_buffer",)  # of the optimiser's states, by index


class ReferenceEngine:
    """Trains (w1, b1, w2, b2), each as ``nn.Linear`` holds it; biases may be None."""

    def __init__(self, activation: str, loss: str, optimizer: str, options: dict[str, Any]) -> None:
        self._activation = activation
        self._loss_value, self._loss_gradient = reference.LOSSES[loss]
        self._update = reference.OPTIMIZERS[optimizer]
        self._options = options
        self._parameters: dict[str, Array] = {}
        self._state: dict[str, dict[str, Array]] = {name: {} for name in NAMES}
        self.last_steps = 0

    def load(self, parameters: Parameters) -> None:
        self._parameters = {name: a.copy() for name, a in zip(NAMES, parameters, strict=True) if a is not None}

    def store(self, parameters: Parameters) -> None:
        for name, array in zip(NAMES, parameters, strict=True):
            if array is not None:
                array[...] = self._parameters[name]

    def keeps_state(self, state: int) -> bool:
        return STATE_NAMES[state] == "momentum_buffer" and bool(self._options["momentum"])

    def load_state(self, state: int, values: Parameters, steps_taken: int) -> None:
        for name, array in zip(NAMES, values, strict=True):
            if array is not None and steps_taken > 0:
                self._state[name][STATE_NAMES[state]] = array.copy()

    def store_state(self, state: int, values: Parameters) -> None:
        for name, array in zip(NAMES, values, strict=True):
            if array is not None:
                array[...] = self._state[name].get(STATE_NAMES[state], 0)

    def run(
        self,
        x: Array,
        y: Array,
        order: Array | None,
        losses: Array,
        batch_size: int,
        on_progress: Callable[[int], None] | None,
    ) -> int:
        """Train for ``len(losses)`` batches, leaving each one's loss there; return how many were done."""
        self.last_steps = 0
        for step in range(len(losses)):
            parameters = self._parameters
            b1, b2 = parameters.get("b1"), parameters.get("b2")
            rows = slice(step * batch_size, (step + 1) * batch_size)
            batch = rows if order is None else order[rows]
            z, z1, _ = reference.forward(x[batch], parameters["w1"], b1, parameters["w2"], b2, self._activation)
            losses[step] = self._loss_value(z, y[batch])
            gradients = reference.backward(
                self._loss_gradient(z, y[batch]),
                x[batch],
                parameters["w1"],
                parameters["w2"],
                z1,
                self._activation,
                input_gradient=False,
            )
            updated = {name: parameter.copy() for name, parameter in parameters.items()}
            state = {name: dict(kept) for name, kept in self._state.items()}
            for name, parameter in updated.items():
                self._update(parameter, gradients[name], state[name], **self._options)
            # At once, so that Ctrl-C leaves a finished step: no call lies between these assignments.
            self._parameters, self._state, self.last_steps = updated, state, step + 1
            if on_progress is not None:
                on_progress(self.last_steps)
        return self.last_steps
