"""One call after another of a net in torch: forward, forward and backward, a whole step, inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..reference import torch as torch_reference
from ..training.torch_optim import CLASSES as TORCH_OPTIMIZERS
from .problem import Array, Calls, PrepareCalls, Problem, Weights, output_gradient
from .torch_loops import STATE_KEYS, net_of, tensors_of


def _net(kind: str, problem: Problem, start: Weights) -> nn.Sequential:
    net = net_of(problem, start)
    return net if kind == "TwoLayerNet" else net.to_sequential()


def forward(kind: str) -> PrepareCalls:
    """The outputs, with all that a backward pass would need."""

    def prepare(problem: Problem, start: Weights) -> Calls:
        net, (x, _) = _net(kind, problem, start), tensors_of(problem)

        def run(count: int) -> None:
            for _ in range(count):
                net(x)

        return Calls(run, lambda: {"y": net(x).detach().numpy()})

    return prepare


def backward(kind: str) -> PrepareCalls:
    """Forward, and the gradients of the parameters from one for the outputs, ``output_gradient(problem)``."""

    def prepare(problem: Problem, start: Weights) -> Calls:
        net, (x, _) = _net(kind, problem, start), tensors_of(problem)
        gradient = torch.from_numpy(output_gradient(problem))

        def run(count: int) -> None:
            for _ in range(count):
                net.zero_grad()
                net(x).backward(gradient)

        def results() -> dict[str, Array]:
            run(1)
            grads = {name: param.grad for name, param in net.named_parameters()}
            return {name: grad.numpy() for name, key in STATE_KEYS.items() if (grad := grads.get(key)) is not None}

        return Calls(run, results)

    return prepare


def step(kind: str) -> PrepareCalls:
    """Forward, loss, backward and torch.optim's update."""

    def prepare(problem: Problem, start: Weights) -> Calls:
        net, (x, y) = _net(kind, problem, start), tensors_of(problem)
        optimizer = TORCH_OPTIMIZERS[problem.optimizer](net.parameters(), lr=problem.lr)
        loss_function = torch_reference.LOSSES[problem.loss]

        def run(count: int) -> None:
            for _ in range(count):
                loss = loss_function(net(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        def results() -> dict[str, Array]:
            run(1)
            state = net.state_dict()
            return {
                f"change of {name}": state[STATE_KEYS[name]].numpy() - array for name, array in start.arrays().items()
            }

        return Calls(run, results)

    return prepare


def infer(kind: str) -> PrepareCalls:
    """The outputs alone, under no_grad."""

    def prepare(problem: Problem, start: Weights) -> Calls:
        net, (x, _) = _net(kind, problem, start), tensors_of(problem)

        def run(count: int) -> None:
            with torch.no_grad():
                for _ in range(count):
                    net(x)

        def results() -> dict[str, Array]:
            with torch.no_grad():
                return {"y": net(x).numpy()}

        return Calls(run, results)

    return prepare


def predict(problem: Problem, start: Weights) -> Calls:
    """``net.predictor()``, NumPy in and out."""
    net: Any = net_of(problem, start)
    predictor, x = net.predictor(threads=problem.threads), problem.x.astype(problem.dtype, copy=False)

    def run(count: int) -> None:
        for _ in range(count):
            predictor(x)

    return Calls(run, lambda: {"y": predictor(x)})
