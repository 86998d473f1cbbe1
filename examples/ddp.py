"""A plain training loop under DistributedDataParallel: two processes give what one gives with the joint batch.

Run it with ``torchrun --nproc-per-node 2 examples/ddp.py``.
"""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import twolayer

STEPS, BATCH = 50, 64


def make_net() -> twolayer.TwoLayerNet:
    torch.manual_seed(0)  # the same in every process
    return twolayer.TwoLayerNet(20, 32, 3, activation="gelu")


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, share: slice) -> float:
    """Train on that share of each batch; return the last batch's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        first = step * BATCH % len(x)
        rows = slice(first, first + BATCH)
        loss = cross_entropy(model(x[rows][share]), y[rows][share])
        optimizer.zero_grad()
        loss.backward()  # here the processes' gradients are averaged
        optimizer.step()
    return loss.item()


def compare() -> None:
    """Train in all processes, then all of it in the first, and compare."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(10 * BATCH, 20, generator=draw)
    y = (x @ torch.randn(20, 3, generator=draw)).argmax(1)

    size = BATCH // processes
    model = DistributedDataParallel(make_net())
    train(model, x, y, slice(rank * size, (rank + 1) * size))
    if rank == 0:
        alone = make_net()
        loss = train(alone, x, y, slice(BATCH))
        pairs = zip(model.module.parameters(), alone.parameters(), strict=True)
        difference = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
        print(f"{processes} processes: loss of one process {loss:.4f}, weights differ by {difference:.1e}")
        assert difference < 1e-4, "the processes must give what one gives with the joint batch"


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    compare()
    gc.collect()  # a DistributedDataParallel that outlives its group may abort the process at its end
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
