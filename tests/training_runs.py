"""Nets, data and plain PyTorch training loops that the tests of training share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import relative_error
from torch import Tensor, nn

from twolayer import TwoLayerNet
from twolayer.reference.numpy import permutation
from twolayer.registry import LOSSES

SIZES = (9, 20, 5)
ROWS = 37  # with batches of 8, five to an epoch, the last one short

# Every optimiser, with every option that changes its arithmetic: arguments of fit and of the torch.optim class alike.
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "dampening": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    "nesterov": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01},
    "amsgrad": {"optimizer": "adam", "lr": 0.01, "amsgrad": True},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "adamw amsgrad": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "rmsprop": {"optimizer": "rmsprop", "lr": 0.01, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.01},
    "rmsprop momentum": {"optimizer": "rmsprop", "lr": 0.003, "momentum": 0.9},
    "rmsprop centered": {"optimizer": "rmsprop", "lr": 0.003, "momentum": 0.5, "centered": True},
    "adagrad": {"optimizer": "adagrad", "lr": 0.05, "eps": 1e-8, "lr_decay": 0.01, "initial_accumulator_value": 0.1},
}

TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """OpenMP's threads wait for each other at every op, which takes long while another process has one of the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_drawing = threading.Lock()  # torch has one generator for all threads


def make_net(
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
    sizes: tuple[int, int, int] = SIZES,
    bias: bool = True,
    seed: int = 0,
) -> TwoLayerNet:
    with _drawing:
        torch.manual_seed(seed)
        return TwoLayerNet(*sizes, activation=activation, bias=bias, dtype=dtype)


def make_data(
    loss: str = "cross_entropy",
    dtype: torch.dtype = torch.float64,
    rows: int = ROWS,
    sizes: tuple[int, int, int] = SIZES,
    seed: int = 1,
) -> tuple[Tensor, Tensor]:
    """x (rows, in), and classes (rows,) for cross_entropy, else values (rows, out) in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, sizes[0], generator=generator, dtype=dtype)
    if LOSSES[loss].targets == "classes_or_distributions":
        return x, torch.randint(0, sizes[2], (rows,), generator=generator)
    return x, torch.rand(rows, sizes[2], generator=generator, dtype=dtype)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_same_bits(net: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(weights(net), weights(other), rtol=0, atol=0, equal_nan=True)


def assert_changed(net: nn.Module, other: nn.Module) -> None:
    assert not any(mine.equal(theirs) for mine, theirs in zip(net.parameters(), other.parameters(), strict=True))


def assert_near(net: nn.Module, other: nn.Module, bound: float = 1e-12) -> None:
    """The same within rounding: each parameter's difference has at most ``bound`` of its norm."""
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        assert relative_error(ours.detach().double().numpy(), theirs.detach().double().numpy()) <= bound, name


def torch_optimizer(net: nn.Module, rule: dict[str, Any]) -> torch.optim.Optimizer:
    options = {name: value for name, value in rule.items() if name != "optimizer"}
    return TORCH_OPTIMIZERS[rule["optimizer"]](net.parameters(), **options)


def train_with_torch(
    net: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int = 8,
    epochs: int = 3,
    first_epoch: int = 0,
    shuffle: bool = True,
    before_update: Callable[[], object] | None = None,
    after_step: Callable[[], object] | None = None,
    after_epoch: Callable[[], object] | None = None,
) -> list[float]:
    """Train by autograd on the batches that ``fit`` takes; ``loss_of(z, rows)``. Return each epoch's mean loss."""
    means = []
    for epoch in range(first_epoch, first_epoch + epochs):
        order = torch.from_numpy(permutation(len(x), 0, epoch)) if shuffle else torch.arange(len(x))
        total = 0.0
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            loss = loss_of(net(x[rows]), rows)
            loss.backward()
            total += loss.item() * len(rows)
            for act in (before_update, optimizer.step, after_step):
                if act is not None:
                    act()
        if after_epoch is not None:
            after_epoch()
        means.append(total / len(x))
    return means


def numpy_weights(net: nn.Module) -> dict[str, np.ndarray]:
    """Copies by the names w1, b1, w2, b2."""
    arrays = (parameter.detach().numpy().copy() for parameter in net.parameters())
    return dict(zip(("w1", "b1", "w2", "b2"), arrays, strict=True))
