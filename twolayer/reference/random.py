"""Numbers that look random and are functions of what they are for: batch order and dropout, bit by bit as in C++."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_UINT64 = (1 << 64) - 1
_SPLITMIX64_INCREMENT = 0x9E3779B97F4A7C15
_SECOND_INCREMENT = 0xD1B54A32D192ED03  # of the second number of a key


def _mix64(z: UInt64) -> UInt64:
    """SplitMix64's output function of its state (Steele, Lea and Flood, 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def splitmix64(state: int, count: int) -> UInt64:
    """The first ``count`` outputs of SplitMix64 from ``state``, all at once: its state is an arithmetic progression."""
    return _mix64(np.uint64(state) + np.uint64(_SPLITMIX64_INCREMENT) * np.arange(1, count + 1, dtype=np.uint64))


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which shuffled training visits n rows in an epoch (from 0): Fisher–Yates driven by SplitMix64.

    The generator starts from SplitMix64's first output from seed · 0x9E3779B97F4A7C15 + (epoch + 1) ·
    0xD1B54A32D192ED03 mod 2⁶⁴. For i from n - 1 down to 1, the next output r gives j = ⌊r (i + 1) / 2⁶⁴⌋, and rows i
    and j change places.
    """
    if not 0 <= n < 1 << 32:
        raise ValueError(f"n must be at least 0 and below 2**32, got {n}")
    state = (seed * _SPLITMIX64_INCREMENT + (epoch + 1) * _SECOND_INCREMENT) & _UINT64
    state = int(splitmix64(state, 1)[0])  # neighbouring seeds start one increment apart: else their draws would overlap
    draws = splitmix64(state, max(n - 1, 0))
    bounds = np.arange(n, 1, -1, dtype=np.uint64)  # i + 1
    high, low = draws >> np.uint64(32), draws & np.uint64(0xFFFFFFFF)
    partners = (high * bounds + (low * bounds >> np.uint64(32))) >> np.uint64(32)  # (draws * bounds) >> 64, no overflow

    order = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), partners.tolist(), strict=True):
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)


def dropout_mask(seed: int, step: int, rows: int, hidden: int, dropout: float) -> NDArray[np.float64]:
    """What dropout multiplies the hidden layer of a step's batch by, 0 or 1 / (1 - dropout), of shape (rows, hidden).

    The key of row i is SplitMix64's output function of seed + step · 0x9E3779B97F4A7C15 + i · 0xD1B54A32D192ED03
    mod 2⁶⁴. A value is dropped when 32 bits mixed from that key and its unit's index are below ⌊dropout · 2³²⌋.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {dropout}")
    first = (seed + step * _SPLITMIX64_INCREMENT) & _UINT64
    keys = _mix64(np.uint64(first) + np.uint64(_SECOND_INCREMENT) * np.arange(rows, dtype=np.uint64))
    bits = _mix32(keys[:, None], np.arange(hidden, dtype=np.uint32))
    return np.where(bits < np.uint32(dropout * 2**32), 0.0, 1 / (1 - dropout))


def _mix32(key: UInt64, unit: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijective mixer of 32 bits with low bias (Wellons), the key's halves added before and between its rounds."""
    low, high = key.astype(np.uint32), (key >> np.uint64(32)).astype(np.uint32)
    h = unit * np.uint32(0x9E3779B9) + low
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    h = (h ^ (h >> np.uint32(15))) + high
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x735A2D97)
    return h ^ (h >> np.uint32(15))
