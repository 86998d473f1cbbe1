"""The training engine in NumPy: what ``fit`` runs where the native library is not loaded.

It has the methods of the native ``_core.EngineFloat32`` and ``EngineFloat64``, and takes the same arguments, which the
caller has checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import registry
from . import numpy as reference

Array = NDArray[Any]
Parameters = tuple[Array | None, ...]
Inputs = Any  # a dense array (rows, in), a bfloat16 tensor of that shape, or (values, columns, offsets) of a CSR matrix

NAMES = ("w1", "b1", "w2", "b2")
EVALUATED_AT_ONCE = 4096  # rows


class ReferenceEngine:
    """Trains (w1, b1, w2, b2), each as ``nn.Linear`` holds it, in the dtype in which they are loaded.

    ``config`` holds the net's sizes and all options of training; activation, loss and optimizer are the registry's ids.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._activation = list(registry.ACTIVATIONS)[config["activation"]]
        self._loss = list(registry.LOSSES.values())[config["loss"]]
        self._optimizer = list(registry.OPTIMIZERS.values())[config["optimizer"]]
        self._update_options = {name: config[name] for name in self._optimizer.options if name != "lr"}
        trained = [name for name, frozen in zip(NAMES, config["frozen"], strict=True) if not frozen]
        self._state: dict[str, dict[str, Array]] = {name: {} for name in trained}  # of each parameter, by state
        self._parameters: dict[str, Any] = {}  # arrays; None for a bias that the net does not have
        self.steps = 0  # taken so far

    def load(self, parameters: Parameters) -> None:
        self._parameters = {
            name: None if array is None else array.copy() for name, array in zip(NAMES, parameters, strict=True)
        }

    def store(self, parameters: Parameters) -> None:
        for name, array in zip(NAMES, parameters, strict=True):
            if array is not None:
                array[...] = self._parameters[name]

    def keeps_state(self, state: int) -> bool:
        """Whether the optimiser keeps the registry's ``states[state]``."""
        states = self._optimizer.states
        return state < len(states) and self._optimizer.keeps(states[state], self._update_options)

    def load_state(self, state: int, values: Parameters) -> None:
        for name, array in zip(NAMES, values, strict=True):
            if array is not None:
                self._state[name][self._optimizer.states[state]] = array.copy()

    def store_state(self, state: int, values: Parameters) -> None:
        for name, array in zip(NAMES, values, strict=True):
            if array is not None:
                array[...] = self._state[name].get(self._optimizer.states[state], 0)

    def run(
        self,
        x: Inputs,
        y: Array,
        row_weight: Array | None,
        class_weight: Array | None,
        scale: float,
        shift: float,
        order: Array | None,
        batch_size: int,
        first_step: int,
        lr: Array,
        losses: Array,
        stop_if_not_finite: bool,
        on_progress: Callable[[int], None] | None,
    ) -> bool:
        """Train on batches first_step, first_step + 1 … of an epoch, one for each entry of ``lr``.

        Each one's loss is left in ``losses``. Returns whether it ended before the update of a batch whose loss is not
        finite. ``on_progress`` is called with the number of steps done.
        """
        rows = np.arange(len(y)) if order is None else order
        for step in range(len(lr)):
            first = (first_step + step) * batch_size
            batch = rows[first : first + batch_size]
            shared = self._weight(y[batch], batch, row_weight, class_weight) if self._config["penalty_per_row"] else 1
            losses[step], gradients = reference.loss_and_gradients(
                self._parameters,
                self._inputs(x, batch, scale, shift),
                y[batch],
                activation=self._activation,
                loss=self._loss.name,
                loss_options=self._loss_options(batch, row_weight, class_weight),
                l1=self._config["l1"] / shared,
                l2=self._config["l2"] / shared,
                mask=self._dropout_mask(len(batch)),
                rounded=self._rounded,
            )
            if stop_if_not_finite and not np.isfinite(losses[step]):
                return True
            self._update(gradients, float(lr[step]))
            if on_progress is not None:
                on_progress(step + 1)
        return False

    def evaluate(
        self,
        x: Inputs,
        y: Array,
        row_weight: Array | None,
        class_weight: Array | None,
        scale: float,
        shift: float,
        order: Array | None,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[float, float, int]:
        """Return (sum of the row losses, what it is to be divided by, rows whose largest output is their class)."""
        rows = np.arange(len(y)) if order is None else order
        loss = reference.LOSSES[self._loss.name]
        total, divisor, hits = 0.0, 0.0, 0
        for first in range(0, len(rows), EVALUATED_AT_ONCE):
            batch = rows[first : first + EVALUATED_AT_ONCE]
            inputs = self._inputs(x, batch, scale, shift)
            z, _, _ = reference.forward(inputs, **self._parameters, activation=self._activation, rounded=self._rounded)
            sums = loss.sums(z, y[batch], **self._loss_options(batch, row_weight, class_weight))
            total += sums.total
            divisor = divisor + sums.divisor if loss.reduction == "mean" else 1.0
            if not np.issubdtype(y.dtype, np.floating):
                hits += int((z.argmax(axis=1) == y[batch]).sum())
            if on_progress is not None:
                on_progress(first // EVALUATED_AT_ONCE + 1)
        return total, divisor, hits

    def _update(self, gradients: dict[str, Array], lr: float) -> None:
        clipped = reference.clip_gradients(
            {name: gradients[name] for name in self._state if name in gradients},
            self._config["clip_norm"],
            self._config["clip_value"],
        )
        updated, state = dict(self._parameters), dict(self._state)
        for name, gradient in clipped.items():
            updated[name] = self._parameters[name].copy()
            # What was kept before the first step stands for nothing, as in the native engine.
            kept: dict[str, Any] = {**self._state[name], "step": self.steps} if self.steps else {}
            self._optimizer.update(updated[name], gradient, kept, lr=lr, **self._update_options)
            state[name] = {key: kept[key] for key in self._optimizer.states if key in kept}
        # At once, so that Ctrl-C leaves a finished step: no call lies between these assignments.
        self._parameters, self._state, self.steps = updated, state, self.steps + 1

    def _inputs(self, x: Inputs, rows: Array, scale: float, shift: float) -> Array:
        """Return those rows of x in the parameters' dtype, (len(rows), in)."""
        dtype = self._parameters["w1"].dtype
        if isinstance(x, tuple):
            values, columns, offsets = x
            return _dense_rows(values, columns, offsets, rows, self._config["in_features"])
        dense = x[rows] if isinstance(x, np.ndarray) else x[rows].float().numpy()
        return dense.astype(dtype) * dtype.type(scale) + dtype.type(shift)

    def _loss_options(self, rows: Array, row_weight: Array | None, class_weight: Array | None) -> dict[str, Any]:
        given = {
            "class_weight": class_weight,
            "label_smoothing": self._config["label_smoothing"],
            "ignore_index": self._config["ignore_index"],
            "beta": self._config["loss_beta"],
        }
        own = {name: given[name] for name in self._loss.options}
        return {**own, "sample_weight": None if row_weight is None else row_weight[rows]}

    def _weight(self, y: Array, rows: Array, row_weight: Array | None, class_weight: Array | None) -> float:
        """Return what the rows count for: the sum of their weights, times those of their classes."""
        weight = np.ones(len(rows)) if row_weight is None else row_weight[rows].astype(np.float64)
        if not np.issubdtype(y.dtype, np.floating):
            kept = y != self._config["ignore_index"]
            weight = weight * kept
            if class_weight is not None:
                weight = weight * class_weight[np.where(kept, y, 0)]
        return float(weight.sum())

    def _dropout_mask(self, rows: int) -> Array | None:
        dropout, w1 = self._config["dropout"], self._parameters["w1"]
        if not dropout:
            return None
        return reference.dropout_mask(self._config["seed"], self.steps, rows, len(w1), dropout).astype(w1.dtype)

    def _rounded(self, factor: Array) -> Array:
        rounds = self._config["bfloat16_compute"] and factor.dtype == np.float32  # of float32 weights only
        return rounded_to_bfloat16(factor) if rounds else factor


def rounded_to_bfloat16(a: Array) -> Array:
    """Return the float32 array with each number rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = a.view(np.uint32)
    last_kept = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + last_kept) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(a), a, rounded.view(np.float32))


def _dense_rows(values: Array, columns: Array, offsets: Array, rows: Array, in_features: int) -> Array:
    """Return rows of a CSR matrix, (len(rows), in_features); entries named twice add up."""
    dense = np.zeros((len(rows), in_features), values.dtype)
    for target, row in zip(dense, rows, strict=True):
        entries = slice(offsets[row], offsets[row + 1])
        np.add.at(target, columns[entries], values[entries])
    return dense
