"""A whole training run on a GPU, the tutorial's on MNIST: ``fit``, torch's eager loop, and a torch step in a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ... import NumpyNet, TwoLayerNet, fit_many
from ... import fit as twolayer_fit
from ...programs.problem import Problem
from ...programs.torch_loops import net_of
from ...training.session import permutation
from ..workloads import Workload
from .plan import MNIST, Plan, Result

BATCH = MNIST[0]
LR = 1e-4
NETS = 8  # of fit_many
LOSS_BOUND = 1e-4  # of an epoch's mean loss, relative to that of the CPU's engine
EAGER_STEPS = 100  # of the eager loop that are timed; every one takes the same time

FIT, FIT_BYTES, MANY = "twolayer.fit, float32", "twolayer.fit, uint8", f"twolayer.fit_many, {NETS} nets"
EAGER, GRAPHED = "torch eager", "torch step in a graph"


class Program(NamedTuple):
    """Someone who trains on the device."""

    first_epoch: Callable[[], float]  # trains for an epoch; returns its mean loss
    run: Callable[[], object]
    steps: int  # of ``run``


def fit(plan: Plan) -> Result:
    """Microseconds of a step, over whole runs where that is what is called."""
    result = Result("Training runs of the tutorial's net on MNIST, by the step")
    problem = _problem(plan)
    expected = _epoch_on_the_cpu(problem, plan)
    net = {"net": f"{BATCH} × {'-'.join(map(str, problem.layers))}", "precision": "float32"}
    programs, errors = {}, {}
    for name, make in _programs(problem, plan, result).items():
        try:
            program = make()
            errors[name] = error = abs(program.first_epoch() / expected - 1)
            if not error <= LOSS_BOUND:  # NaN is wrong too
                raise ArithmeticError(f"wrong: the first epoch's loss is off by {error:.1e}")
            programs[name] = program
        except Exception as error:  # a program may fail in any way; the row says how
            words = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            result.rows.append({**net, "program": name, "left_out": words})
    clock = replace(plan.clock, turns=min(plan.clock.turns, 3))
    timings = clock.compare({name: program.run for name, program in programs.items()})
    us = {name: timing.median / programs[name].steps for name, timing in timings.items()}
    for name, value in us.items():
        speedup = us[EAGER] / value if EAGER in us else None
        result.rows.append({**net, "program": name, "error": errors[name], "us": value, "speedup": speedup})
    result.notes.append(f"Of {problem.data}; {plan.fit_epochs} epochs are {_steps(problem, plan):,} steps.")
    if FIT in us:
        result.notes.append(f"fit takes {us[FIT] * _steps(problem, plan) / 1e6:.3f} s for them.")
    _judge(result, us)
    return result


def _judge(result: Result, us: dict[str, float]) -> None:
    def over(one: str, other: str) -> float | None:
        return us[one] / us[other] if one in us and other in us else None

    result.judge("gpu-fit-step", us.get(FIT))
    result.judge("gpu-fit-eager", over(EAGER, FIT))
    result.judge("gpu-fit-graph", over(GRAPHED, FIT))
    result.judge("gpu-fit-many", over(MANY, FIT), f"{NETS} nets")


def _problem(plan: Plan) -> Problem:
    workload = Workload("fit", plan.fit_layers, BATCH, plan.fit_rows // BATCH, data="digits", lr=LR)
    return replace(workload, pool=plan.fit_rows).problem(plan.seed % 2**31)


def _steps(problem: Problem, plan: Plan) -> int:
    return problem.batches * plan.fit_epochs


def _options(problem: Problem, plan: Plan) -> dict[str, Any]:
    return {"lr": problem.lr, "batch_size": problem.batch_size, "drop_last": True, "seed": plan.seed}


def _epoch_on_the_cpu(problem: Problem, plan: Plan) -> float:
    """The mean loss of the first epoch by the CPU's engine."""
    net = NumpyNet(*problem.layers, activation=problem.activation)
    for name, array in problem.starts[""].arrays().items():
        setattr(net, name, array.copy())
    return twolayer_fit(net, problem.x, problem.y, **_options(problem, plan)).loss[0]


def _programs(problem: Problem, plan: Plan, result: Result) -> dict[str, Callable[[], Program]]:
    x, y = (torch.from_numpy(array).to(plan.device) for array in (problem.x, problem.y))
    pixels = x.to(torch.uint8)  # raw ones, so that nothing is lost
    return {
        FIT: partial(_by_fit, problem, plan, x, y, result),
        FIT_BYTES: partial(_by_fit, problem, plan, pixels, y, result),
        MANY: partial(_by_fit_many, problem, plan, x, y),
        EAGER: partial(_by_torch, problem, plan, Eager, x, y, min(EAGER_STEPS, problem.batches)),
        GRAPHED: partial(_by_torch, problem, plan, Graphed, x, y, problem.batches),
    }


def _net(problem: Problem, plan: Plan) -> TwoLayerNet:
    return net_of(problem, problem.starts[""]).to(plan.device)


def _by_fit(problem: Problem, plan: Plan, x: Tensor, y: Tensor, result: Result) -> Program:
    net, options = _net(problem, plan), _options(problem, plan)

    def first_epoch() -> float:
        history = twolayer_fit(net, x, y, **options)
        result.notes.append(f"fit of {str(x.dtype).removeprefix('torch.')} inputs takes the path {history.path}.")
        return history.loss[0]

    return Program(
        first_epoch, partial(twolayer_fit, net, x, y, epochs=plan.fit_epochs, **options), _steps(problem, plan)
    )


def _by_fit_many(problem: Problem, plan: Plan, x: Tensor, y: Tensor) -> Program:
    nets = [_net(problem, plan) for _ in range(NETS)]
    options = {**_options(problem, plan), "seed": [plan.seed + i for i in range(NETS)]}

    def first_epoch() -> float:
        return fit_many(nets, x, y, **options)[0].loss[0]

    run = partial(fit_many, nets, x, y, epochs=plan.fit_epochs, **options)
    return Program(first_epoch, run, _steps(problem, plan))


class Eager:
    """The loop that one writes, on data that are on the device: what is left of it is a step's launches."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        self.net, self.x, self.y = net, x, y
        self.optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step(self, rows: Tensor) -> Tensor:
        """Train on these rows, (batch,); return the loss before."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(self.x.index_select(0, rows)), self.y.index_select(0, rows))
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Graphed(Eager):
    """The same step, captured once; what is left outside the graph is to name its rows. On the CPU, not captured."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__(net, x, y)
        self._rows = torch.zeros(BATCH, dtype=torch.int64, device=x.device)
        self._loss = torch.zeros((), device=x.device)
        self._graph = self._captured() if x.is_cuda else None

    def _captured(self) -> Any:
        start = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step(self._rows)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = super().step(self._rows)
        self.net.load_state_dict(start)
        return graph

    def step(self, rows: Tensor) -> Tensor:
        self._rows.copy_(rows)
        if self._graph is None:
            return super().step(self._rows)
        self._graph.replay()
        return self._loss


def _by_torch(problem: Problem, plan: Plan, loop: type[Eager], x: Tensor, y: Tensor, steps: int) -> Program:
    trained = loop(_net(problem, plan).to_sequential(), x, y)

    def batches(order: Tensor, count: int) -> Sequence[Tensor]:
        return order[: count * BATCH].view(-1, BATCH).unbind()

    def first_epoch() -> float:
        order = torch.from_numpy(permutation(len(x), plan.seed, 0)).to(plan.device)
        return float(np.mean([float(trained.step(rows)) for rows in batches(order, problem.batches)]))

    def run() -> None:
        for rows in batches(torch.randperm(len(x), device=plan.device), steps):
            trained.step(rows)

    return Program(first_epoch, run, steps)
