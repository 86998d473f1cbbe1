"""What the two estimators share: parameters, the way from data to the engine, attributes, pickling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .fitted import FittedNet, read_only
from .fitting import Fitting
from .settings import Settings, check_n_jobs, check_settings
from .tasks import Targets, Task

Array = NDArray[Any]

READ_AS_THEY_ARE = (np.float64, np.float32, np.uint8)  # other numbers become the first


class TwoLayerEstimator(BaseEstimator):
    """A net of one hidden layer with the parameters and attributes of scikit-learn's MLPs; use a subclass."""

    coefs_: list[Array]
    intercepts_: list[Array]
    n_features_in_: int
    n_outputs_: int
    out_activation_: str
    n_iter_: int
    t_: int
    loss_: float
    loss_curve_: list[float]
    best_loss_: float | None
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    _fitted_net: FittedNet
    _no_improvement_count: int

    def __init__(
        self,
        hidden_layer_size: Any,
        activation: Any,
        solver: Any,
        alpha: Any,
        batch_size: Any,
        learning_rate: Any,
        learning_rate_init: Any,
        power_t: Any,
        max_iter: Any,
        shuffle: Any,
        random_state: Any,
        tol: Any,
        verbose: Any,
        warm_start: Any,
        momentum: Any,
        nesterovs_momentum: Any,
        early_stopping: Any,
        validation_fraction: Any,
        beta_1: Any,
        beta_2: Any,
        epsilon: Any,
        weight_decay: Any,
        n_iter_no_change: Any,
        precision: Any,
        n_jobs: Any,
    ) -> None:
        self.hidden_layer_size = hidden_layer_size
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.n_iter_no_change = n_iter_no_change
        self.precision = precision
        self.n_jobs = n_jobs

    # What a subclass says

    def _check_targets(self, y: Any, begins: bool, incremental: bool, classes: Any) -> Targets:
        """Check y; ``begins`` unless an earlier fit goes on, ``classes`` are those that partial_fit is given."""
        raise NotImplementedError

    # Fitting

    def _fit(self, x: Any, y: Any, sample_weight: Any, *, incremental: bool, classes: Any = None) -> Any:
        settings = check_settings(self)
        if incremental and settings.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        begins = not hasattr(self, "coefs_") or not (settings.warm_start or incremental)
        x, y = validate_data(
            self,
            x,
            y,
            accept_sparse="csr",
            multi_output=True,
            y_numeric=self.__sklearn_tags__().estimator_type == "regressor",
            dtype=READ_AS_THEY_ARE,
            reset=begins,
        )
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, x)
        task, values, row_weight = self._check_targets(y, begins, incremental, classes)
        if row_weight is not None:
            sample_weight = row_weight if sample_weight is None else sample_weight * row_weight
        random = check_random_state(self.random_state)
        dtype = self._dtype(settings, x, begins)
        if begins:
            self._begin(settings, task, dtype, random)
        net = self._fitted_net
        if not incremental:
            net.forget_optimizer()
        self._check_sizes(settings, task.outputs)
        net.take(self.coefs_, self.intercepts_, dtype)
        self.coefs_, self.intercepts_ = net.coefs(), net.intercepts()
        epochs = 1 if incremental else settings.max_iter
        fitting = Fitting(self, settings, task, net, canonical(x), values, sample_weight, random, epochs)
        fitting.run(warn=not incremental)
        return self

    def _dtype(self, settings: Settings, x: Any, begins: bool) -> np.dtype[Any]:
        """That of the weights."""
        if settings.precision == "auto":
            return np.dtype("float64" if x.dtype == np.float64 else "float32") if begins else self.coefs_[0].dtype
        return np.dtype("float64" if settings.precision == "float64" else "float32")

    def _begin(self, settings: Settings, task: Task, dtype: np.dtype[Any], random: np.random.RandomState) -> None:
        """Set all attributes for a first fit; weights are drawn as MLPClassifier draws them (Glorot and Bengio)."""
        self.n_layers_, self.n_outputs_, self.out_activation_ = 3, task.outputs, task.out_activation
        self.n_iter_ = self.t_ = self._no_improvement_count = 0
        self.loss_curve_ = []
        stopping = settings.early_stopping
        self.validation_scores_, self.best_validation_score_ = ([], -np.inf) if stopping else (None, None)
        self.best_loss_ = None if stopping else np.inf
        self.coefs_, self.intercepts_ = [], []
        layers = (self.n_features_in_, settings.hidden, task.outputs)
        for fan_in, fan_out in ((layers[0], layers[1]), (layers[1], layers[2])):
            bound = np.sqrt((2.0 if settings.activation == "sigmoid" else 6.0) / (fan_in + fan_out))
            self.coefs_.append(random.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype))
            self.intercepts_.append(random.uniform(-bound, bound, fan_out).astype(dtype))
        self._fitted_net = FittedNet(settings.activation)

    def _check_sizes(self, settings: Settings, outputs: int) -> None:
        """Raise ``ValueError`` where a fit cannot go on with the weights that there are."""
        hidden = self.coefs_[0].shape[1]
        if hidden != settings.hidden or settings.activation != self._fitted_net.net.activation:
            raise ValueError(
                f"hidden_layer_size and activation must stay what they were, {hidden} and "
                f"{self._fitted_net.net.activation!r}, for a fit to go on; got {settings.hidden} and "
                f"{settings.activation!r}"
            )
        if outputs != self.n_outputs_:
            raise ValueError(f"y must have as many outputs as in earlier calls, {self.n_outputs_}; it has {outputs}")

    # Predicting

    def _outputs(self, x: Any) -> Array:
        """The net's outputs (rows, out), before out_activation_."""
        check_is_fitted(self)
        x = validate_data(self, x, accept_sparse="csr", dtype=READ_AS_THEY_ARE, reset=False)
        return self._fitted_net.predict(x, self.coefs_, self.intercepts_, check_n_jobs(self.n_jobs))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for array in (*vars(self).get("coefs_", ()), *vars(self).get("intercepts_", ())):
            read_only(array)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def canonical(x: Any) -> Any:
    """Return a CSR matrix with no entry twice, as the engine's products want it; anything else as it is."""
    if isinstance(x, np.ndarray) or x.has_canonical_format:
        return x
    x = x.copy()
    x.sum_duplicates()
    return x
