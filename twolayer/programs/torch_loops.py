"""Training in torch: one step function each, driven over the batches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import TwoLayerNet
from ..reference import torch as torch_reference
from ..reference.run import OnEpoch, Run
from ..training.torch_optim import CLASSES as TORCH_OPTIMIZERS
from .problem import Problem, Train, Weights, run_epochs, run_of

Step = Callable[[Tensor, Tensor], Tensor]  # one batch's x and y -> its loss, before the update it makes


def tensors_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """x in the problem's dtype, and y: class labels as they are."""
    y = problem.y.astype(problem.dtype, copy=False) if problem.y.dtype.kind == "f" else problem.y
    return torch.from_numpy(problem.x.astype(problem.dtype, copy=False)), torch.from_numpy(y)


def _run_steps(problem: Problem, step: Step, on_epoch: OnEpoch | None) -> list[float]:
    x, y = tensors_of(problem)

    def epoch() -> float:
        for rows in problem.batch_rows():
            loss = step(x[rows], y[rows])
        return loss.item()

    return run_epochs(problem, epoch, on_epoch)


@functools.cache
def _compiled_step(activation: str, loss: str) -> Callable[[dict[str, Tensor], Tensor, Tensor, float], Tensor]:
    """Forward, backward and update of a whole step as one graph; cached, so that the warm-up compiles for the run."""

    def step(params: dict[str, Tensor], x: Tensor, y: Tensor, lr: float) -> Tensor:
        def batch_loss(params: dict[str, Tensor]) -> Tensor:
            z = torch_reference.two_layer(x, params["w1"], params.get("b1"), params["w2"], params.get("b2"), activation)
            return torch_reference.LOSSES[loss](z, y)

        gradients, value = torch.func.grad_and_value(batch_loss)(params)
        for name, param in params.items():
            param.sub_(gradients[name], alpha=lr)
        return value

    return torch.compile(step, fullgraph=True)


def compiled_program(problem: Problem, start: Weights) -> Train:
    """The whole step, whose update is SGD's, through torch.compile."""
    params = {name: torch.tensor(array) for name, array in start.arrays().items()}
    compiled = _compiled_step(problem.activation, problem.loss)

    def train(on_epoch: OnEpoch | None) -> Run:
        with torch.no_grad():
            losses = _run_steps(problem, lambda x, y: compiled(params, x, y, problem.lr), on_epoch)
        return run_of(losses, {name: param.numpy() for name, param in params.items()})

    return train


STATE_KEYS = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}


def net_of(problem: Problem, start: Weights) -> TwoLayerNet:
    dtype = getattr(torch, problem.dtype)
    net = TwoLayerNet(*problem.layers, activation=problem.activation, bias=start.b1 is not None, dtype=dtype)
    net.load_state_dict({STATE_KEYS[name]: torch.tensor(array) for name, array in start.arrays().items()})
    return net


def run_of_net(losses: list[float], net: nn.Module) -> Run:
    state = net.state_dict()
    return run_of(losses, {name: state[key].numpy() for name, key in STATE_KEYS.items() if key in state})


def module_program(problem: Problem, start: Weights) -> Train:
    """The drop-in module, trained as any torch module is."""
    return _train_by_autograd(problem, net_of(problem, start))


def sequential_program(problem: Problem, start: Weights) -> Train:
    """The nn.Sequential that the drop-in module stands for, with torch.optim."""
    return _train_by_autograd(problem, net_of(problem, start).to_sequential())


def by_hand_program(problem: Problem, start: Weights) -> Train:
    """The nn.Sequential of the tutorial's second program, updated by hand, whose update is SGD's."""
    net = net_of(problem, start).to_sequential()
    loss_function = torch_reference.LOSSES[problem.loss]

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = loss_function(net(x), y)
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for param in net.parameters():
                param -= problem.lr * param.grad  # type: ignore[operator, misc]
        return loss

    return lambda on_epoch: run_of_net(_run_steps(problem, step, on_epoch), net)


def _train_by_autograd(problem: Problem, net: nn.Sequential) -> Train:
    momentum = {"momentum": problem.momentum} if problem.momentum else {}
    optimizer = TORCH_OPTIMIZERS[problem.optimizer](net.parameters(), lr=problem.lr, **momentum)
    loss_function = torch_reference.LOSSES[problem.loss]

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = loss_function(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return lambda on_epoch: run_of_net(_run_steps(problem, step, on_epoch), net)
