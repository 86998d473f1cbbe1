"""Training by ``twolayer.fit``."""

from __future__ import annotations

from typing import Any

from .. import History, fit, info
from ..reference.run import OnEpoch, Run
from .problem import Prepare, Problem, Train, Weights
from .torch_loops import net_of, run_of_net, tensors_of


def require_native() -> None:
    """Raise where the library is not loaded: the fallback is another program."""
    library = info()["native"]["_core"]
    if not library["loaded"]:
        raise RuntimeError(f"the native library is not loaded: {library['reason']}")


def fit_options(problem: Problem) -> dict[str, Any]:
    return {
        "loss": problem.loss,
        "optimizer": problem.optimizer,
        "lr": problem.lr,
        "momentum": problem.momentum,
        "batch_size": problem.batch_size,
        "epochs": problem.epochs,
        "shuffle": False,
        "drop_last": True,
        "threads": problem.threads,
    }


def native_program(precision: str | None = None) -> Prepare:
    """``twolayer.fit`` in the native library."""

    def prepare(problem: Problem, start: Weights) -> Train:
        require_native()
        net = net_of(problem, start)
        x, y = tensors_of(problem)

        def train(on_epoch: OnEpoch | None) -> Run:
            def report(epoch: int, history: History) -> None:
                if on_epoch:
                    on_epoch(epoch, history.last_batch_loss[-1])

            callback = report if on_epoch else None
            history = fit(net, x, y, **fit_options(problem), precision=precision, callback=callback)
            return run_of_net(history.last_batch_loss, net)

        return train

    return prepare
