"""Training in NumPy, by the reference's formulas."""

from __future__ import annotations

from typing import Any

from numpy.typing import DTypeLike

from ..reference import numpy as numpy_reference
from .problem import Prepare, Problem, Train, Weights, run_epochs, run_of


def numpy_program(dtype: DTypeLike) -> Prepare:
    """The NumPy reference's loss, gradients and update rule, in ``dtype``."""

    def prepare(problem: Problem, start: Weights) -> Train:
        params: dict[str, Any] = {"b1": None, "b2": None}
        params.update((name, array.astype(dtype)) for name, array in start.arrays().items())
        state: dict[str, dict[str, Any]] = {name: {} for name in params}
        options = {"momentum": problem.momentum} if problem.momentum else {}
        update = numpy_reference.OPTIMIZERS[problem.optimizer].update

        def epoch() -> float:
            for rows in problem.batch_rows():
                loss, gradients = numpy_reference.loss_and_gradients(
                    params,
                    problem.x[rows].astype(dtype, copy=False),
                    problem.y[rows],
                    activation=problem.activation,
                    loss=problem.loss,
                    loss_options={},
                )
                for name, gradient in gradients.items():
                    update(params[name], gradient, state[name], lr=problem.lr, **options)
            return loss

        return lambda on_epoch: run_of(run_epochs(problem, epoch, on_epoch), params)

    return prepare
