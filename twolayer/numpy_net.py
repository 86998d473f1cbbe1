"""The net without torch: NumPy arrays that :func:`twolayer.fit` trains and that predict natively."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _native
from .predictor import Predictor, Weights
from .reference import numpy as reference
from .registry import ACTIVATIONS, lookup
from .training.checks import boolean, check_numpy, check_shapes, integer

Array = NDArray[Any]


class NumpyNet:
    """``activation(x w1ᵀ + b1) w2ᵀ + b2`` over NumPy arrays; torch is never imported.

    Args:
        in_features, hidden_features, out_features: the sizes of the layers.
        activation: a name in :data:`twolayer.registry.ACTIVATIONS`.
        bias: whether the two layers have biases.
        seed: of the initial weights, uniform in ±1/√(inputs of the layer), as ``nn.Linear`` draws them.
        dtype: float32 or float64.

    ``w1`` (hidden, in), ``b1`` (hidden,) or None, ``w2`` (out, hidden), ``b2`` (out,) or None may be read and replaced.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        activation: str = "sigmoid",
        bias: bool = True,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        sizes = {"in_features": in_features, "hidden_features": hidden_features, "out_features": out_features}
        inputs, hidden, outputs = (integer(name, size, minimum=1) for name, size in sizes.items())
        self.activation = lookup(ACTIVATIONS, activation, "activation").name
        boolean("bias", bias)
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64; got {np.dtype(dtype)}")
        draw = np.random.default_rng(integer("seed", seed, minimum=0))

        def uniform(fan_in: int, *shape: int) -> Array:
            return draw.uniform(-1, 1, shape).astype(dtype) / np.asarray(math.sqrt(fan_in), dtype)

        self.w1 = uniform(inputs, hidden, inputs)
        self.b1 = uniform(inputs, hidden) if bias else None
        self.w2 = uniform(hidden, outputs, hidden)
        self.b2 = uniform(hidden, outputs) if bias else None

    def parameters(self) -> dict[str, Array]:
        """Return the arrays by name; a bias the net does not have is left out."""
        named = {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": self.b2}
        return {name: array for name, array in named.items() if array is not None}

    def __call__(self, x: Array) -> Array:
        """Return the outputs (rows, out) for x (rows, in)."""
        if np.asarray(x).dtype.kind not in "fiub":
            raise TypeError(f"x must hold real numbers; got {np.asarray(x).dtype}")
        x = np.ascontiguousarray(x, dtype=self.w1.dtype)
        if x.ndim != 2 or x.shape[1] != self.w1.shape[1]:
            raise ValueError(f"x must have shape (rows, {self.w1.shape[1]}), as w1 is {self.w1.shape}; got {x.shape}")
        core = _native.get_core()
        if core is None:
            return reference.forward(x, self.w1, self.b1, self.w2, self.b2, self.activation)[0]
        y = np.empty((len(x), len(self.w2)), x.dtype)
        activation = ACTIVATIONS[self.activation].id
        core.forward(x, self.w1, self.b1, self.w2, self.b2, None, y, activation, _native.num_threads())
        return y

    def predictor(self, threads: int | None = None) -> Predictor:
        """Return the net made ready to predict: NumPy array in, NumPy array out, far faster than a call for few rows.

        ``threads`` is how many to use at most, by default ``TWOLAYER_NUM_THREADS`` or all cores. See
        :class:`twolayer.predictor.Predictor`; its ``refresh()`` takes over what training has changed.
        """
        return Predictor(self._weights, threads)

    def _weights(self) -> Weights:
        arrays = self.parameters()
        check_numpy(arrays)
        check_shapes(arrays)
        kinds = {name: array.dtype.name for name, array in arrays.items()}
        if not set(kinds.values()) <= {"float32", "float64"}:
            raise ValueError(f"net's parameters must be float32 or float64; got {kinds}")
        dtype = np.result_type(*arrays.values())
        w1, b1, w2, b2 = (
            None if array is None else np.ascontiguousarray(array, dtype)
            for array in (self.w1, self.b1, self.w2, self.b2)
        )
        return Weights(w1, b1, w2, b2, self.activation)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        (hidden, inputs), outputs = self.w1.shape, len(self.w2)
        return f"NumpyNet({inputs}, {hidden}, {outputs}, activation={self.activation!r}, bias={self.b1 is not None})"
