"""The comparison's pictures: the loss curves with their deviation from float64, and the speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..reporting.labels import EndLabel, label_ends
from ..reporting.style import STYLE
from .measure import TaskResult, deviation

# Okabe and Ito's palette, which colour-blind readers can tell apart, and Tol's muted one.
COLORS = {
    "NumPy, float64": "#9AA3AB",
    "NumPy, float32": "#000000",
    "torch, by hand": "#56B4E9",
    "torch autograd": "#0072B2",
    "raw Parameters": "#56B4E9",
    "nn.Linear": "#0072B2",
    "optim.SGD": "#332288",
    "torch.compile": "#CC79A7",
    "scikit-learn MLP": "#009E73",
    "TwoLayerNet autograd": "#E69F00",
    "twolayer.fit": "#D55E00",
    "twolayer.fit bfloat16": "#882255",
    "twolayer.fit NumpyNet": "#999933",
    "torch.optim.Adam": "#117733",
    "twolayer.fit Adam": "#AA4499",
}


def draw(results: Sequence[TaskResult], folder: Path) -> list[str]:
    """Write ``loss_curves.png`` and ``speed.png`` into ``folder`` and return the names of what was written."""
    results = [result for result in results if result.losses]
    if not results:
        return []
    with matplotlib.rc_context(STYLE):
        _loss_figure(results).savefig(folder / "loss_curves.png")
        _speed_figure(results).savefig(folder / "speed.png")
    return ["loss_curves.png", "speed.png"]


def _loss_figure(results: Sequence[TaskResult]) -> Figure:
    figure = Figure(figsize=(6.6 * len(results), 6.6), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False, sharex="col", height_ratios=(1, 1.3))
    for result, (losses, deviations) in zip(results, grid.T, strict=True):
        _draw_losses(losses, result)
        _draw_deviations(deviations, result)
        deviations.set_xlabel("step" if result.problem.batches == 1 else "epoch")
        deviations.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def _draw_losses(axes: Axes, result: TaskResult) -> None:
    for curve in result.references.values():
        axes.plot(_epochs(curve), curve, color="#D5D9DD", linewidth=8, solid_capstyle="round")
    for name, losses in result.losses.items():
        axes.plot(_epochs(losses), losses, color=COLORS[name], linewidth=1)
    if result.problem.loss == "mse_sum":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(f"{result.problem.title}: loss{'' if result.problem.batches == 1 else ' of the last batch'}")
    labels = []
    for course in dict.fromkeys(result.table.named(name).course for name in result.losses):
        ends = {name: losses[-1] for name, losses in result.losses.items() if result.table.named(name).course == course}
        labels += [_group_label(names, ends[names[0]]) for names in _groups(ends)]
    label_ends(axes, labels)


def _groups(ends: Mapping[str, float]) -> list[list[str]]:
    """The names, ascending by where their curves end, in groups of curves that look like one."""
    groups: list[list[str]] = []
    for name in sorted(ends, key=lambda name: ends[name]):
        if groups and ends[name] <= 1.2 * ends[groups[-1][-1]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _group_label(names: Sequence[str], y: float) -> EndLabel:
    if len(names) == 1:
        return EndLabel(y, names[0], COLORS[names[0]])
    return EndLabel(y, f"{len(names)} programs on one curve", "#444444")


def _draw_deviations(axes: Axes, result: TaskResult) -> None:
    axes.set_yscale("log")
    labels = []
    for name, losses in result.losses.items():
        reference = result.reference_of(name)
        if reference is None or name == result.table.reference:
            continue
        curve = np.maximum.accumulate(deviation(losses, reference, result.problem.loss))
        curve[curve == 0] = np.nan  # has no place on a logarithmic axis
        native = name == result.table.native
        axes.plot(
            _epochs(curve), curve, color=COLORS[name], linewidth=2.4 if native else 1.3, zorder=3 if native else 2
        )
        if np.isfinite(curve[-1]):
            labels.append(EndLabel(float(curve[-1]), name, COLORS[name]))
    low, high = np.log10(axes.get_ylim())
    axes.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    quantity = "√loss" if result.problem.loss == "mse_sum" else "loss"
    axes.set_title(f"Largest deviation of {quantity} so far from float64")
    label_ends(axes, labels)


def _epochs(curve: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.arange(1, len(curve) + 1)


def _speed_figure(results: Sequence[TaskResult]) -> Figure:
    counts = [sum(row.us_per_step is not None for row in result.rows) for result in results]
    figure = Figure(figsize=(9, 0.6 + sum(0.36 * count + 0.75 for count in counts)), layout="constrained")
    grid = figure.subplots(len(results), 1, squeeze=False, sharex=True, height_ratios=counts)
    for result, axes in zip(results, grid[:, 0], strict=True):
        _draw_speeds(axes, result)
    grid[-1, 0].set_xlabel("µs per training step, logarithmic: shorter is faster")
    return figure


def _draw_speeds(axes: Axes, result: TaskResult) -> None:
    speedups = {row.name: row.speedup for row in result.rows}
    times = {row.name: row.us_per_step for row in result.rows if row.us_per_step is not None}
    names = sorted(times, key=lambda name: times[name])
    bars = axes.barh(names, [times[name] for name in names], color=[_bar_color(name) for name in names], height=0.72)
    texts = [_bar_text(times[name], speedups[name]) for name in names]
    for label, name in zip(axes.bar_label(bars, texts, padding=5), names, strict=True):
        label.set_fontweight("bold" if name == result.table.native else "normal")
    axes.set_xscale("log")
    axes.set_xlim(10 ** np.floor(np.log10(min(times.values()) / 2)), max(times.values()) * 3)
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{result.problem.title} ({result.problem.summary.split(',')[0]}); × {result.table.baseline}")


def _bar_text(us_per_step: float, speedup: float | None) -> str:
    return f"{us_per_step:,.0f} µs" if speedup is None else f"{us_per_step:,.0f} µs   {speedup:.1f}×"


def _bar_color(name: str) -> str:
    if name.startswith("twolayer.fit"):
        return COLORS["twolayer.fit"]
    return COLORS[name] if name == "TwoLayerNet autograd" else "#9AA3AB"
