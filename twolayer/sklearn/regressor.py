"""The regressor."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import column_or_1d

from .estimator import TwoLayerEstimator
from .settings import one_of
from .tasks import REGRESSION_LOSSES, Targets, regression

Array = NDArray[Any]


class TwoLayerRegressor(RegressorMixin, TwoLayerEstimator):
    """A net of one hidden layer for regression: MLPRegressor's parameters and attributes, natively trained.

    Parameters and attributes are those of :class:`twolayer.sklearn.TwoLayerClassifier`, but for class_weight and
    ``classes_``, and

        loss: "squared_error", "absolute_error" or "huber" (which is linear from a difference of 1 on). As in
            MLPRegressor, squares are halved, ``loss_curve_`` is a mean over outputs, and gradients are summed over
            them.

    The validation score is R². Targets are not scaled: bring them near 1, as with TransformedTargetRegressor.
    """

    def __init__(
        self,
        hidden_layer_size: int = 100,
        activation: str = "relu",
        *,
        loss: str = "squared_error",
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 1e-3,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        n_iter_no_change: float = 10,
        precision: str = "auto",
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            hidden_layer_size=hidden_layer_size,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            n_iter_no_change=n_iter_no_change,
            precision=precision,
            n_jobs=n_jobs,
        )
        self.loss = loss

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TwoLayerRegressor:
        """Train on X (rows, features), dense or CSR, and y (rows,) or (rows, outputs); return self."""
        return self._fit(X, y, sample_weight, incremental=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> TwoLayerRegressor:
        """Train one epoch more on X and y, with the optimiser as the call before left it; return self."""
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Array:
        """Return the values for X: (rows,), or (rows, outputs) where there are several."""
        z = self._outputs(X)
        return z[:, 0] if z.shape[1] == 1 else z

    def _check_targets(self, y: Array, begins: bool, incremental: bool, classes: Any) -> Targets:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        values = y.reshape(len(y), -1)
        loss = one_of("loss", self.loss, REGRESSION_LOSSES)
        return Targets(regression(loss, values.shape[1]), values)
