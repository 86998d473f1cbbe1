"""What the examples are compared with: training in plain PyTorch, as one writes it, and how the two are told apart.

Fair to it: data in memory, batches of an index, no loss read but once an epoch, and as many threads as suit it best.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import twolayer
from twolayer.reference.numpy import permutation


def train(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
    validation: tuple[Tensor, Tensor] | None = None,
    patience: int | None = None,
) -> int:
    """Train on the batches that ``twolayer.fit`` takes; with ``patience`` stop early. Return the number of epochs."""
    best, best_epoch, best_state = float("inf"), 0, None
    for epoch in range(epochs):
        for rows in torch.from_numpy(permutation(len(x), seed, epoch)).split(batch_size):
            loss = loss_of(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if validation is None:
            continue
        with torch.no_grad():
            value = loss_of(net(validation[0]), validation[1]).item()
        if value < best:
            best, best_epoch, best_state = value, epoch, copy.deepcopy(net.state_dict())
        if patience is not None and epoch - best_epoch >= patience:
            break
    if best_state is not None and patience is not None:
        net.load_state_dict(best_state)
    return epoch + 1


def warm_up() -> None:
    """Have both load what they load at their first steps."""
    net, x, y = twolayer.TwoLayerNet(4, 8, 3), torch.randn(64, 4), torch.randint(0, 3, (64,))
    twolayer.fit(net, x, y, validation=0.5)
    plain = net.to_sequential()
    train(plain, x, y, nn.functional.cross_entropy, torch.optim.Adam(plain.parameters()), epochs=1)


def seconds_of(run: Callable[[], Any], threads: int | None = None) -> tuple[Any, float]:
    """Return what ``run`` returns, and how long it took; ``threads`` is how many torch may use meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    start = time.perf_counter()
    try:
        return run(), time.perf_counter() - start
    finally:
        torch.set_num_threads(before)


def report(rows: list[tuple[str, str, float]]) -> None:
    """Print (what, quality, seconds) of plain PyTorch first and then of ``twolayer``, and how much faster that is."""
    for name, quality, seconds in rows:
        print(f"  {name:<18} {quality:<42} {seconds:8.3f} s  {rows[0][2] / seconds:5.1f} ×")
