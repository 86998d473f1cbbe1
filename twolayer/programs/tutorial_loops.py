"""The tutorial's own programs, as ``twolayer.reference.tutorial`` has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from ..reference.run import Run
from .problem import Prepare, Problem, Train, Weights


def regression_program(program: Callable[..., Run], dtype: DTypeLike = np.float32) -> Prepare:
    """A tutorial program of the regression, which holds weights as (in, out)."""

    def prepare(problem: Problem, start: Weights) -> Train:
        arrays = [array.astype(dtype) for array in (problem.x, problem.y, start.w1.T, start.w2.T)]
        options = {"activation": problem.activation, "lr": problem.lr, "steps": problem.epochs}
        return lambda on_epoch: program(*arrays, **options, on_epoch=on_epoch)

    return prepare


def classification_program(program: Callable[..., Run]) -> Prepare:
    """A tutorial program of the classification."""

    def prepare(problem: Problem, start: Weights) -> Train:
        arrays = [problem.x, problem.y, *start.arrays().values()]
        options = {"lr": problem.lr, "epochs": problem.epochs, "batch_size": problem.batch_size}
        return lambda on_epoch: program(*arrays, **options, on_epoch=on_epoch)

    return prepare
