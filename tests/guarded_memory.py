"""Tensors in memory where a read or write outside them is noticed."""

from __future__ import annotations

import ctypes
import mmap
from math import prod
from typing import Literal

import torch
from torch import Tensor

PATTERN = 0xA5
PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


class GuardedMemory:
    """Gives each tensor pages of its own between two that may not be touched: doing so ends the process.

    The tensor lies against one of the two, at the ``"start"`` or at the ``"end"`` of its pages. A write to the rest of
    them is what ``check`` finds.
    """

    def __init__(self, placement: Literal["start", "end"]) -> None:
        self._placement = placement
        self._spare: list[Tensor] = []  # bytes of our pages outside the tensors

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor. One of no elements owns no memory and is not guarded."""
        if prod(shape) == 0:
            return torch.empty(shape, dtype=dtype)
        size = prod(shape) * dtype.itemsize
        inside = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        for guard in (address, address + mmap.PAGESIZE + inside):
            if _libc.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect failed")
        content = torch.frombuffer(pages, dtype=torch.uint8, offset=mmap.PAGESIZE, count=inside).fill_(PATTERN)
        first = 0 if self._placement == "start" else inside - size
        before, mine, after = content.split([first, size, inside - first - size])
        self._spare += [before, after]
        return mine.view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def check(self) -> None:
        """Raise ``AssertionError`` if a byte beside a tensor was written to."""
        for spare in self._spare:
            changed = int((spare != PATTERN).sum())
            assert changed == 0, f"{changed} bytes outside a tensor were written to"
