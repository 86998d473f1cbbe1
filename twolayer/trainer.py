"""Native training: :func:`fit`, and :class:`Trainer` for loops of one's own.

Each epoch is one call of the native engine, without the GIL: there batches are drawn, the forward and backward passes
and the loss computed, and the weights updated. Where the native library is not loaded, NumPy does the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .registry import ACTIVATIONS
from .training.data import Rows, prepare_rows
from .training.loop import TrainingData, make_watch, permutation
from .training.options import PARAMETER_NAMES, check_options, integer, refuse_unknown
from .training.parameters import Arrays, parameters_of_net
from .training.progress import ProgressLine
from .training.results import History, NonFiniteLossError, TrainingInterrupted
from .training.stopping import EarlyStopping

Array = NDArray[Any]


class Trainer:
    """Trains a net step by step or epoch by epoch, keeping the optimiser's state in between.

    ``net`` is a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential`` on the CPU, or a
    :class:`twolayer.NumpyNet`; float32 or float64. Its own parameters are trained: when a method returns they hold the
    result. The options are :func:`fit`'s. Wrong ones raise ``TypeError`` or ``ValueError``, naming the argument, before
    anything is changed.
    """

    def __init__(self, net: Any, *, class_weight: Any = None, **options: Any) -> None:
        refuse_unknown(options)
        self._options = check_options(**options)
        self._module = net
        self._class_weight = class_weight
        self._net = parameters_of_net(net)
        self._check_precision()
        self._engine: Any = self._make_engine()
        self._ahead = False  # whether the engine has taken steps that the net's parameters do not hold yet
        self._epochs = 0
        self._epoch_step = 0  # batches taken of an epoch that was interrupted

    @property
    def steps(self) -> int:
        """The number of updates made so far."""
        return int(self._engine.steps)

    def step(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Take one step on a batch x (rows, in), y as :func:`fit` takes it; return its loss before the update."""
        rows = self._prepare(x, y, sample_weight)
        lr = self._options.lr_schedule.rates(self._options.lr, self._epochs, self._epoch_step, 1, 1)
        with _Stored(self):
            return float(self._run(rows, None, rows.count, 0, lr, None)[0])

    def epoch(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Train one epoch on x (rows, in) and y, in batches; return its mean loss as ``History.loss`` defines it.

        An epoch that was interrupted is taken up where it stopped, and the mean is over what is left of it.
        """
        rows = self._prepare(x, y, sample_weight)
        with _Stored(self):
            return self._run_epoch(rows, None, None)[0]

    def evaluate(self, x: Any, y: Any, sample_weight: Any = None) -> dict[str, float]:
        """Return the ``loss`` on x and y and, for classes, the ``accuracy``. The net is not changed."""
        rows = self._prepare(x, y, sample_weight)
        self._load()
        return self._evaluate(rows, None)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs beside the net's own weights to go on as if never interrupted.

        ``steps`` and ``epochs`` taken, ``epoch_step``: batches taken of an interrupted epoch, and ``state``: by
        torch.optim's names (``momentum_buffer``, ``exp_avg`` …) the arrays by parameter (w1, b1, w2, b2).
        """
        state: dict[str, dict[str, Array]] = {}
        for index, name in self._kept_states():
            values = self._empty_state()
            self._engine.store_state(index, values)
            state[name] = {p: array for p, array in zip(PARAMETER_NAMES, values, strict=True) if array is not None}
        return {"steps": self.steps, "epochs": self._epochs, "epoch_step": self._epoch_step, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the trainer that gave ``state_dict`` stopped; the net's own weights are loaded beside it."""
        expected = {"steps", "epochs", "epoch_step", "state"}
        if not isinstance(state_dict, dict) or set(state_dict) != expected:
            given = sorted(state_dict) if isinstance(state_dict, dict) else type(state_dict).__name__
            raise ValueError(f"state_dict must be a dictionary of {', '.join(sorted(expected))}; got {given}")
        counts = {name: integer(f"state_dict's {name}", state_dict[name], minimum=0) for name in expected - {"state"}}
        self._load_state(state_dict["state"], counts["steps"])
        self._epochs, self._epoch_step = counts["epochs"], counts["epoch_step"]

    def to_torch_optimizer(self) -> Any:
        """Return the ``torch.optim`` object that would go on from here, with the same options and state."""
        from .training.torch_optim import make_optimizer

        return make_optimizer(self._module, self._options, self.state_dict())

    def from_torch_optimizer(self, optimizer: Any) -> None:
        """Take over the state of a ``torch.optim`` object of the trainer's kind, built on the net's parameters."""
        from .training.torch_optim import read_state

        steps, state = read_state(self._module, optimizer, self._options)
        self._load_state(state, steps)

    # ---- What the methods above and fit are made of

    def _make_engine(self) -> Any:
        options, net = self._options, self._net
        config = {
            "in_features": net.in_features,
            "hidden_features": net.hidden_features,
            "out_features": net.out_features,
            "activation": ACTIVATIONS[net.activation].id,
            "loss": options.loss.id,
            "optimizer": options.optimizer.id,
            **options.update_rule,
            "label_smoothing": options.label_smoothing,
            "loss_beta": options.loss_beta,
            "ignore_index": options.ignore_index,
            "l1": options.l1,
            "l2": options.l2,
            "clip_norm": options.clip_norm,
            "clip_value": options.clip_value,
            "dropout": options.dropout,
            "seed": options.seed,
            "bfloat16_compute": options.precision == "bfloat16",
            "present": [net.has(name) for name in PARAMETER_NAMES],
            "frozen": [name in net.frozen for name in PARAMETER_NAMES],
            "skip_zeros": options.skip_zeros,
            "threads": options.threads,
        }
        core = _native.get_core()
        if core is None:
            from .reference.engine import ReferenceEngine

            return ReferenceEngine(config)
        return (core.EngineFloat32 if net.dtype == np.float32 else core.EngineFloat64)(config)

    def _check_precision(self) -> None:
        precision, dtype = self._options.precision, self._net.dtype.name
        if precision == "bfloat16" and dtype != "float32":
            raise ValueError(f"precision 'bfloat16' needs a float32 net, whose weights it keeps; the net is {dtype}")
        if precision in ("float32", "float64") and precision != dtype:
            raise ValueError(f"precision {precision!r} needs a net of that dtype; the net is {dtype}")

    def _prepare(self, x: Any, y: Any, sample_weight: Any = None) -> Rows:
        net = self._net
        if not net.is_of(self._module):  # a parameter was replaced since the last call
            net = parameters_of_net(self._module)
            if net.form != self._net.form:
                raise ValueError(f"net must stay what its trainer was made for, {self._net.form}; it is now {net.form}")
            self._net = net
        return prepare_rows(
            x,
            y,
            in_features=net.in_features,
            out_features=net.out_features,
            loss=self._options.loss,
            dtype=net.dtype,
            ignore_index=self._options.ignore_index,
            scaled=(self._options.input_scale, self._options.input_shift) != (1.0, 0.0),
            sample_weight=sample_weight,
            class_weight=self._class_weight,
        )

    def _load(self) -> None:
        """Bring the engine up to the net's parameters, unless it is ahead of them."""
        if not self._ahead:
            self._engine.load(self._net.arrays())

    def _store(self) -> None:
        """Bring the net's parameters up to the engine, if it is ahead of them."""
        if self._ahead:
            self._engine.store(self._net.trained())
            self._net.mark_written()
            self._ahead = False

    def _run(
        self,
        rows: Rows,
        order: Array | None,
        batch_size: int,
        first_step: int,
        lr: Array,
        on_progress: Callable[[int], None] | None,
    ) -> Array:
        """Take one step for each entry of ``lr``; return the losses of the steps."""
        options = self._options
        self._load()
        self._ahead = True
        losses = np.empty(len(lr))
        before = self._engine.steps
        not_finite = self._engine.run(
            rows.x,
            rows.y,
            rows.sample_weight,
            rows.class_weight,
            options.input_scale,
            options.input_shift,
            order,
            batch_size,
            first_step,
            lr,
            losses,
            options.stop_if_not_finite,
            on_progress,
        )
        if not_finite:
            done = self._engine.steps - before
            raise NonFiniteLossError(losses[done], self._engine.steps, self._epochs, first_step + done)
        return losses

    def _run_epoch(
        self, rows: Rows, chosen: Array | None, on_progress: Callable[[int], None] | None
    ) -> tuple[float, float]:
        """Train on what is left of the epoch; return the mean loss and the last batch's. ``chosen`` rows, or all."""
        count = rows.count if chosen is None else len(chosen)
        sizes = self._batch_sizes(count)
        order = chosen
        if self._options.shuffle:
            order = permutation(count, self._options.seed, self._epochs)
            order = order if chosen is None else chosen[order]
        first = self._epoch_step
        lr = self._options.lr_schedule.rates(self._options.lr, self._epochs, first, len(sizes) - first, len(sizes))
        before = self._engine.steps
        try:
            losses = self._run(rows, order, self._options.batch_size, first, lr, on_progress)
        except BaseException:
            self._epoch_step = first + self._engine.steps - before
            raise
        self._epochs, self._epoch_step = self._epochs + 1, 0
        weights = sizes[first:]
        return float(losses @ weights / weights.sum()), float(losses[-1])

    def _batch_sizes(self, count: int) -> Array:
        batch_size = self._options.batch_size
        whole, rest = divmod(count, batch_size)
        if self._options.drop_last:
            if whole == 0:
                raise ValueError(
                    f"drop_last leaves nothing to train on: there are {count} rows, batch_size {batch_size}"
                )
            rest = 0
        sizes = np.full(whole + (rest > 0), float(batch_size))
        if rest:
            sizes[-1] = rest
        return sizes

    def _evaluate(self, rows: Rows, chosen: Array | None) -> dict[str, float]:
        options = self._options
        total, divisor, hits = self._engine.evaluate(
            rows.x, rows.y, rows.sample_weight, rows.class_weight, options.input_scale, options.input_shift, chosen
        )
        result = {"loss": total / divisor if divisor else float("nan")}
        if rows.y.ndim == 1:
            result["accuracy"] = hits / (rows.count if chosen is None else len(chosen))
        return result

    def _kept_states(self) -> list[tuple[int, str]]:
        names = self._options.optimizer.states
        return [(index, name) for index, name in enumerate(names) if self._engine.keeps_state(index)]

    def _empty_state(self) -> Arrays:
        w1, b1, w2, b2 = (None if array is None else np.empty_like(array) for array in self._net.trained())
        return w1, b1, w2, b2

    def _load_state(self, state: dict[str, dict[str, Any]], steps: int) -> None:
        kept = self._kept_states()
        names = [name for _, name in kept]
        if sorted(state) != sorted(names):
            raise ValueError(f"state must hold {names or 'nothing'}; it holds {sorted(state) or 'nothing'}")
        arrays = [self._checked_state(name, state[name]) for name in names]
        for (index, _), values in zip(kept, arrays, strict=True):
            self._engine.load_state(index, values)
        self._engine.steps = steps

    def _checked_state(self, name: str, values: dict[str, Any]) -> Arrays:
        checked: list[Array | None] = []
        for parameter, like in zip(PARAMETER_NAMES, self._net.trained(), strict=True):
            wanted = None if like is None else like.shape
            given = np.shape(values[parameter]) if parameter in values else None
            if given != wanted:
                raise ValueError(f"state's {name} of {parameter} must have shape {wanted}; got {given}")
            checked.append(None if like is None else np.ascontiguousarray(values[parameter], dtype=like.dtype))
        w1, b1, w2, b2 = checked
        return w1, b1, w2, b2


class _Stored:
    """On leaving, however that is, the net's parameters are brought up to the engine."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._trainer._store()


def fit(
    net: Any,
    x: Any,
    y: Any = None,
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
    early_stopping: EarlyStopping | None = None,
    lr_schedule: Any = None,
    callback: Callable[[int, History], object] | None = None,
    progress: bool = False,
    threads: int | None = None,
    precision: str | None = None,
    sample_weight: Any = None,
    **options: Any,
) -> History:
    """Train ``net`` in place, whole epochs at a time in native code, and return the :class:`History`.

    Args:
        net: a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential`` on the CPU, or a
            :class:`twolayer.NumpyNet`; float32 or float64. A parameter that does not require grad is left as it is.
        x: (rows, in_features): a torch tensor or a NumPy array, memory-mapped too, of float32, float64, bfloat16 or
            uint8 (other numbers are converted), or a CSR matrix of scipy or torch. Or an iterable of batches (x, y),
            such as a ``DataLoader``, gone through once per epoch as it comes; then ``y`` is left out.
        y: for ``cross_entropy`` integer classes (rows,) or distributions (rows, out_features); for the other losses
            values (rows, out_features), or (out_features,), the same for all rows.
        loss: a name in :data:`twolayer.registry.LOSSES`, with the arithmetic of its namesake in torch.nn.functional and
            reduction "mean"; ``mse_sum`` is the sum of squares.
        optimizer: a name in :data:`twolayer.registry.OPTIMIZERS`, with the arithmetic of its namesake in torch.optim.
        lr, momentum, nesterov, weight_decay, betas, eps: as there; their defaults here are the same for all optimisers.
        l1, l2: add l1·Σ|W| + l2/2·ΣW² over w1 and w2 to the loss.
        batch_size, epochs: rows per step, and passes over the data.
        shuffle, seed: whether each epoch takes the rows in a new order; epoch e (from 0) takes
            :func:`twolayer.reference.numpy.permutation` ``(rows, seed, e)``. Without it rows are taken as they stand.
        drop_last: leave out an epoch's last batch when it is short.
        validation: (x, y), or the fraction of the rows to hold out: the last of the permutation of epoch 2⁶⁴ − 1.
        early_stopping: a :class:`twolayer.EarlyStopping`.
        lr_schedule: one of :mod:`twolayer.training.schedules`, or a function epoch → lr.
        callback: called as ``callback(epoch, history)`` after each epoch, with the net up to date; True ends training.
        progress: show a line with the time left on standard error.
        threads: at most so many; by default all cores this process may use. The result does not depend on it.
        precision: None for the net's own, or "bfloat16": the factors of products are rounded to bfloat16, while
            weights, sums and the optimiser's state stay float32.
        sample_weight: (rows,), what each row counts for; the mean is divided by their sum.
        options: ``dampening``, ``amsgrad``, ``alpha``, ``centered``, ``lr_decay``, ``initial_accumulator_value`` as in
            torch.optim; ``label_smoothing``, ``ignore_index``, ``class_weight`` (out_features,) for cross_entropy;
            ``loss_beta`` where smooth_l1 and huber turn linear; ``clip_norm``, ``clip_value`` of the gradient;
            ``dropout`` of hidden values; ``input_scale``, ``input_shift``: what x is multiplied by and then added;
            ``skip_zeros``: whether products go through the nonzero inputs only (None: as each batch's density suggests;
            the result is the same to the bit); ``nonfinite``: "raise" (:class:`NonFiniteLossError`) or "continue".

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
        l1=l1,
        l2=l2,
        betas=betas,
        eps=eps,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        lr_schedule=lr_schedule,
        threads=threads,
        precision=precision,
        **options,
    )
    data = TrainingData(trainer, x, y, sample_weight, validation)
    watch = make_watch(early_stopping, data)
    history = History()
    with ProgressLine(epochs, data.steps_per_epoch, enabled=progress) as line, _Stored(trainer):
        try:
            for epoch in range(epochs):
                start = time.perf_counter()
                data.train_epoch(history, line.on_progress if progress else None)
                data.validate(history)
                history.steps = trainer.steps
                if callback is not None or (watch and watch.rule.restore_best):
                    trainer._store()
                history.seconds += time.perf_counter() - start
                line.epoch_done(epoch, history.loss[-1])
                if watch and watch.is_better(history):
                    history.best_epoch, watch.best = epoch, _copies(trainer)
                if (callback is not None and callback(epoch, history) is True) or (watch and watch.is_over):
                    history.stopped_early = True
                    break
        except KeyboardInterrupt as interrupt:
            history.steps = trainer.steps
            raise TrainingInterrupted(history) from interrupt
    if watch and watch.rule.restore_best and watch.best is not None:
        for array, best in zip(trainer._net.trained(), watch.best, strict=True):
            if array is not None:
                array[...] = best
        trainer._net.mark_written()
    return history


def _copies(trainer: Trainer) -> list[Array | None]:
    return [None if array is None else array.copy() for array in trainer._net.trained()]
