"""Training several nets on the same data by ``twolayer``: one after the other, and all at once."""

from __future__ import annotations

import numpy as np

from .. import fit, fit_many
from ..reference.run import OnEpoch, Run
from .native import fit_options, require_native
from .problem import Array, Prepare, Problem, Train, Weights
from .torch_loops import net_of, run_of_net, tensors_of

NETS = 8


def several_program(together: bool) -> Prepare:
    """Eight nets from the same weights by ``fit_many``, or by as many calls of ``fit``; a step is one of each net."""

    def prepare(problem: Problem, start: Weights) -> Train:
        require_native()
        nets = [net_of(problem, start) for _ in range(NETS)]
        x, y = tensors_of(problem)
        options = fit_options(problem)

        def train(on_epoch: OnEpoch | None) -> Run:
            histories = fit_many(nets, x, y, **options) if together else [fit(net, x, y, **options) for net in nets]
            runs = [run_of_net(history.last_batch_loss, net) for history, net in zip(histories, nets, strict=True)]
            for run in runs[1:]:
                if not _same(run, runs[0]):
                    raise ArithmeticError("equal nets were trained to different weights")
            return runs[0]

        return train

    return prepare


def _same(one: Run, other: Run) -> bool:
    pairs: list[tuple[Array, Array]] = [(one.w1, other.w1), (one.w2, other.w2)]
    return one.losses == other.losses and all(np.array_equal(a, b) for a, b in pairs)
