"""What the ops of every device share: which tensors native code may be given, ids, and memory for gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from .registry import ACTIVATIONS

IDS = {row.name: row.id for row in ACTIVATIONS.values()}
# A subclass may keep its data elsewhere, or have none, so only plain tensors are handed to native code.
PLAIN_TYPES = frozenset({Tensor, Parameter, type(None)})


def have_kernels(dtypes: frozenset[torch.dtype], *tensors: Tensor | None) -> bool:
    """Whether native code for these dtypes takes the tensors, of which the first is one."""
    return PLAIN_TYPES.issuperset(map(type, tensors)) and tensors[0].dtype in dtypes  # type: ignore[union-attr]


def empty_gradients(x: Tensor, w1: Tensor, w2: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return memory for the gradients of (x, w1, b1, w2, b2); None where ``needs`` is off."""
    needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needs
    return [
        x.new_empty(*x.shape) if needs_x else None,
        x.new_empty(*w1.shape) if needs_w1 else None,
        x.new_empty(w1.shape[0]) if needs_b1 else None,
        x.new_empty(*w2.shape) if needs_w2 else None,
        x.new_empty(w2.shape[0]) if needs_b2 else None,
    ]
