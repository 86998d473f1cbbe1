"""A run's pictures: time per step against batch, hidden width and threads, with the machine's limit drawn in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ..reporting.labels import EndLabel, label_ends
from ..reporting.style import styled

# Okabe and Ito's palette, as in the comparison.
COLORS = {
    "twolayer.fit": "#D55E00",
    "twolayer.fit bfloat16": "#882255",
    "TwoLayerNet": "#E69F00",
    "predictor": "#AA4499",
    "torch eager": "#0072B2",
    "nn.Linear loop": "#332288",
    "nn.Sequential": "#0072B2",
    "torch.compile": "#CC79A7",
    "JAX scan": "#56B4E9",
    "NumPy": "#000000",
    "scikit-learn": "#009E73",
}
LIMIT: dict[str, Any] = {"color": "#444444", "linewidth": 1.0, "linestyle": (0, (4, 3))}
Rows = Sequence[Mapping[str, Any]]


def draw(found: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the pictures that the run's cases allow into ``folder`` and return their names."""
    figures = {
        "time_by_batch.png": _grid_figure(found, along="batch", of="hidden", fixed=(8, 100, 512, 1024)),
        "time_by_hidden.png": _grid_figure(found, along="hidden", of="batch", fixed=(1, 64, 256, 4096)),
        "time_by_width.png": _widths_figure(found),
        "time_by_threads.png": _threads_figure(found),
    }
    drawn = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name)
            drawn.append(name)
    return drawn


def _rows(found: Mapping[str, Any], case: str) -> Rows:
    return [row for row in found["cases"].get(case, {"rows": []})["rows"] if row["us"]]


@styled
def _grid_figure(found: Mapping[str, Any], along: str, of: str, fixed: Sequence[int]) -> Figure | None:
    """A panel for each number of inputs (down) and each value of ``of`` (across); best eager against ``fit``."""
    cases = {inputs: rows for inputs in (8, 64, 784) if (rows := _rows(found, f"grid-{inputs}"))}
    fixed = [value for value in fixed if any(row["cell"][of] == value for rows in cases.values() for row in rows)]
    if not cases or not fixed:
        return None
    figure = Figure(figsize=(3.4 * len(fixed), 0.7 + 2.6 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), len(fixed), squeeze=False, sharex=True, sharey="row")
    for (inputs, rows), line in zip(cases.items(), panels, strict=True):
        for value, axes in zip(fixed, line, strict=True):
            here = [row for row in rows if row["cell"][of] == value]
            for name in ("torch eager", "nn.Linear loop", "twolayer.fit"):
                _plot_best(axes, [row for row in here if row["implementation"] == name], along, name)
            _plot_limit(axes, [row for row in here if row["implementation"] == "twolayer.fit"], along)
            _logarithmic(axes, sorted({row["cell"][along] for row in rows}))
            axes.set_title(f"{inputs} inputs, {of} {value}")
        line[0].set_ylabel("µs per step")
    for axes in panels[-1]:
        axes.set_xlabel({"batch": "batch", "hidden": "hidden width"}[along])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _plot_best(axes: Axes, rows: Rows, along: str, name: str) -> None:
    """The implementation's time at its best number of threads."""
    points: dict[int, float] = {}
    for row in rows:
        place = row["cell"][along]
        points[place] = min(row["us"], points.get(place, math.inf))
    ours = name.startswith("twolayer")
    style: dict[str, Any] = {"linewidth": 2.2 if ours else 1.3, "marker": "o", "markersize": 4 if ours else 3}
    axes.plot(sorted(points), [points[place] for place in sorted(points)], color=COLORS[name], label=name, **style)


def _plot_limit(axes: Axes, rows: Rows, along: str) -> None:
    points = sorted((row["cell"][along], row["limit_us"]) for row in rows if row["limit_us"])
    if points:
        axes.plot(*zip(*points, strict=True), label="limit: peak and weights' bandwidth", zorder=1, **LIMIT)


def _logarithmic(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#E4E7EA", linewidth=0.7)


@styled
def _widths_figure(found: Mapping[str, Any]) -> Figure | None:
    """``fit`` alone over every width that was watched."""
    rows = _rows(found, "widths")
    if not rows:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    _plot_best(axes, rows, "hidden", "twolayer.fit")
    _plot_limit(axes, rows, "hidden")
    _logarithmic(axes, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    axes.set_xlabel("hidden width")
    axes.set_ylabel("µs per step")
    axes.set_title(f"fit, 784 inputs, batch 64, {rows[0]['threads']} threads")
    axes.legend(loc="upper left")
    return figure


@styled
def _threads_figure(found: Mapping[str, Any]) -> Figure | None:
    """The two big trainings: each implementation's time at one thread and at two."""
    cases = [case for case in ("digits", "dense") if _rows(found, case)]
    if not cases:
        return None
    figure = Figure(figsize=(5.4 * len(cases), 4.4), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False, sharey=True)[0]
    for case, axes in zip(cases, panels, strict=True):
        rows = _rows(found, case)
        labels: list[EndLabel] = []
        for name in dict.fromkeys(row["implementation"] for row in rows):
            here = sorted((row["threads"], row["us"]) for row in rows if row["implementation"] == name)
            style: dict[str, Any] = {
                "linewidth": 2.4 if name.startswith("twolayer") else 1.3,
                "marker": "o",
                "markersize": 4,
            }
            axes.plot(*zip(*here, strict=True), color=COLORS[name], **style)
            labels.append(EndLabel(here[-1][1], name, COLORS[name]))
        limits = {row["threads"]: row["limit_us"] for row in rows if row["limit_us"]}
        axes.plot(sorted(limits), [limits[count] for count in sorted(limits)], **LIMIT)
        if limits:
            labels.append(EndLabel(limits[max(limits)], "limit: peak", "#444444"))
        _logarithmic(axes, sorted({row["threads"] for row in rows}))
        axes.set_xlabel("threads")
        axes.set_title({"digits": "MNIST's pixels", "dense": "Dense inputs"}[case] + ", batch 64")
        label_ends(axes, labels)
    panels[0].set_ylabel("µs per step")
    return figure
