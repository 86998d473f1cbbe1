"""Turns against the clock, and what is told of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from time import perf_counter, sleep
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")

LEAST_TURNS = 3
PAUSE = 0.002  # seconds between turns, in which the last one's waiting threads go to sleep


class Timing(NamedTuple):
    """Seconds of one step."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        return cls(statistics.median(seconds), min(seconds), max(seconds))


def take_turns(runners: Mapping[Key, Callable[[], float]], turns: int, budget: float) -> dict[Key, list[float]]:
    """Call every runner once a turn, one after another, and return what each gave.

    There are ``turns`` turns, or fewer, but at least three, when they take more than ``budget`` seconds.
    """
    found: dict[Key, list[float]] = {key: [] for key in runners}
    started = perf_counter()
    for turn in range(turns):
        if turn >= LEAST_TURNS and perf_counter() - started > budget:
            break
        for key, run in runners.items():
            sleep(PAUSE)
            found[key].append(run())
    return found
