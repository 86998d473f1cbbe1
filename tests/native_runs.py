"""The native kernels and engine run on cases, here or in a process of its own for each instruction set.

``python native_runs.py FILE`` runs the whole table on the instruction set in use, every array in guarded memory.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import (
    CASES,
    INPUTS,
    TRAININGS,
    Array,
    Case,
    Problem,
    Trained,
    Training,
    problem,
    training_data,
)
from guarded_memory import GuardedMemory
from torch import Tensor

import twolayer
from twolayer import _core
from twolayer.reference.numpy import permutation
from twolayer.registry import ACTIVATIONS, LOSSES, OPTIMIZERS

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, allocate: Allocate = torch.empty) -> Tensor:
    """A tensor for a kernel to write to, full of NaN: what it leaves out or adds to is noticed."""
    return allocate(shape, dtype=dtype).fill_(torch.nan)


def run_forward(
    given: Problem, activation: str, *, save: bool = True, threads: int = 1, allocate: Allocate = torch.empty
) -> dict[str, Tensor]:
    """``y`` and, with ``save``, ``saved``."""
    rows, dtype = len(given.x), given.x.dtype
    y = poisoned((rows, len(given.w2)), dtype, allocate)
    saved = poisoned((rows, len(given.w1)), dtype, allocate) if save else None
    _core.forward(*given[:5], saved, y, ACTIVATIONS[activation].id, threads)
    return {"y": y} | ({"saved": saved} if save else {})


def run_backward(
    given: Problem,
    saved: Tensor,
    activation: str,
    *,
    wanted: Collection[str] = INPUTS,
    threads: int = 1,
    allocate: Allocate = torch.empty,
) -> dict[str, Tensor]:
    """The gradients wanted: ``grad_x``, ``grad_w1``, …"""
    hidden, out = len(given.w1), len(given.w2)
    shapes = {"x": given.x.shape, "w1": given.w1.shape, "b1": (hidden,), "w2": given.w2.shape, "b2": (out,)}
    gradients = {
        name: poisoned(tuple(shape), given.x.dtype, allocate) if name in wanted else None
        for name, shape in shapes.items()
    }
    _core.backward(
        given.grad_y, given.x, given.w1, given.w2, saved, *gradients.values(), ACTIVATIONS[activation].id, threads
    )
    return {f"grad_{name}": gradient for name, gradient in gradients.items() if gradient is not None}


def run_kernels(case: Case, seed: int = 0, *, threads: int = 1) -> dict[str, Tensor]:
    """All results of both passes, by the names of ``cases.ground_truth``."""
    given = problem(case, seed)
    results = run_forward(given, case.activation, threads=threads)
    return results | run_backward(given, results["saved"], case.activation, threads=threads)


def make_engine(training: Training, *, threads: int = 1, **changes: Any) -> Any:
    _, in_features, hidden, out = training.shape
    engine = {torch.float32: _core.EngineFloat32, torch.float64: _core.EngineFloat64}[training.dtype]
    arguments = {
        "in_features": in_features,
        "hidden_features": hidden,
        "out_features": out,
        "activation": ACTIVATIONS[training.activation].id,
        "loss": LOSSES[training.loss].id,
        "optimizer": OPTIMIZERS[training.optimizer].id,
        "dampening": 0.0,
        "has_b1": "b1" not in training.without,
        "has_b2": "b2" not in training.without,
        "threads": threads,
    }
    return engine(**arguments | training.update_rule | changes)


def batches(training: Training) -> int:
    return -(-training.rows // training.shape.batch)


def stored(engine: Any, training: Training) -> dict[str, Array]:
    """The engine's parameters, by name."""
    like = training_data(training).parameters
    arrays = {name: None if p is None else np.full_like(p, np.nan) for name, p in like.items()}
    engine.store(tuple(arrays.values()))
    return {name: array for name, array in arrays.items() if array is not None}


def train(training: Training, *, threads: int = 1) -> Trained:
    """Run the training on an engine of its own, a call of ``run`` for each epoch."""
    x, y, parameters = training_data(training)
    engine = make_engine(training, threads=threads)
    engine.load(tuple(parameters.values()))
    losses = np.full((training.epochs, batches(training)), np.nan)
    for epoch in range(training.epochs):
        engine.run(x, y, permutation(training.rows, 0, epoch), losses[epoch], training.shape.batch, None)
    return Trained(losses.ravel(), stored(engine, training))


def run_kernels_guarded(case: Case) -> dict[str, Tensor]:
    """``run_kernels`` at the start and at the end of guarded memory, which must not make a difference."""
    runs = []
    for placement in ("start", "end"):
        memory = GuardedMemory(placement)
        given = Problem(*(None if t is None else memory.copy(t) for t in problem(case)))
        results = run_forward(given, case.activation, allocate=memory.empty)
        results |= run_backward(given, results["saved"], case.activation, allocate=memory.empty)
        memory.check()
        runs.append(results)
    at_start, at_end = runs
    assert all(torch.equal(at_start[name], at_end[name]) for name in at_start), f"{case}: alignment changed a result"
    return at_end


def train_guarded(training: Training) -> Trained:
    """``train`` with all that Python hands to the engine in guarded memory."""
    memory = GuardedMemory("end")

    def guarded(array: Array) -> Array:
        return memory.copy(torch.from_numpy(array)).numpy()

    x, y, parameters = training_data(training)
    arrays = {name: None if p is None else guarded(p) for name, p in parameters.items()}
    engine = make_engine(training)
    engine.load(tuple(arrays.values()))
    losses = [guarded(np.full(batches(training), np.nan)) for _ in range(training.epochs)]
    for epoch in range(training.epochs):
        order = guarded(permutation(training.rows, 0, epoch))
        engine.run(guarded(x), guarded(y), order, losses[epoch], training.shape.batch, None)
    engine.store(tuple(arrays.values()))
    memory.check()
    return Trained(np.concatenate(losses), {name: array for name, array in arrays.items() if array is not None})


def subprocess_environment(**variables: str) -> dict[str, str]:
    """The environment, changed so that a subprocess imports this very twolayer."""
    folders = [str(Path(twolayer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))} | variables


@functools.cache
def results_on(isa: str) -> dict[str, Array]:
    """What a process that runs on that instruction set finds: ``"<case>: <name>"`` and ``"<training>: <name>"``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.npz")
        subprocess.run(
            [sys.executable, __file__, str(file)], env=subprocess_environment(TWOLAYER_ISA=isa), check=True, timeout=250
        )
        with np.load(file) as results:
            return dict(results)


def _all_results() -> Iterator[tuple[str, Array]]:
    yield "isa", np.array(_core.isa())
    for case in CASES:
        for name, tensor in run_kernels_guarded(case).items():
            yield f"{case}: {name}", (tensor.float() if case.dtype == torch.bfloat16 else tensor).numpy()
    for training in TRAININGS:
        trained = train_guarded(training)
        yield f"{training}: step_loss", trained.step_loss
        for name, array in trained.parameters.items():
            yield f"{training}: {name}", array


if __name__ == "__main__":
    faulthandler.enable()
    np.savez(sys.argv[1], **dict(_all_results()))
