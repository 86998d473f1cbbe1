"""Training by scikit-learn's ``MLPClassifier``."""

from __future__ import annotations

import numpy as np

from ..reference.run import OnEpoch, Run
from .problem import Problem, Train, Weights, run_epochs

SKLEARN_ACTIVATIONS = {"identity": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}


def sklearn_program(problem: Problem, start: Weights) -> Train:
    """MLPClassifier, made to start from ``start`` and to report the loss of an epoch's last batch."""
    import sklearn
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        hidden_layer_sizes=(problem.layers[1],),
        activation=SKLEARN_ACTIVATIONS[problem.activation],
        solver="sgd",
        alpha=0.0,
        batch_size=problem.batch_size,
        learning_rate="constant",
        learning_rate_init=problem.lr,
        momentum=0.0,
        nesterovs_momentum=False,
        shuffle=False,
    )
    rows, last = problem.batches * problem.batch_size, problem.batch_size
    x, y = problem.x[:rows], problem.y[:rows]
    classifier.partial_fit(x[:last], y[:last], classes=np.arange(problem.layers[2]))  # makes the arrays to be set
    coefs, intercepts = classifier.coefs_, classifier.intercepts_
    coefs[0][...], intercepts[0][...] = start.w1.T, start.b1
    coefs[1][...], intercepts[1][...] = start.w2.T, start.b2

    def epoch() -> float:
        if rows > last:
            classifier.partial_fit(x[:-last], y[:-last])
        classifier.partial_fit(x[-last:], y[-last:])
        return float(classifier.loss_)  # of the one batch it was just given

    def train(on_epoch: OnEpoch | None) -> Run:
        with sklearn.config_context(assume_finite=True):  # no scan of the data for NaN at every call
            losses = run_epochs(problem, epoch, on_epoch)
        return Run(losses, coefs[0].T, intercepts[0], coefs[1].T, intercepts[1])

    return train
