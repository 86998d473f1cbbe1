"""The prepared predictor: a net's weights packed once, NumPy arrays in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _native
from .reference import numpy as reference
from .registry import ACTIVATIONS
from .training.checks import integer

Array = NDArray[Any]
Run = Callable[[Any, Array | None], Any]  # run(x, out): the outputs, or None where x must be converted first


class Weights(NamedTuple):
    """All float32 or all float64, in ``nn.Linear``'s shapes, contiguous."""

    w1: Array  # (hidden, in)
    b1: Array | None  # (hidden,)
    w2: Array  # (out, hidden)
    b2: Array | None  # (out,)
    activation: str


class Predictor:
    """A net made ready to predict, by ``net.predictor()``: ``predictor(x)`` is ``net(x)`` at little more than the
    arithmetic's cost.

    The weights are copied, packed, when it is made. Training the net, or changing it otherwise, does not change what a
    predictor gives until :meth:`refresh`. float64 nets are computed in float64; all others, bfloat16 ones too, in
    float32, to which their weights are widened. A row's outputs are the same to the bit whatever rows are beside it and
    however many threads there are.

    A predictor may be called from several threads at once; ``refresh`` may run meanwhile, and a call then uses either
    the old weights or the new ones. Calls that take long release the GIL.

    ``in_features``, ``hidden_features``, ``out_features``, ``activation``, ``dtype`` and ``threads`` may be read.
    """

    in_features: int
    hidden_features: int
    out_features: int
    activation: str
    dtype: np.dtype[Any]

    def __init__(self, read_weights: Callable[[], Weights], threads: int | None) -> None:
        self.threads = _native.num_threads() if threads is None else integer("threads", threads, minimum=1, bits=31)
        self._read_weights = read_weights
        self.refresh()

    def refresh(self) -> None:
        """Take the net's weights as they are now. Raises ``ValueError`` where the net is no longer a plain one."""
        weights = self._read_weights()
        self._run = _prepare(weights, self.threads)
        (self.hidden_features, self.in_features), self.out_features = weights.w1.shape, len(weights.w2)
        self.activation, self.dtype = weights.activation, weights.w1.dtype

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """Return the outputs, of ``dtype``: (rows, out) for x (rows, in), and (out,) for one row (in,).

        x of ``dtype`` with contiguous rows is read where it lies; other real numbers and layouts are converted first.
        ``out``, a contiguous array of the result's shape and dtype that shares no memory with x, is written and
        returned instead of a new array.

        Raises ``TypeError`` when x does not hold real numbers or ``out`` has another dtype, ``ValueError`` when a shape
        does not fit or ``out`` cannot be written to. The message names the argument.
        """
        y = self._run(x, out)
        return self._run(self._converted(x), out) if y is None else y

    def _converted(self, x: Any) -> Array:
        array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"x must hold real numbers; got {array.dtype}")
        features = self.in_features
        if array.ndim not in (1, 2) or array.shape[-1] != features:
            raise ValueError(f"x must have shape (rows, {features}) or ({features},); got {array.shape}")
        return np.require(array, self.dtype, ["C_CONTIGUOUS", "ALIGNED"])

    def __repr__(self) -> str:
        sizes = f"{self.in_features}, {self.hidden_features}, {self.out_features}"
        return f"Predictor({sizes}, activation={self.activation!r}, dtype={self.dtype}, threads={self.threads})"


def _prepare(weights: Weights, threads: int) -> Run:
    core = _native.get_core()
    if core is None:
        return _reference_run(weights)
    native = core.PredictorFloat32 if weights.w1.dtype == np.float32 else core.PredictorFloat64
    return native(*weights[:4], ACTIVATIONS[weights.activation].id, threads)


def _reference_run(weights: Weights) -> Run:
    w1, b1, w2, b2 = (None if array is None else array.copy() for array in weights[:4])
    assert w1 is not None and w2 is not None

    def run(x: Any, out: Array | None) -> Array | None:
        if not isinstance(x, np.ndarray) or x.dtype != w1.dtype or x.ndim not in (1, 2) or x.shape[-1] != w1.shape[1]:
            return None
        shape = (*x.shape[:-1], len(w2))
        if out is not None:
            _check_out(out, x, shape)
        y = reference.forward(np.atleast_2d(x), w1, b1, w2, b2, weights.activation)[0].reshape(shape)
        if out is None:
            return y
        out[...] = y
        return out

    return run


def _check_out(out: Any, x: Array, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array; got {type(out).__name__}")
    if out.dtype != x.dtype:
        raise TypeError(f"out must be {x.dtype}; got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}; got {out.shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be contiguous and writable")
    if np.may_share_memory(out, x):
        raise ValueError("out must not share memory with x")
