"""Native training: :func:`fit`, and :class:`Trainer` for loops of one's own.

Each epoch is one call of the native engine, without the GIL: batches are drawn, the forward and backward passes, the
loss and the update of the weights run there. Where the native library is not loaded, the NumPy reference does the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from ._batches import prepare_inputs, prepare_targets
from ._options import check_options, integer
from ._parameters import NAMES, NetParameters
from ._progress import ProgressLine
from .reference import numpy as reference
from .reference.engine import STATE_NAMES, ReferenceEngine
from .registry import ACTIVATIONS

Array = NDArray[Any]


@dataclass
class History:
    """What a training run saw; the lists have one entry per epoch.

    ``loss`` is the mean over the epoch of each batch's loss before its update, batches weighted by their rows;
    ``last_batch_loss`` that of the last batch. ``seconds`` is the time spent training, ``steps`` the number of updates.
    """

    loss: list[float] = field(default_factory=list)
    last_batch_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    stopped_early: bool = False
    best_epoch: int | None = None


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during :func:`fit`: the net holds the last finished step's weights, ``history`` the epochs before."""

    def __init__(self, history: History) -> None:
        super().__init__(f"training was interrupted after {history.steps} steps")
        self.history = history


class Trainer:
    """Trains a net step by step or epoch by epoch, keeping the optimiser's state in between.

    ``net`` is a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential``, in float32 or float64 on the CPU. Its own
    parameters are trained: when a method returns they hold the result. The options are :func:`fit`'s. Wrong ones raise
    ``TypeError`` or ``ValueError``, naming the argument, before anything is changed.
    """

    def __init__(self, net: Any, **options: Any) -> None:
        self._options = check_options(**options)
        self._module = net
        self._net = NetParameters(net)
        self._engine: Any = self._make_engine()
        self._ahead = False  # whether the engine has taken steps that the net's parameters do not hold yet
        self._steps = 0
        self._epochs = 0

    def step(self, x: Any, y: Any) -> float:
        """Take one step on a batch x (rows, in), y as :func:`fit` takes it; return its loss before the update."""
        x, y = self._prepare(x, y)
        losses = np.empty(1)
        try:
            self._run(x, y, None, losses, len(x), None)
        finally:
            self._store()
        return float(losses[0])

    def epoch(self, x: Any, y: Any) -> float:
        """Train one epoch on x (rows, in) and y, in batches; return its mean loss as ``History.loss`` defines it."""
        x, y = self._prepare(x, y)
        try:
            losses, rows = self._run_epoch(x, y, None)
        finally:
            self._store()
        return _mean_loss(losses, rows)

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """Return the ``loss`` on x and y and, for a loss over classes, the ``accuracy``. Nothing is changed."""
        x, y = self._prepare(x, y)
        total, correct, summed = 0.0, 0, self._options.loss.name == "mse_sum"
        for start in range(0, len(x), 4096):
            rows = slice(start, start + 4096)
            z = self._forward(x[rows])
            total += self._options.loss.value(z, y[rows]) * (1 if summed else len(z))
            if self._options.loss.targets == "classes":
                correct += int((z.argmax(axis=1) == y[rows]).sum())
        result = {"loss": total if summed else total / len(x)}
        if self._options.loss.targets == "classes":
            result["accuracy"] = correct / len(x)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs beside the net's own ``state_dict`` to go on as if never interrupted.

        ``steps`` and ``epochs`` taken, and ``state``: per optimiser state (``momentum_buffer``) the arrays by parameter
        (w1, b1, w2, b2), in the parameters' shapes.
        """
        state: dict[str, dict[str, Array]] = {}
        for index, name in enumerate(STATE_NAMES):
            if self._engine.keeps_state(index):
                values = self._net.empty()
                self._engine.store_state(index, values)
                state[name] = {p: array for p, array in zip(NAMES, values, strict=True) if array is not None}
        return {"steps": self._steps, "epochs": self._epochs, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the trainer that gave ``state_dict`` stopped; the net's own is to be loaded beside it."""
        if not isinstance(state_dict, dict) or set(state_dict) != {"steps", "epochs", "state"}:
            given = sorted(state_dict) if isinstance(state_dict, dict) else type(state_dict).__name__
            raise ValueError(f"state_dict must be a dictionary of steps, epochs and state; got {given}")
        steps = integer("state_dict's steps", state_dict["steps"], minimum=0)
        epochs = integer("state_dict's epochs", state_dict["epochs"], minimum=0)
        kept = [index for index in range(len(STATE_NAMES)) if self._engine.keeps_state(index)]
        names = [STATE_NAMES[index] for index in kept]
        if sorted(state_dict["state"]) != sorted(names):
            raise ValueError(f"state_dict must hold the states {names}; it holds {sorted(state_dict['state'])}")
        arrays = [self._check_state(name, state_dict["state"][name]) for name in names]
        for index, values in zip(kept, arrays, strict=True):
            self._engine.load_state(index, values, steps)
        self._steps, self._epochs = steps, epochs

    def _check_state(self, name: str, values: dict[str, Any]) -> tuple[Array | None, ...]:
        checked: list[Array | None] = []
        for parameter, like in zip(NAMES, self._net.arrays(), strict=True):
            value = values.get(parameter)
            expected = None if like is None else like.shape
            given = None if value is None else np.shape(value)
            if given != expected:
                raise ValueError(f"state_dict's {name} of {parameter} must have shape {expected}; got {given}")
            checked.append(None if like is None else np.ascontiguousarray(value, dtype=like.dtype))
        return tuple(checked)

    def _make_engine(self) -> Any:
        options, net = self._options, self._net
        core = _native.get_core()
        if core is None:
            return ReferenceEngine(net.activation, options.loss.name, options.optimizer.name, options.update_rule)
        native = core.EngineFloat32 if net.dtype == np.float32 else core.EngineFloat64
        return native(
            in_features=net.in_features,
            hidden_features=net.hidden_features,
            out_features=net.out_features,
            activation=ACTIVATIONS[net.activation].id,
            loss=options.loss.id,
            optimizer=options.optimizer.id,
            dampening=0.0,
            has_b1=net.has("b1"),
            has_b2=net.has("b2"),
            threads=options.threads,
            **options.update_rule,
        )

    def _prepare(self, x: Any, y: Any) -> tuple[Array, Array]:
        net = NetParameters(self._module)  # anew: a parameter may have been replaced since the last call
        if net.form != self._net.form:
            raise ValueError(f"net must stay what its trainer was made for, {self._net.form}; it is now {net.form}")
        self._net = net
        inputs = prepare_inputs(x, self._net.in_features, self._net.dtype)
        return inputs, prepare_targets(y, len(inputs), self._net.out_features, self._options.loss, self._net.dtype)

    def _run_epoch(self, x: Array, y: Array, on_progress: Callable[[int], None] | None) -> tuple[Array, Array]:
        """Train one epoch; return each batch's loss and number of rows."""
        rows = self._batch_rows(len(x))
        losses = np.empty(len(rows))
        order = self._order(len(x)) if self._options.shuffle else None
        self._run(x, y, order, losses, self._options.batch_size, on_progress)
        self._epochs += 1
        return losses, rows

    def _run(self, x: Array, y: Array, order: Array | None, losses: Array, batch_size: int, on_progress: Any) -> None:
        if not self._ahead:
            self._engine.load(self._net.arrays())
            self._ahead = True
        try:
            self._engine.run(x, y, order, losses, batch_size, on_progress)
        finally:
            self._steps += self._engine.last_steps

    def _store(self) -> None:
        """Write the engine's weights into the net, if it has newer ones."""
        if self._ahead:
            self._engine.store(self._net.arrays())
            self._net.mark_written()
            self._ahead = False

    def _batch_rows(self, rows: int) -> Array:
        whole, rest = divmod(rows, self._options.batch_size)
        if self._options.drop_last and whole == 0:
            raise ValueError(
                f"drop_last leaves nothing to train on: x has {rows} rows, batch_size is {self._options.batch_size}"
            )
        sizes = np.full(whole + (rest > 0 and not self._options.drop_last), self._options.batch_size)
        if rest and not self._options.drop_last:
            sizes[-1] = rest
        return sizes

    def _order(self, rows: int) -> Array:
        core = _native.core
        if core is None:
            return reference.permutation(rows, self._options.seed, self._epochs)
        order = np.empty(rows, np.int64)
        core.permutation(order, self._options.seed, self._epochs)
        return order

    def _forward(self, x: Array) -> Array:
        w1, b1, w2, b2 = self._net.arrays()
        activation = self._net.activation
        core = _native.core
        if core is None:
            assert w1 is not None and w2 is not None
            return reference.forward(x, w1, b1, w2, b2, activation)[0]
        y = np.empty((len(x), self._net.out_features), self._net.dtype)
        x = np.ascontiguousarray(x)
        core.forward(x, w1, b1, w2, b2, None, y, ACTIVATIONS[activation].id, self._options.threads)
        return y


def fit(
    net: Any,
    x: Any,
    y: Any,
    *,
    loss: str = "cross_entropy",
    optimizer: str = "sgd",
    lr: float = 1e-2,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    batch_size: int = 64,
    epochs: int = 1,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    validation: Any = None,
    early_stopping: Any = None,
    lr_schedule: Any = None,
    callback: Callable[[int, History], object] | None = None,
    progress: bool = False,
    threads: int | None = None,
    precision: str | None = None,
) -> History:
    """Train ``net`` in place, whole epochs at a time in native code, and return the :class:`History`.

    Args:
        net: a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential``, float32 or float64, on the CPU.
        x: (rows, in_features), a torch tensor or a NumPy array; converted to the net's dtype when it has another.
        y: integer classes (rows,) for ``cross_entropy``; for ``mse`` and ``mse_sum`` values (rows, out_features), or
            (out_features,), the same for all rows.
        loss: a name in :data:`twolayer.registry.LOSSES`: ``cross_entropy`` (mean over rows), ``mse`` (mean over all
            numbers), ``mse_sum`` (sum of squares).
        optimizer: a name in :data:`twolayer.registry.OPTIMIZERS`; torch.optim's arithmetic.
        lr, momentum, nesterov, weight_decay: as in ``torch.optim.SGD``.
        batch_size, epochs: rows per step, and passes over the data.
        shuffle, seed: whether each epoch takes the rows in a new order; epoch e (from 0) takes
            :func:`twolayer.reference.numpy.permutation` ``(rows, seed, e)``. Without it rows are taken as they stand.
        drop_last: leave out an epoch's last batch when it is short.
        callback: called as ``callback(epoch, history)`` after each epoch, with the net up to date; True ends training.
        progress: show a line with the time left on standard error.
        threads: at most so many; by default all cores this process may use. The result does not depend on it.
        l1, l2, betas, eps, validation, early_stopping, lr_schedule, precision: not available in this version.

    Ctrl-C raises :class:`TrainingInterrupted`, with the net at the last finished step. Wrong arguments raise
    ``TypeError`` or ``ValueError`` before anything is changed.
    """
    epochs = integer("epochs", epochs, minimum=0)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable; got {type(callback).__name__}")
    trainer = Trainer(
        net,
        loss=loss,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        threads=threads,
        l1=l1,
        l2=l2,
        betas=betas,
        eps=eps,
        validation=validation,
        early_stopping=early_stopping,
        lr_schedule=lr_schedule,
        precision=precision,
    )
    x, y = trainer._prepare(x, y)
    steps_per_epoch = len(trainer._batch_rows(len(x)))
    history = History()
    with ProgressLine(epochs, steps_per_epoch, enabled=progress) as line:
        try:
            for epoch in range(epochs):
                _train_epoch(trainer, x, y, history, line.on_progress if progress else None, callback is not None)
                line.epoch_done(epoch, history.loss[-1])
                if callback is not None and callback(epoch, history) is True:
                    history.stopped_early = True
                    break
        except KeyboardInterrupt as interrupt:
            history.steps = trainer._steps
            raise TrainingInterrupted(history) from interrupt
        finally:
            trainer._store()
    return history


def _train_epoch(trainer: Trainer, x: Array, y: Array, history: History, on_progress: Any, store: bool) -> None:
    """Train one epoch and enter it into ``history``; the net is brought up to date if ``store``."""
    start = time.perf_counter()
    losses, rows = trainer._run_epoch(x, y, on_progress)
    if store:
        trainer._store()
    history.seconds += time.perf_counter() - start
    history.loss.append(_mean_loss(losses, rows))
    history.last_batch_loss.append(float(losses[-1]))
    history.steps += len(losses)


def _mean_loss(losses: Array, rows: Array) -> float:
    return float(losses @ rows / rows.sum())
