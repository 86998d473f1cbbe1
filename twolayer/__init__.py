"""Two-layer fully connected nets, ``act(x W1ᵀ + b1) W2ᵀ + b2``, trained and served natively.

The public names below are loaded when they are first touched: importing this package, or its NumPy and scikit-learn
parts, does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import sklearn as sklearn
    from ._native import info
    from .data import load_mnist, load_npy
    from .functional import two_layer
    from .many import fit_many
    from .nn import TwoLayerNet, fuse
    from .numpy_net import NumpyNet
    from .trainer import Trainer, fit
    from .training.results import History, NonFiniteLossError, TrainingInterrupted
    from .training.stopping import EarlyStopping

__all__ = [
    "EarlyStopping",
    "History",
    "NonFiniteLossError",
    "NumpyNet",
    "Trainer",
    "TrainingInterrupted",
    "TwoLayerNet",
    "__version__",
    "fit",
    "fit_many",
    "fuse",
    "info",
    "load_mnist",
    "load_npy",
    "two_layer",
]

_HOME = {
    "EarlyStopping": "training.stopping",
    "History": "training.results",
    "NonFiniteLossError": "training.results",
    "NumpyNet": "numpy_net",
    "Trainer": "trainer",
    "TrainingInterrupted": "training.results",
    "TwoLayerNet": "nn",
    "fit": "trainer",
    "fit_many": "many",
    "fuse": "nn",
    "info": "_native",
    "load_mnist": "data",
    "load_npy": "data",
    "two_layer": "functional",
}


def __getattr__(name: str) -> Any:
    if name == "sklearn":
        return importlib.import_module(".sklearn", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("NumpyNet", "TwoLayerNet"):  # so that the first fit does not have to: it would take twice as long
        importlib.import_module(".trainer", __name__)
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # the next access no longer comes here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
