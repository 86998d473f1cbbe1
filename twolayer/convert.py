"""Nets of other libraries and of twolayer's two kinds, turned into each other; weights are copied.

``nn.Sequential`` is not here: :meth:`twolayer.TwoLayerNet.from_sequential` and ``to_sequential`` share the modules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .nn import TwoLayerNet, parameters_of
from .numpy_net import NumpyNet
from .registry import ACTIVATIONS, lookup

Array = NDArray[Any]

_OF_SKLEARN = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
_TO_SKLEARN = {ours: theirs for theirs, ours in _OF_SKLEARN.items()}


def from_sklearn(estimator: Any) -> TwoLayerNet:
    """Return the net of a fitted ``MLPClassifier`` or ``MLPRegressor`` with one hidden layer, in its dtype.

    The net gives what the estimator computes before its output activation ``out_activation_``: predictions for a
    regressor (their logarithms where its loss is ``poisson``); for three and more classes one score each, in the order
    of ``classes_``, whose softmax is ``predict_proba``; for two classes a single score, whose sigmoid is the chance
    of ``classes_[1]``; for several labels a score each, to go through the sigmoid.

    Raises ``TypeError`` when it is no such estimator, ``ValueError`` when it is not fitted or has another number of
    hidden layers or another activation.
    """
    if not hasattr(estimator, "hidden_layer_sizes") and not hasattr(estimator, "coefs_"):
        raise TypeError(f"estimator must be an MLPClassifier or MLPRegressor; got {type(estimator).__name__}")
    if not hasattr(estimator, "coefs_"):
        raise ValueError(f"estimator must be fitted; this {type(estimator).__name__} has no coefs_ yet")
    if len(estimator.coefs_) != 2:
        raise ValueError(f"estimator must have one hidden layer; it has {len(estimator.coefs_) - 1}")
    activation = _OF_SKLEARN.get(estimator.activation, estimator.activation)
    if activation not in ACTIVATIONS:
        raise ValueError(f"estimator's activation must be one of {', '.join(_OF_SKLEARN)}; got {activation!r}")
    (w1, w2), (b1, b2) = estimator.coefs_, estimator.intercepts_
    return _net(w1.T, b1, w2.T, b2, activation)


def to_sklearn(net: Any, classes: Any = None) -> Any:
    """Return a fitted ``MLPRegressor`` of the net or, given its classes, an ``MLPClassifier``; scikit-learn is needed.

    ``net`` is a :class:`twolayer.TwoLayerNet`, the equal ``nn.Sequential`` or a :class:`twolayer.NumpyNet` with the
    activation identity, sigmoid, tanh or relu. ``classes`` are distinct labels in ascending order, as many as the net
    has outputs; two also for one output, the score of the second. The estimator can be trained on by ``partial_fit``,
    its optimiser begins anew.

    Raises ``TypeError`` and ``ValueError`` naming the argument that does not fit.
    """
    try:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
    except ImportError as error:
        raise ImportError(f"to_sklearn needs scikit-learn: pip install 'twolayer[demo]' ({error})") from error
    w1, b1, w2, b2, activation = _arrays(net)
    if activation not in _TO_SKLEARN:
        raise ValueError(f"net's activation must be one of {', '.join(_TO_SKLEARN)}; got {activation!r}")
    options = {"hidden_layer_sizes": (len(w1),), "activation": _TO_SKLEARN[activation]}
    if classes is None:
        estimator = MLPRegressor(**options)
        estimator.partial_fit(np.zeros((1, w1.shape[1]), w1.dtype), np.zeros((1, len(w2)) if len(w2) > 1 else 1))
    else:
        labels = _labels(classes, len(w2))
        if len(labels) == len(w2) == 2:  # the difference of two scores says as much, and is what the estimator holds
            w2, b2 = w2[1:] - w2[:1], b2[1:] - b2[:1]
        estimator = MLPClassifier(**options)
        estimator.partial_fit(np.zeros((len(labels), w1.shape[1]), w1.dtype), labels, classes=labels)
    vars(estimator).pop("_optimizer", None)  # that of the step that made it a fitted one
    estimator.coefs_ = [np.ascontiguousarray(w1.T), np.ascontiguousarray(w2.T)]
    estimator.intercepts_ = [b1.copy(), b2.copy()]
    return estimator


def to_numpy(net: nn.Sequential) -> NumpyNet:
    """Return a :class:`twolayer.NumpyNet` with the weights of a float32 or float64 net, to be used without torch."""
    w1, b1, w2, b2, activation = parameters_of(net)
    if w1.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"net must be float32 or float64 to become a NumpyNet; it is {w1.dtype}")
    (hidden, inputs), outputs = w1.shape, w2.shape[0]
    result = NumpyNet(inputs, hidden, outputs, activation, dtype=str(w1.dtype).removeprefix("torch."))
    result.w1, result.w2 = (tensor.detach().cpu().contiguous().numpy().copy() for tensor in (w1, w2))
    result.b1, result.b2 = (None if b is None else b.detach().cpu().contiguous().numpy().copy() for b in (b1, b2))
    return result


def to_torch(net: NumpyNet) -> TwoLayerNet:
    """Return a :class:`twolayer.TwoLayerNet` with the weights of a :class:`twolayer.NumpyNet`."""
    if not isinstance(net, NumpyNet):
        raise TypeError(f"net must be a NumpyNet; got {type(net).__name__}")
    return _net(net.w1, net.b1, net.w2, net.b2, net.activation)


def _net(w1: Array, b1: Array | None, w2: Array, b2: Array | None, activation: str) -> TwoLayerNet:
    net = TwoLayerNet(1, 1, 1, lookup(ACTIVATIONS, activation, "activation").name, device="meta")
    for layer, w, b in ((net[0], w1, b1), (net[2], w2, b2)):
        layer.out_features, layer.in_features = w.shape
        layer.weight = nn.Parameter(torch.tensor(np.ascontiguousarray(w)))
        layer.bias = None if b is None else nn.Parameter(torch.tensor(b))
    return net


def _arrays(net: Any) -> tuple[Array, Array, Array, Array, str]:
    """Return w1, b1, w2, b2 and the activation's name; zeros for a bias the net does not have."""
    net = net if isinstance(net, NumpyNet) else to_numpy(net)
    b1 = np.zeros(len(net.w1), net.w1.dtype) if net.b1 is None else net.b1
    b2 = np.zeros(len(net.w2), net.w2.dtype) if net.b2 is None else net.b2
    return net.w1, b1, net.w2, b2, net.activation


def _labels(classes: Any, outputs: int) -> Array:
    labels = np.asarray(classes)
    fit = {outputs} if outputs > 1 else {2}
    if labels.ndim != 1 or len(labels) not in fit:
        raise ValueError(
            f"classes must be {' or '.join(map(str, fit))} labels for a net with {outputs} outputs; got shape "
            f"{labels.shape}"
        )
    if not (labels[1:] > labels[:-1]).all():
        raise ValueError(f"classes must be distinct and in ascending order, as classes_ is; got {classes}")
    return labels
