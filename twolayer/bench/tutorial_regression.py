"""The tutorial's regression programs in the problem's dtype."""

from __future__ import annotations

from ..programs.problem import Problem, Train, Weights
from ..programs.tutorial_loops import regression_program
from ..reference import tutorial


def autograd_program(problem: Problem, start: Weights) -> Train:
    """torch tensors and autograd, updated by hand."""
    return regression_program(tutorial.regression_autograd, problem.dtype)(problem, start)


def numpy_program(problem: Problem, start: Weights) -> Train:
    """NumPy, gradients by hand."""
    return regression_program(tutorial.regression_numpy, problem.dtype)(problem, start)
