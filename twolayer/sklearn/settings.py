"""The estimators' parameters, checked when ``fit`` is called, as scikit-learn wants it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from .. import _native
from ..registry import ACTIVATIONS, OPTIMIZERS, lookup
from ..training.checks import boolean, integer, number

PRECISIONS = ("auto", "float32", "float64", "bfloat16")
LEARNING_RATES = ("constant", "invscaling", "adaptive")


class Settings(NamedTuple):
    """As documented at the estimators."""

    hidden: int
    activation: str  # the registry's name
    solver: str
    alpha: float
    batch_size: int | None  # None: at most 200
    learning_rate: str
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    tol: float
    verbose: bool
    warm_start: bool
    momentum: float
    nesterovs_momentum: bool
    early_stopping: bool
    validation_fraction: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    n_iter_no_change: float
    precision: str
    threads: int


def check_settings(estimator: Any) -> Settings:
    """Return the parameters; raise ``TypeError`` or ``ValueError`` that names the one that is wrong."""
    e = estimator
    activation = "sigmoid" if e.activation == "logistic" else e.activation
    solver = lookup(OPTIMIZERS, e.solver, "solver").name
    weight_decay = number("weight_decay", e.weight_decay, 0.0)
    if weight_decay and solver != "adamw":
        raise ValueError(f"weight_decay goes with solver 'adamw'; the solver is {solver!r}")
    return Settings(
        hidden=integer("hidden_layer_size", e.hidden_layer_size, minimum=1),
        activation=lookup(ACTIVATIONS, activation, "activation").name,
        solver=solver,
        alpha=number("alpha", e.alpha, 0.0),
        batch_size=_batch_size(e.batch_size),
        learning_rate=one_of("learning_rate", e.learning_rate, LEARNING_RATES),
        learning_rate_init=_above_0("learning_rate_init", e.learning_rate_init),
        power_t=number("power_t", e.power_t, 0.0),
        max_iter=integer("max_iter", e.max_iter, minimum=1),
        shuffle=_boolean("shuffle", e.shuffle),
        tol=number("tol", e.tol, 0.0),
        verbose=bool(e.verbose),
        warm_start=_boolean("warm_start", e.warm_start),
        momentum=number("momentum", e.momentum, 0.0, 1.0),
        nesterovs_momentum=_boolean("nesterovs_momentum", e.nesterovs_momentum),
        early_stopping=_boolean("early_stopping", e.early_stopping),
        validation_fraction=_below_1("validation_fraction", e.validation_fraction),
        betas=(_below_1("beta_1", e.beta_1), _below_1("beta_2", e.beta_2)),
        epsilon=_above_0("epsilon", e.epsilon),
        weight_decay=weight_decay,
        n_iter_no_change=_patience(e.n_iter_no_change),
        precision=one_of("precision", e.precision, PRECISIONS),
        threads=check_n_jobs(e.n_jobs),
    )


def check_n_jobs(n_jobs: object) -> int:
    """Return how many threads ``n_jobs`` allows.

    None: all, but no more than OMP_NUM_THREADS, by which joblib keeps its workers from taking each other's cores.
    """
    if n_jobs is None:
        limit = os.environ.get("OMP_NUM_THREADS", "")
        threads = _native.num_threads()
        return min(threads, int(limit)) if limit.isascii() and limit.isdigit() and int(limit) > 0 else threads
    if n_jobs == -1:
        return _native.num_threads()
    if isinstance(n_jobs, bool) or not hasattr(n_jobs, "__index__") or n_jobs.__index__() < 1:
        raise ValueError(f"n_jobs must be None, -1 for all cores, or at least 1; got {n_jobs!r}")
    return integer("n_jobs", n_jobs, minimum=1, bits=31)


def _batch_size(value: object) -> int | None:
    if isinstance(value, str):
        one_of("batch_size", value, ("auto",))
        return None
    return integer("batch_size", value, minimum=1)


def _patience(value: object) -> float:
    return math.inf if value == math.inf else integer("n_iter_no_change", value, minimum=1)


def _boolean(name: str, value: object) -> bool:
    return bool(value) if isinstance(value, np.bool_) else boolean(name, value)


def one_of(name: str, value: object, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")
    return value


def _above_0(name: str, value: object) -> float:
    if number(name, value, 0.0) == 0.0:
        raise ValueError(f"{name} must be above 0; got {value}")
    return float(value)  # type: ignore[arg-type]


def _below_1(name: str, value: object) -> float:
    if number(name, value, 0.0, 1.0) == 1.0:
        raise ValueError(f"{name} must be below 1; got {value}")
    return float(value)  # type: ignore[arg-type]
