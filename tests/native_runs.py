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
    ENGINE_DEFAULTS,
    INPUTS,
    PARAMETERS,
    TRAININGS,
    Array,
    Case,
    Problem,
    Step,
    Trained,
    Training,
    TrainingData,
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


def predict(case: Case, *, rows: slice = slice(None), threads: int = 1, allocate: Allocate | None = None) -> Array:
    """The outputs of a native predictor, its weights, inputs and outputs from ``allocate`` where that is given."""

    def placed(tensor: Tensor | None) -> Array | None:
        if tensor is None or allocate is None:
            return None if tensor is None else tensor.numpy()
        return allocate(tuple(tensor.shape), tensor.dtype).copy_(tensor).numpy()

    given = problem(case)
    x, *weights = (placed(t) for t in (given.x[rows], *given[1:5]))
    predictor = {torch.float32: _core.PredictorFloat32, torch.float64: _core.PredictorFloat64}[case.dtype]
    run = predictor(*weights, ACTIVATIONS[case.activation].id, threads)
    y = poisoned((len(given.x[rows]), len(given.w2)), case.dtype, allocate or torch.empty).numpy()
    assert run(x, y) is y
    return y


def predict_guarded(case: Case) -> Array:
    """``predict`` at the start and at the end of guarded memory, and each row alone: all to the same bits."""
    runs = []
    for placement in ("start", "end"):
        memory = GuardedMemory(placement)
        runs.append(predict(case, threads=2, allocate=memory.empty))
        for row in range(min(case.shape.batch, 10)):
            alone = predict(case, rows=slice(row, row + 1), allocate=memory.empty)
            assert np.array_equal(alone[0], runs[-1][row], equal_nan=True), f"{case}: row {row} alone differs"
        memory.check()
    assert np.array_equal(*runs), f"{case}: alignment changed a prediction"
    return runs[0]


def run_kernels(case: Case, seed: int = 0, *, threads: int = 1) -> dict[str, Tensor]:
    """All results of both passes, by the names of ``cases.ground_truth``."""
    given = problem(case, seed)
    results = run_forward(given, case.activation, threads=threads)
    return results | run_backward(given, results["saved"], case.activation, threads=threads)


def engine_config(training: Training, **changes: Any) -> dict[str, Any]:
    _, in_features, hidden, out = training.shape
    named = {
        "in_features": in_features,
        "hidden_features": hidden,
        "out_features": out,
        "activation": ACTIVATIONS[training.activation].id,
        "loss": LOSSES[training.loss].id,
        "optimizer": OPTIMIZERS[training.optimizer].id,
        "bfloat16_compute": training.bfloat16_compute,
        "present": [name not in training.without for name in PARAMETERS],
        "frozen": [False] * len(PARAMETERS),
        "threads": 1,
    }
    return ENGINE_DEFAULTS | named | training.update_rule | changes


def make_engine(training: Training, **changes: Any) -> Any:
    engine = {torch.float32: _core.EngineFloat32, torch.float64: _core.EngineFloat64}[training.dtype]
    return engine(engine_config(training, **changes))


def run_steps(
    engine: Any,
    x: Any,
    y: Array,
    losses: Array,
    batch_size: int,
    *,
    lr: float,
    order: Array | None = None,
    first_step: int = 0,
    stop_if_not_finite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> bool:
    """``engine.run``: a step for each entry of ``losses``, of rows that weigh the same and are taken as they are."""
    rates = np.full(len(losses), lr)
    return engine.run(
        x, y, None, None, 1.0, 0.0, order, batch_size, first_step, rates, losses, stop_if_not_finite, on_progress
    )


def stored(engine: Any, training: Training) -> dict[str, Array]:
    """The engine's parameters, by name."""
    like = training_data(training).parameters
    arrays = {name: None if p is None else np.full_like(p, np.nan) for name, p in like.items()}
    engine.store(tuple(arrays.values()))
    return {name: array for name, array in arrays.items() if array is not None}


def train(training: Training, engine: Any = None, **changes: Any) -> Trained:
    """Run the training on a new engine, by default one of its own, a call of ``run`` for each epoch."""
    x, y, parameters = training_data(training)
    engine = make_engine(training, **changes) if engine is None else engine
    engine.load(tuple(parameters.values()))
    losses = np.full((training.epochs, training.batches), np.nan)
    for epoch in range(training.epochs):
        order = permutation(training.rows, 0, epoch)
        run_steps(engine, x, y, losses[epoch], training.shape.batch, lr=training.lr, order=order)
    return Trained(losses.ravel(), stored(engine, training))


def steps_of(engine: Any, training: Training, data: TrainingData, lr: float | None = None) -> Iterator[Step]:
    """Run the training on a native engine or its NumPy twin, a call of ``run`` for each step."""
    lr = training.lr if lr is None else lr
    engine.load(tuple(data.parameters.values()))
    loss = np.full(1, np.nan)
    for epoch in range(training.epochs):
        order = permutation(training.rows, 0, epoch)
        for step in range(training.batches):
            batch = training.shape.batch
            run_steps(engine, data.x, data.y, loss, batch, lr=lr, order=order, first_step=step)
            arrays = {name: None if p is None else np.full_like(p, np.nan) for name, p in data.parameters.items()}
            engine.store(tuple(arrays.values()))
            yield Step(float(loss[0]), {name: array for name, array in arrays.items() if array is not None})


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


def train_guarded(training: Training, **changes: Any) -> Trained:
    """``train`` with all that Python hands to the engine in guarded memory."""
    memory = GuardedMemory("end")

    def guarded(array: Array) -> Array:
        return memory.copy(torch.from_numpy(array)).numpy()

    x, y, parameters = training_data(training)
    arrays = {name: None if p is None else guarded(p) for name, p in parameters.items()}
    engine = make_engine(training, **changes)
    engine.load(tuple(arrays.values()))
    losses = [guarded(np.full(training.batches, np.nan)) for _ in range(training.epochs)]
    for epoch in range(training.epochs):
        order = guarded(permutation(training.rows, 0, epoch))
        run_steps(engine, guarded(x), guarded(y), losses[epoch], training.shape.batch, lr=training.lr, order=order)
    engine.store(tuple(arrays.values()))
    memory.check()
    return Trained(np.concatenate(losses), {name: array for name, array in arrays.items() if array is not None})


def subprocess_environment(**variables: str) -> dict[str, str]:
    """The environment, changed so that a subprocess imports this very twolayer."""
    folders = [str(Path(twolayer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))} | variables


def results_on(isa: str) -> dict[str, Array]:
    """What a process that runs on that instruction set finds: ``"<case>: <name>"`` and ``"<training>: <name>"``."""
    results, errors = _run_on(isa)
    assert results is not None, f"the native runs on {isa} failed: {errors}"
    return results


@functools.cache  # a failure too: it would cost every test as long again
def _run_on(isa: str) -> tuple[dict[str, Array] | None, str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.npz")
        command = [sys.executable, __file__, str(file)]
        environment = subprocess_environment(TWOLAYER_ISA=isa)
        run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=250)
        if run.returncode:
            return None, f"exit code {run.returncode}; {run.stderr[-4000:]}"
        with np.load(file) as results:
            return dict(results), ""


def _all_results() -> Iterator[tuple[str, Array]]:
    yield "isa", np.array(_core.isa())
    for case in CASES:
        for name, tensor in run_kernels_guarded(case).items():
            yield f"{case}: {name}", (tensor.float() if case.dtype == torch.bfloat16 else tensor).numpy()
        if case.dtype != torch.bfloat16:
            yield f"{case}: predicted", predict_guarded(case)
    for training in TRAININGS:
        trained, skipping = (train_guarded(training, skip_zeros=choice) for choice in ("never", "always"))
        np.testing.assert_array_equal(skipping.step_loss, trained.step_loss, err_msg=f"{training} skipping zeros")
        yield f"{training}: step_loss", trained.step_loss
        for name, array in trained.parameters.items():
            np.testing.assert_array_equal(
                skipping.parameters[name], array, err_msg=f"{training} skipping zeros: {name}"
            )
            yield f"{training}: {name}", array


if __name__ == "__main__":
    faulthandler.enable()
    np.savez(sys.argv[1], **dict(_all_results()))
