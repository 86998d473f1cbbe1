"""One net, one engine, one set of options: what :class:`twolayer.Trainer` and :func:`twolayer.fit` both drive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..reference import numpy as reference
from ..registry import ACTIVATIONS
from .data import Rows, prepare_rows
from .options import PARAMETER_NAMES, TrainOptions
from .parameters import Arrays, parameters_of_net
from .place import check_numbers, is_tensor
from .results import NonFiniteLossError

Array = NDArray[Any]


def permutation(count: int, seed: int, epoch: int) -> Array:
    """Return the order in which an epoch takes its rows: :func:`twolayer.reference.numpy.permutation`, natively."""
    if _native.core is None:
        return reference.permutation(count, seed, epoch)
    order = np.empty(count, np.int64)
    _native.core.permutation(order, seed, epoch)
    return order


class Session:
    """Trains and evaluates a net on checked rows, and keeps its engine and the net's own parameters in step.

    ``epochs`` counts those finished, ``epoch_step`` the batches taken of one that was interrupted. ``prepare`` stands
    in for :func:`prepare_rows`.
    """

    def __init__(
        self, net: Any, options: TrainOptions, class_weight: Any, prepare: Callable[..., Rows] = prepare_rows
    ) -> None:
        self.options = options
        self._prepare_rows = prepare
        self.net = net
        self.parameters = parameters_of_net(net)
        self.epochs = 0
        self.epoch_step = 0
        self._class_weight = class_weight
        self._check_precision()
        self._place = self.parameters.place
        self._engine: Any = self._place.make_engine(self._config(), self.parameters.dtype)
        self._orders = self._place.make_orders()
        self._ahead = False  # whether the engine has taken steps that the net's parameters do not hold yet

    @property
    def steps(self) -> int:
        return int(self._engine.steps)

    @property
    def path(self) -> str:
        """The way that the last step took, in ``History``'s words; "" before the first."""
        return self._place.path(self._engine) if self.steps else ""

    def _config(self) -> dict[str, Any]:
        options, net = self.options, self.parameters
        return {
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
            "penalty_per_row": options.penalty_per_row,
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

    def _check_precision(self) -> None:
        precision, dtype = self.options.precision, self.parameters.dtype.name
        if precision == "bfloat16" and dtype != "float32":
            raise ValueError(f"precision 'bfloat16' needs a float32 net, whose weights it keeps; the net is {dtype}")
        if precision in ("float32", "float64") and precision != dtype:
            raise ValueError(f"precision {precision!r} needs a net of that dtype; the net is {dtype}")

    def prepare(self, x: Any, y: Any, sample_weight: Any = None) -> Rows:
        """Check data against the net as it is now; raise ``ValueError`` when that has taken another form."""
        if not self.parameters.is_of(self.net):  # a parameter was replaced since the last call
            now = parameters_of_net(self.net)
            if now.form != self.parameters.form:
                raise ValueError(f"net must stay what it was trained as, {self.parameters.form}; it is now {now.form}")
            self.parameters = now
        return self._prepare_rows(
            x,
            y,
            place=self._place,
            in_features=self.parameters.in_features,
            out_features=self.parameters.out_features,
            loss=self.options.loss,
            dtype=self.parameters.dtype,
            ignore_index=self.options.ignore_index,
            scaled=(self.options.input_scale, self.options.input_shift) != (1.0, 0.0),
            sample_weight=sample_weight,
            class_weight=self._class_weight,
        )

    def load(self) -> None:
        """Bring the engine up to the net's parameters, unless it is ahead of them."""
        if not self._ahead:
            self._engine.load(self.parameters.arrays())

    def store(self) -> None:
        """Bring the net's parameters up to the engine, if it is ahead of them."""
        if self._ahead:
            self._engine.store(self.parameters.trained())
            self.parameters.mark_written()
            self._ahead = False

    @contextmanager
    def stored(self) -> Iterator[None]:
        """On leaving, however that is, the net's parameters are brought up to the engine."""
        try:
            yield
        finally:
            self._orders.drop()
            self.store()

    def run(
        self,
        rows: Rows,
        order: Array | None,
        batch_size: int,
        first_step: int,
        lr: Array,
        on_progress: Callable[[int], None] | None,
        number_of_first: int | None = None,
    ) -> Array:
        """Take one step for each entry of ``lr``; return their losses.

        ``number_of_first`` is what an error calls the first batch, ``first_step`` by default.
        """
        options = self.options
        self.load()
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
            batch = done + (first_step if number_of_first is None else number_of_first)
            raise NonFiniteLossError(losses[done], self._engine.steps, self.epochs, batch)
        return losses

    def run_batch(self, rows: Rows, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Take one step on all of ``rows``; return its loss. The rest is for the learning-rate schedule."""
        lr = self.options.lr_schedule.rates(self.options.lr, epoch, step, 1, steps_per_epoch)
        return float(self.run(rows, None, rows.count, 0, lr, None, step)[0])

    def run_epoch(
        self, rows: Rows, chosen: Array | None, on_progress: Callable[[int], None] | None, more: bool = False
    ) -> tuple[float, float]:
        """Train on what is left of the epoch; return the mean loss and the last batch's. ``chosen`` rows, or all.

        With ``more``, the next call is for the epoch after this one, with the same rows, before ``stored`` is left.
        """
        count = rows.count if chosen is None else len(chosen)
        sizes = self.batch_sizes(count)
        order = chosen
        if self.options.shuffle:
            order = self._orders.take(partial(self._order, count, chosen), self.epochs, more)
        first = self.epoch_step
        if first >= len(sizes):
            raise ValueError(f"x must have more than the {first} batches that were taken of it; it has {len(sizes)}")
        lr = self.options.lr_schedule.rates(self.options.lr, self.epochs, first, len(sizes) - first, len(sizes))
        before = self._engine.steps
        try:
            losses = self.run(rows, order, self.options.batch_size, first, lr, on_progress)
        except BaseException:
            done = first + self._engine.steps - before
            self.epochs, self.epoch_step = (self.epochs, done) if done < len(sizes) else (self.epochs + 1, 0)
            raise
        self.epochs, self.epoch_step = self.epochs + 1, 0
        weights = sizes[first:]
        return float(losses @ weights / weights.sum()), float(losses[-1])

    def _order(self, count: int, chosen: Array | None, epoch: int) -> Array:
        order = permutation(count, self.options.seed, epoch)
        return order if chosen is None else chosen[order]

    def batch_sizes(self, count: int) -> Array:
        batch_size = self.options.batch_size
        whole, rest = divmod(count, batch_size)
        if self.options.drop_last:
            if whole == 0:
                raise ValueError(
                    f"drop_last leaves nothing to train on: there are {count} rows, batch_size {batch_size}"
                )
            rest = 0
        sizes = np.full(whole + (rest > 0), float(batch_size))
        if rest:
            sizes[-1] = rest
        return sizes

    def evaluate(
        self, rows: Rows, chosen: Array | None, on_progress: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        options = self.options
        if rows.have_classes and rows.counted is not None:
            chosen = np.flatnonzero(rows.counted) if chosen is None else chosen[rows.counted[chosen]]
        count = rows.count if chosen is None else len(chosen)
        if count == 0:
            return {"loss": float("nan"), "accuracy": float("nan")}
        self.load()
        total, divisor, hits = self._engine.evaluate(
            rows.x,
            rows.y,
            rows.sample_weight,
            rows.class_weight,
            options.input_scale,
            options.input_shift,
            chosen,
            on_progress,
        )
        result = {"loss": total / divisor if divisor else float("nan")}
        if rows.have_classes:
            result["accuracy"] = hits / count
        return result

    def _kept_states(self) -> list[tuple[int, str]]:
        names = self.options.optimizer.states
        return [(index, name) for index, name in enumerate(names) if self._engine.keeps_state(index)]

    def _empty_state(self) -> Arrays:
        w1, b1, w2, b2 = (None if a is None else self._place.empty_like(a) for a in self.parameters.trained())
        return w1, b1, w2, b2

    def state(self) -> dict[str, dict[str, Array]]:
        """Return the optimiser's state: by torch.optim's names, the arrays by parameter."""
        state: dict[str, dict[str, Array]] = {}
        for index, name in self._kept_states():
            values = self._empty_state()
            self._engine.store_state(index, values)
            state[name] = {p: array for p, array in zip(PARAMETER_NAMES, values, strict=True) if array is not None}
        return state

    def load_state(self, state: dict[str, dict[str, Any]], steps: int) -> None:
        kept = self._kept_states()
        names = [name for _, name in kept]
        if not isinstance(state, dict) or sorted(state) != sorted(names):
            given = f"holds {sorted(state) or 'nothing'}" if isinstance(state, dict) else f"is a {type(state).__name__}"
            raise ValueError(f"state must hold {names or 'nothing'}; it {given}")
        arrays = [self._checked_state(name, state[name]) for name in names]
        for (index, _), values in zip(kept, arrays, strict=True):
            self._engine.load_state(index, values)
        self._engine.steps = steps

    def _checked_state(self, name: str, values: dict[str, Any]) -> Arrays:
        if not isinstance(values, dict):
            raise TypeError(f"state's {name} must be a dictionary of arrays by parameter; got {type(values).__name__}")
        checked: list[Array | None] = []
        for parameter, like in zip(PARAMETER_NAMES, self.parameters.trained(), strict=True):
            wanted = None if like is None else tuple(like.shape)
            array = values.get(parameter)
            array = array if array is None or is_tensor(array) else np.asarray(array)
            given = None if array is None else tuple(array.shape)
            if given != wanted:
                raise ValueError(f"state's {name} of {parameter} must have shape {wanted}; got {given}")
            if array is not None:
                check_numbers(f"state's {name} of {parameter}", array, "fiu")
            checked.append(None if array is None else self._place.brought(array, self.parameters.dtype))
        w1, b1, w2, b2 = checked
        return w1, b1, w2, b2
