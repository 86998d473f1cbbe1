"""What a training program gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
OnEpoch = Callable[[int, float], object]  # called after each epoch with its number, from 0, and its loss


class Run(NamedTuple):
    """A program's loss curve and final weights, w1 (hidden, in) and w2 (out, hidden) as nn.Linear holds them.

    ``losses`` has one entry per epoch, taken before the update: of the whole batch in the regression, of the epoch's
    last batch in the classification. The biases are None in the regression, which has none.
    """

    losses: list[float]
    w1: Array
    b1: Array | None
    w2: Array
    b2: Array | None
