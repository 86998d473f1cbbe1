"""What every implementation's results are held to before it is timed: the reference, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ..programs.numpy_loop import numpy_program
from ..programs.problem import Array, Problem, TimedRun, Weights, output_gradient
from ..reference import numpy as reference
from ..reference.run import Run


class WrongResult(Exception):
    """An implementation's result is not the reference's; the message says which, and by how much."""


# The largest norm of the difference over the norm, by the precision of products. Weights are rounded at each step, so
# that a small change of large weights is allowed ``rounding`` beside it.
BOUNDS = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1}
SHORT_STEPS = 4  # at most, of the runs that are verified


def results_of_training(run: Run | TimedRun, start: Weights) -> dict[str, Array]:
    """The losses of a short run, and what it has changed."""
    run = run.run if isinstance(run, TimedRun) else run
    trained = {name: getattr(run, name) for name in start.arrays()}
    changes = {f"change of {name}": trained[name] - array for name, array in start.arrays().items()}
    return {"losses": np.asarray(run.losses), **changes}


def truth(problem: Problem, start: Weights) -> dict[str, Array]:
    """What the problem's task gives in float64; for ``fit`` of the run that ``Problem.warm_up`` cuts it to."""
    exact = {name: array.astype(np.float64) for name, array in start.arrays().items()}
    w1, b1, w2, b2 = (exact.get(name) for name in ("w1", "b1", "w2", "b2"))
    if problem.task in ("fit", "step"):
        short = problem.warm_up() if problem.task == "fit" else dataclasses.replace(problem, epochs=1)
        found = results_of_training(numpy_program(np.float64)(short, start)(None), start)
        if problem.task == "step":
            del found["losses"]
        return found
    assert w1 is not None and w2 is not None
    x = problem.x.astype(np.float64)
    y, z1, _ = reference.forward(x, w1, b1, w2, b2, problem.activation)
    if problem.task != "backward":
        return {"y": y}
    grad_y = output_gradient(problem).astype(np.float64)
    gradients = reference.backward(grad_y, x, w1, w2, z1, problem.activation, input_gradient=False)
    return {name: gradients[name] for name in exact}


def rounding(problem: Problem, start: Weights) -> dict[str, float]:
    """By result, the norm of what the rounding of the weights after each step may add up to."""
    eps = float(np.finfo(problem.dtype).eps)
    return {f"change of {name}": SHORT_STEPS * eps * _norm(array) for name, array in start.arrays().items()}


def check(results: Mapping[str, Array], exact: Mapping[str, Array], precision: str, slack: Mapping[str, float]) -> None:
    """Raise ``WrongResult`` unless every array of ``exact`` is among ``results``, within ``BOUNDS`` and ``slack``."""
    for name, expected in exact.items():
        if name not in results:
            raise WrongResult(f"{name} is missing")
        found = np.asarray(results[name], np.float64)
        if found.shape != expected.shape:
            raise WrongResult(f"{name} is of shape {found.shape}, not {expected.shape}")
        error, size = _norm(found - expected), _norm(expected)
        bound = BOUNDS[precision] * size + slack.get(name, 0.0)
        if not error <= bound:  # NaN is wrong too
            raise WrongResult(f"{name}, of norm {size:.2e}, is off by {error:.1e}, more than {bound:.1e}")


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))
