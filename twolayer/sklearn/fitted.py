"""The net behind an estimator: the memory of its ``coefs_``, its optimiser's state, its prepared predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..numpy_net import NumpyNet
from ..registry import ACTIVATIONS
from ..training.options import check_options
from ..training.session import Session

Array = NDArray[Any]
Coefs = Sequence[Array]
Run = Callable[[Any], Array]


class FittedNet:
    """Takes its weights from an estimator's ``coefs_`` and ``intercepts_`` whenever those are not its own any more.

    Those it gives out are views of what is trained in place. They are read-only, so that no change goes unnoticed.
    """

    def __init__(self, activation: str) -> None:
        self.learning_rate: float | None = None  # that of the next epoch, while sgd goes on
        self.net = NumpyNet(1, 1, 1, activation)
        self._views: list[Array] = []
        self._session: Session | None = None
        self._options: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None  # the optimiser's, of a net that was pickled
        self._steps = 0
        self._prepared: tuple[tuple[Any, ...], Run] | None = None  # for what, and the predictor

    def __getstate__(self) -> dict[str, Any]:
        """All but the weights, which are the estimator's."""
        state, steps = self._optimizer_state()
        activation = self.net.activation
        return {
            "activation": activation,
            "learning_rate": self.learning_rate,
            "options": self._options,
            "state": state,
            "steps": steps,
        }

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__(kept["activation"])  # type: ignore[misc]
        self.learning_rate, self._options = kept["learning_rate"], kept["options"]
        self._state, self._steps = kept["state"], kept["steps"]

    # Weights

    def take(self, coefs: Coefs, intercepts: Coefs, dtype: Any) -> None:
        """Have the net hold these weights, (in, out) and (out,) of each layer, unless it does."""
        given = [*coefs, *intercepts]
        if self._is_own(given) and self.net.w1.dtype == dtype:
            return
        w1, w2, b1, b2 = (np.array(np.asarray(array).T, dtype, order="C") for array in given)
        self.net.w1, self.net.b1, self.net.w2, self.net.b2 = w1, b1, w2, b2
        self._views = [read_only(array) for array in (w1.T, w2.T, b1[:], b2[:])]
        self._prepared = None

    def coefs(self) -> list[Array]:
        return self._views[:2]

    def intercepts(self) -> list[Array]:
        return self._views[2:]

    def _is_own(self, given: list[Array]) -> bool:
        return len(given) == len(self._views) and all(a is b for a, b in zip(given, self._views, strict=True))

    # Training

    def session(self, **options: Any) -> Session:
        """The session under these options, which goes on from what the optimiser has gathered so far."""
        if self._session is None or self._options != options:
            state, steps = self._optimizer_state()
            session = Session(self.net, check_options(**options), None)
            if state is not None and state.keys() == session.state().keys():
                session.load_state(state, steps)
            self._session, self._options, self._state = session, options, None
        self._prepared = None
        return self._session

    def forget_optimizer(self) -> None:
        """Have the next session begin anew."""
        self._session, self._state, self._steps, self.learning_rate = None, None, 0, None

    def change_learning_rate(self, rate: float) -> None:
        """Go on with another rate. scikit-learn's momentum is of steps, which had the old one; the engine's is not."""
        before, self.learning_rate = self.learning_rate, rate
        assert self._session is not None
        state = self._session.state()
        if before is None or before == rate or not state:
            return
        buffers = {name: array * array.dtype.type(before / rate) for name, array in state["momentum_buffer"].items()}
        self._session.load_state({"momentum_buffer": buffers}, self._session.steps)

    def _optimizer_state(self) -> tuple[dict[str, Any] | None, int]:
        if self._session is None:
            return self._state, self._steps
        return self._session.state(), self._session.steps

    # Outputs

    def outputs(self, x: Any) -> Array:
        """The outputs (rows, out) of the net as it is now for x (rows, in), dense or CSR."""
        net = self.net
        return net(x) if isinstance(x, np.ndarray) else _sparse_outputs(x, net, np.ascontiguousarray(net.w1.T))

    def predict(self, x: Any, coefs: Coefs, intercepts: Coefs, threads: int) -> Array:
        """The outputs (rows, out) under these weights, which are packed when they are new; from any thread."""
        weights, sparse = [np.asarray(array) for array in (*coefs, *intercepts)], not isinstance(x, np.ndarray)
        wanted, prepared = (threads, sparse, *weights), self._prepared
        if prepared is None or not _are_same(wanted, prepared[0]):
            self.take(coefs, intercepts, np.result_type(*weights))
            prepared = wanted, _sparse_predictor(self.net) if sparse else self.net.predictor(threads)
            may_change = any(array.flags.writeable for array in weights)  # the caller's own, assigned to coefs_
            self._prepared = None if may_change else prepared
        return prepared[1](x)


def _are_same(wanted: tuple[Any, ...], prepared: tuple[Any, ...]) -> bool:
    pairs = zip(wanted, prepared, strict=True)
    return len(wanted) == len(prepared) and all(a is b if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def _sparse_predictor(net: NumpyNet) -> Run:
    w1_transposed = np.ascontiguousarray(net.w1.T)
    return lambda x: _sparse_outputs(x, net, w1_transposed)


def _sparse_outputs(x: Any, net: NumpyNet, w1_transposed: Array) -> Array:
    """The outputs for CSR x, by scipy's product: x is never made dense."""
    assert net.b1 is not None and net.b2 is not None
    hidden = x.astype(net.w1.dtype, copy=False) @ w1_transposed + net.b1
    return ACTIVATIONS[net.activation].value(hidden) @ net.w2.T + net.b2


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
