"""One call of ``fit`` or ``partial_fit``: epochs by scikit-learn's rules for order, rate and stopping."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from ..training.results import NonFiniteLossError
from .fitted import FittedNet
from .settings import Settings
from .tasks import Task

Array = NDArray[Any]

AUTO_BATCH_SIZE = 200
CONVERTED_FROM = 20  # epochs from which on it pays to convert x once, and not batch by batch
SMALLEST_RATE = 1e-6  # below which learning_rate="adaptive" gives up
NOT_FINITE = (
    "Training produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed, or learning_rate_init is too large."
)


class Fitting:
    """Trains ``net`` on x (rows, in), dense or CSR, and y as the task has it, and tells the estimator what it sees.

    Random numbers are drawn from ``random`` as MLPClassifier draws them, so that the batches are the same.
    """

    def __init__(
        self,
        estimator: Any,
        settings: Settings,
        task: Task,
        net: FittedNet,
        x: Any,
        y: Array,
        sample_weight: Array | None,
        random: np.random.RandomState,
        epochs: int,
    ) -> None:
        self.estimator, self.settings, self.task, self.net, self.epochs = estimator, settings, task, net, epochs
        self.x, self.y, self.sample_weight, self.random = x, y, sample_weight, random
        self.rows = np.arange(len(y)) if sample_weight is None else np.flatnonzero(sample_weight)
        if len(self.rows) == 0:
            raise ValueError("sample_weight must be above 0 somewhere; it is 0 everywhere")
        self.held_out = self._hold_out() if settings.early_stopping else None
        self.session = self._session()
        if epochs >= CONVERTED_FROM and isinstance(x, np.ndarray) and x.dtype == np.float64:
            x = x.astype(net.net.w1.dtype, copy=False)
        self.data = self.session.prepare(x, y, sample_weight)

    def _session(self) -> Any:
        s, factor = self.settings, self.task.gradient_factor
        options: dict[str, Any] = {"loss": self.task.loss, "optimizer": s.solver}
        if s.solver == "sgd":
            options |= {"momentum": s.momentum, "nesterov": s.nesterovs_momentum and s.momentum > 0}
        else:  # whose steps do not grow with the gradient
            options["eps"] = s.epsilon / factor
        if s.solver in ("adam", "adamw"):
            options |= {"betas": s.betas, "eps_hat": True}
        return self.net.session(
            **options,
            weight_decay=s.weight_decay,
            l2=s.alpha / factor,
            penalty_per_row=True,
            precision="bfloat16" if s.precision == "bfloat16" else None,
            threads=s.threads,
        )

    def _hold_out(self) -> tuple[Any, Array, Array | None]:
        """Take rows for validation: (x, y, sample_weight)."""
        two_classes = self.task.loss == "bce_with_logits" and self.y.shape[1] == 1
        self.rows, chosen = train_test_split(
            self.rows,
            random_state=self.random,
            test_size=self.settings.validation_fraction,
            stratify=self.y[self.rows] if two_classes else None,
        )
        if len(chosen) < 2:
            raise ValueError(
                f"validation_fraction must hold out at least 2 rows; {self.settings.validation_fraction} of "
                f"{len(chosen) + len(self.rows)} rows holds out {len(chosen)}"
            )
        x = self.x[chosen]
        if isinstance(x, np.ndarray):
            x = np.ascontiguousarray(x, self.net.net.w1.dtype)
        return x, self.y[chosen], None if self.sample_weight is None else self.sample_weight[chosen]

    def _batch_size(self) -> int:
        rows, asked = len(self.rows), self.settings.batch_size
        if asked is not None and asked > rows:
            warnings.warn(f"batch_size is {asked}; it is cut to the {rows} rows that there are", stacklevel=5)
        return min(AUTO_BATCH_SIZE if asked is None else asked, rows)

    def run(self, *, warn: bool) -> None:
        """Train at most ``epochs``; ``warn`` when all of them were needed."""
        e, s = self.estimator, self.settings
        batch_size = self._batch_size()
        sizes = np.diff([*range(0, len(self.rows), batch_size), len(self.rows)]).astype(np.float64)
        order = self.rows
        e.n_iter_ = 0
        best = None
        try:
            with self.session.stored():
                for _ in range(self.epochs):
                    if s.shuffle:
                        drawn = np.arange(len(order))
                        self.random.shuffle(drawn)
                        order = order[drawn]
                    losses = self._epoch(order, batch_size, len(sizes))
                    e.n_iter_ += 1
                    e.t_ += len(self.rows)
                    e.loss_ = self.task.loss_factor * float(losses @ sizes) / len(self.rows)
                    e.loss_curve_.append(e.loss_)
                    if s.verbose:
                        print(f"Iteration {e.n_iter_}, loss = {e.loss_:.8f}")
                    best = self._judge() or best
                    if s.solver == "sgd" and s.learning_rate == "invscaling":
                        self.net.change_learning_rate(s.learning_rate_init / (e.t_ + 1) ** s.power_t)
                    if e._no_improvement_count > s.n_iter_no_change:
                        if self._is_over():
                            break
                        e._no_improvement_count = 0
                else:
                    if warn:
                        warnings.warn(
                            f"Maximum iterations ({self.epochs}) reached and the optimization hasn't converged yet.",
                            ConvergenceWarning,
                            stacklevel=5,
                        )
        except NonFiniteLossError as error:
            raise ValueError(NOT_FINITE) from error
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=5)
        if best is not None:
            for array, kept in zip(self.net.net.parameters().values(), best, strict=True):
                array[...] = kept
        if not all(np.isfinite(array).all() for array in self.net.net.parameters().values()):
            raise ValueError(NOT_FINITE)

    def _epoch(self, order: Array, batch_size: int, steps: int) -> Array:
        """Return the losses of an epoch's batches."""
        s = self.settings
        if self.net.learning_rate is None:
            self.net.learning_rate = s.learning_rate_init
        rate = self.net.learning_rate * (self.task.gradient_factor if s.solver == "sgd" else 1.0)
        return self.session.run(self.data, order, batch_size, 0, np.full(steps, rate), None)

    def _judge(self) -> list[Array] | None:
        """Count the epochs without improvement; return the weights if the validation score is the best so far."""
        e, tol = self.estimator, self.settings.tol
        if self.held_out is None:
            stays = e.loss_curve_[-1] > e.best_loss_ - tol
            e.best_loss_ = min(e.loss_curve_[-1], e.best_loss_)
        else:
            x, y, weight = self.held_out
            self.session.store()
            score = self.task.score(self.net.outputs(x), y, weight)
            e.validation_scores_.append(score)
            if self.settings.verbose:
                print(f"Validation score: {score:f}")
            stays = score < e.best_validation_score_ + tol
        e._no_improvement_count = e._no_improvement_count + 1 if stays else 0
        if self.held_out is None or not score > e.best_validation_score_:
            return None
        e.best_validation_score_ = score
        return [array.copy() for array in self.net.net.parameters().values()]

    def _is_over(self) -> bool:
        """Whether no improvement ends training, or only makes the learning rate smaller."""
        s, rate = self.settings, self.net.learning_rate
        assert rate is not None
        what = "Training loss" if self.held_out is None else "Validation score"
        message = f"{what} did not improve more than tol={s.tol:f} for {s.n_iter_no_change} consecutive epochs."
        adapts = s.solver == "sgd" and s.learning_rate == "adaptive"
        over = not adapts or rate <= SMALLEST_RATE
        if not over:
            self.net.change_learning_rate(rate / 5)
        if s.verbose:
            stopping = "Learning rate too small. Stopping." if adapts else "Stopping."
            print(message, stopping if over else f"Setting learning rate to {rate / 5:f}")
        return over
