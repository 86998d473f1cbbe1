"""The classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from ..reference.activations import sigmoid
from .estimator import TwoLayerEstimator
from .tasks import Targets, multiclass, multilabel

Array = NDArray[Any]


class TwoLayerClassifier(ClassifierMixin, TwoLayerEstimator):
    """A net of one hidden layer that classifies: MLPClassifier's parameters and attributes, natively trained.

    At equal parameters and random_state it starts from MLPClassifier's weights and takes its batches: in float64 the
    losses and weights are the same within rounding.

    Parameters:
        hidden_layer_size: units of the hidden layer.
        activation: a name in :data:`twolayer.registry.ACTIVATIONS`, or "logistic" for "sigmoid".
        solver: a name in :data:`twolayer.registry.OPTIMIZERS`.
        alpha: the penalty alpha/2 Σ W², divided by the rows of each batch (by the sum of their sample weights).
        batch_size: rows per step; "auto" is min(200, rows).
        learning_rate: of solver "sgd": "constant"; "invscaling", learning_rate_init / (rows seen + 1)^power_t from the
            second epoch on; "adaptive", divided by 5 instead of stopping, until it is at most 1e-6.
        learning_rate_init, power_t: see learning_rate.
        max_iter: epochs at most; a ConvergenceWarning when all were needed.
        shuffle: whether each epoch takes the rows in a new order.
        random_state: of weights, validation rows and orders. With an int every fit gives the same bits, at any n_jobs.
        tol, n_iter_no_change: training ends when the loss, or with early_stopping the validation score, was not better
            by tol for more than n_iter_no_change epochs on end.
        verbose: print the loss of each epoch.
        warm_start: fit goes on from the weights that there are.
        momentum, nesterovs_momentum: of solver "sgd".
        early_stopping, validation_fraction: hold out that fraction of the rows (stratified for two classes),
            watch the score on them, and end with the weights that had the best.
        beta_1, beta_2: of "adam" and "adamw". epsilon: of all but "sgd"; of these two, before the bias correction.
        weight_decay: of "adamw".
        class_weight: None, "balanced", or weights by class; for labels, a list of those.
        precision: "auto": float64 where X is, else float32; "float32", about twice as fast; "float64"; or "bfloat16",
            products of rounded factors with float32 weights.
        n_jobs: threads to use at most; None: all cores, or OMP_NUM_THREADS if that is less; -1: all cores.

    Attributes:
        classes_: (classes,), or the numbers of the labels.
        coefs_, intercepts_: of each layer (in, out) and (out,). Read-only views: assign new arrays to change them.
        loss_, loss_curve_, best_loss_: mean loss with the penalty, of the last epoch, of all, and the least of them.
        validation_scores_, best_validation_score_: with early_stopping; ``best_loss_`` is then None.
        n_iter_, t_: epochs of the last fit, rows seen.
        n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_: as MLPClassifier has them.
    """

    classes_: Array
    _multilabel: bool

    def __init__(
        self,
        hidden_layer_size: int = 100,
        activation: str = "relu",
        *,
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
        class_weight: Any = None,
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
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TwoLayerClassifier:
        """Train on X (rows, features), dense or CSR, and y: classes (rows,), or labels (rows, labels) of 0 and 1."""
        return self._fit(X, y, sample_weight, incremental=False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> TwoLayerClassifier:
        """Train one epoch more on X and y, with the optimiser as the call before left it; return self.

        The first call needs all ``classes`` that will come, unless y holds several labels.
        """
        return self._fit(X, y, sample_weight, incremental=True, classes=classes)

    def predict(self, X: Any) -> Array:
        """Return the class of each row of X (rows,), or its labels (rows, labels)."""
        z = self._outputs(X)
        if self._multilabel:
            return (z > 0).astype(np.int64)
        return self.classes_[z.argmax(axis=1) if z.shape[1] == len(self.classes_) else (z[:, 0] > 0).astype(np.intp)]

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, or of the labels, (rows, classes), in the order of ``classes_``."""
        z = self._outputs(X)
        if self.out_activation_ == "softmax":
            return np.exp(_log_softmax(z))
        return sigmoid(z) if self._multilabel else np.hstack([sigmoid(-z), sigmoid(z)])

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of ``predict_proba``, finite also where a probability is rounded to 0."""
        z = self._outputs(X)
        if self.out_activation_ == "softmax":
            return _log_softmax(z)
        return _log_sigmoid(z) if self._multilabel else np.hstack([_log_sigmoid(-z), _log_sigmoid(z)])

    def _check_targets(self, y: Any, begins: bool, incremental: bool, classes: Any) -> Targets:
        if incremental and self.class_weight == "balanced":
            raise ValueError("class_weight 'balanced' needs all of y, which partial_fit never sees; give weights")
        if hasattr(y, "toarray"):
            y = y.toarray()
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if y.ndim == 1:
            return self._check_classes(y, begins, incremental, classes)
        if type_of_target(y) != "multilabel-indicator":
            raise ValueError("y must hold one class for each row, or a column of 0 and 1 for each label")
        if begins:
            self.classes_, self._multilabel = np.arange(y.shape[1]), True
        self._refuse_other_kind(is_multilabel=True)
        weight = None if self.class_weight is None else compute_sample_weight(self.class_weight, y)
        return Targets(multilabel(y.shape[1]), y, weight)

    def _check_classes(self, y: Array, begins: bool, incremental: bool, classes: Any) -> Targets:
        present = np.unique(y)
        known = present if begins else self.classes_
        if incremental and classes is None and begins:
            raise ValueError("classes must be passed on the first call to partial_fit")
        if incremental and classes is not None:
            known = np.unique(classes)
            if not begins and not np.array_equal(known, self.classes_):
                raise ValueError(f"classes must be those of the first call, {self.classes_}; got {classes}")
        others = np.setdiff1d(present, known, assume_unique=True)
        if len(others) > 0 or not (incremental or len(present) == len(known)):
            raise ValueError(f"y must hold the classes of earlier calls, {known}; it holds {present}")
        if begins:
            self.classes_, self._multilabel = known, False
        self._refuse_other_kind(is_multilabel=False)
        indices = np.searchsorted(known, y)
        weight = None
        if self.class_weight is not None:
            weight = compute_class_weight(self.class_weight, classes=known, y=y)[indices]
        if len(known) == 2:
            return Targets(multilabel(1), (indices == 1)[:, None], weight)
        return Targets(multiclass(len(known)), indices, weight)

    def _refuse_other_kind(self, is_multilabel: bool) -> None:
        if self._multilabel != is_multilabel:
            raise ValueError("y must hold what it held in earlier calls: classes (rows,), or labels (rows, labels)")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _log_sigmoid(z: Array) -> Array:
    return np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z)))
