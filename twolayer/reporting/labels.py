"""Names of curves, written at their ends and kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

LABEL_GAP = 0.062  # of the axes' height, from one label's middle to the next


class EndLabel(NamedTuple):
    """A curve's name, to be written at its last point."""

    y: float
    text: str
    color: str


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write the labels right of the axes, at their curves' ends but for what keeps them apart."""
    axes.set_ylim(axes.get_ylim())
    to_fraction = axes.transData + axes.transAxes.inverted()
    labels = sorted(labels, key=lambda label: label.y)
    ends = [float(to_fraction.transform((1, label.y))[1]) for label in labels]
    for end, height, label in zip(ends, _apart(ends), labels, strict=True):
        axes.annotate(
            label.text,
            xy=(1.0, end),
            xytext=(1.06, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=label.color,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.8, "relpos": (0, 0.5), "shrinkB": 0},
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """The ascending ``heights`` moved to be ``LABEL_GAP`` apart: those too close form a stack around their mean."""
    stacks: list[list[float]] = []
    for height in heights:
        stacks.append([height])
        while len(stacks) > 1 and _span(stacks[-2])[1] > _span(stacks[-1])[0]:
            top = stacks.pop()
            stacks[-1] += top
    return [_span(stack)[0] + (place + 0.5) * LABEL_GAP for stack in stacks for place in range(len(stack))]


def _span(stack: Sequence[float]) -> tuple[float, float]:
    """Bottom and top of a stack of labels, kept within the axes."""
    height = len(stack) * LABEL_GAP
    bottom = min(max(float(np.mean(stack)) - height / 2, 0.0), 1.0 - height)
    return bottom, bottom + height
