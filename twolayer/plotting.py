"""Pictures of a training and of a net, as matplotlib figures.

Each function returns a new ``matplotlib.figure.Figure``, which no window shows by itself: a notebook displays it, and
``figure.savefig("curve.png")`` writes it. ``pip install 'twolayer[demo]'`` brings matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .extras import require
from .metrics import confusion_counts
from .reporting.style import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .training.results import History

Array = NDArray[Any]

_TRAINING, _VALIDATION = "#0072B2", "#D55E00"  # of Okabe and Ito's palette
_MOST_NUMBERS = 20  # classes, up to which a confusion matrix has its counts written in
_MOST_NAMES = 40  # classes, up to which they are named at the sides
_MOST_POINTS = 20_000  # beyond which a scatter plot shows a part of the rows


def _figure(width: float, height: float) -> Figure:
    figures = require("matplotlib.figure", "twolayer.plotting", "demo")
    figure: Figure = figures.Figure((width, height), layout="constrained")
    return figure


@styled
def learning_curve(history: History) -> Figure:
    """Draw the loss of each epoch, with validation also there, and the accuracy beside it where there is one.

    The epoch that early stopping found best is marked. ``ValueError`` when there was no epoch.
    """
    if not history.loss:
        raise ValueError("history must have at least one epoch; it has none")
    figure = _figure(9 if history.val_accuracy else 6, 4)
    panels = figure.subplots(1, 2 if history.val_accuracy else 1, squeeze=False)[0]
    _draw_epochs(panels[0], {"training": history.loss, "validation": history.val_loss}, history.best_epoch)
    panels[0].set_title("Loss")
    if history.val_accuracy:
        _draw_epochs(panels[1], {"validation": history.val_accuracy}, history.best_epoch)
        panels[1].set_title("Accuracy on the validation rows")
        panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.4g}" if value < 0 else f"{100 * value:.4g} %")
    return figure


def _draw_epochs(axes: Axes, curves: dict[str, list[float]], best: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    colors = {"training": _TRAINING, "validation": _VALIDATION}
    for name, curve in curves.items():
        if curve:
            marker = "o" if len(curve) == 1 else ""
            axes.plot(range(1, len(curve) + 1), curve, color=colors[name], label=name, marker=marker)
    if best is not None:
        axes.axvline(best + 1, color="#9AA3AB", linewidth=1, linestyle=(0, (4, 3)), zorder=0, label="best epoch")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#E4E7EA", linewidth=0.7)
    axes.legend()


@styled
def confusion_matrix(truth: Any, predicted: Any, classes: Sequence[Any] | None = None) -> Figure:
    """Draw how often rows of each class (down) were taken for each class (across), and the accuracy.

    ``truth`` and ``predicted`` (rows,) hold classes: numbers, texts, whatever ``classes`` has, which gives their order
    (default: all that occur, ascending). Colours are shares of a row, for rare classes, and by their roots, for rare
    mistakes.

    Raises ``ValueError`` where the shapes do not fit, or one holds what is not in ``classes``.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        raise ValueError(f"truth and predicted must both be (rows,), rows > 0; got {truth.shape}, {predicted.shape}")
    names = np.unique(np.concatenate([truth, predicted])).tolist() if classes is None else list(classes)
    counts = confusion_counts(_places(truth, names, "truth"), _places(predicted, names, "predicted"), len(names))
    from matplotlib.colors import PowerNorm

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [str(name) if len(str(name)) <= 20 else f"{str(name)[:18]}…" for name in names]
    longest = max(map(len, texts)) if len(names) <= _MOST_NAMES else 0
    side = min(max(3.6, 0.55 * len(names) + 1.6), 9.0) + 0.08 * longest
    figure = _figure(side, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if len(names) > _MOST_NUMBERS:
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class").outline.set_visible(False)
    else:
        size = min(10.0, 160 / max(len(names), len(str(counts.max())) * 3))
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.3 else "#444444"
            axes.text(column, row, f"{count:,}" if count else "·", ha="center", va="center", color=color, fontsize=size)
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), texts, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(len(names)), texts)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"Accuracy {np.diagonal(counts).sum() / counts.sum():.2%} of {counts.sum():,} rows")
    return figure


def _places(labels: Array, names: Sequence[Any], argument: str) -> Array:
    places = {name: place for place, name in enumerate(names)}
    found = [places.get(label, -1) for label in labels.tolist()]
    if -1 in found:
        row = found.index(-1)
        raise ValueError(f"{argument} must hold classes of {names}; row {row} holds {labels[row].item()!r}")
    return np.array(found, np.int64)


@styled
def predicted_and_true(truth: Any, predicted: Any, names: Sequence[str] = ()) -> Figure:
    """Draw predicted against true values (rows,) or (rows, out), a panel for each of the outputs called ``names``.

    The closer to the line, the better; of very many rows evenly spaced ones are shown. ``ValueError`` where the shapes
    do not fit.
    """
    truth, predicted = (np.asarray(values) for values in (truth, predicted))
    if truth.shape != predicted.shape or truth.ndim not in (1, 2) or not len(truth):
        raise ValueError(f"truth and predicted must be of one shape (rows, out); got {truth.shape}, {predicted.shape}")
    truth, predicted = truth.reshape(len(truth), -1), predicted.reshape(len(truth), -1)
    shown = slice(None, None, math.ceil(len(truth) / _MOST_POINTS))
    figure = _figure(4.2 * truth.shape[1], 4.2)
    for output, axes in enumerate(figure.subplots(1, truth.shape[1], squeeze=False)[0]):
        across, up = truth[shown, output], predicted[shown, output]
        size = 14 if len(across) < 1000 else 4
        axes.scatter(across, up, s=size, color=_TRAINING, alpha=0.5 if size == 14 else 0.2, linewidths=0)
        both = np.concatenate([across, up])
        axes.axline((both.min(), both.min()), slope=1, color="#444444", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_aspect("equal", "datalim")
        axes.set_title(names[output] if output < len(names) else "Values")
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")
    return figure


@styled
def first_layer_weights(net: Any, shape: tuple[int, int] = (28, 28), units: int = 100) -> Figure:
    """Draw what hidden units look for: each one's weights w1 as an image of ``shape`` (height, width), as tiles.

    ``net`` is a :class:`twolayer.TwoLayerNet` or equal ``nn.Sequential``, a :class:`twolayer.NumpyNet`, or the weights
    (hidden, height · width) themselves. The first ``units`` are shown, each scaled by its own largest weight: blue is
    negative, red positive, white zero. ``ValueError`` where the inputs are not such images.
    """
    weights = net if isinstance(net, np.ndarray) else _first_weights(net)
    if weights.ndim != 2 or weights.shape[1] != math.prod(shape):
        raise ValueError(f"net must have {shape[0]} × {shape[1]} inputs, as shape says; its w1 is {weights.shape}")
    shown = weights[:units]
    across = math.ceil(math.sqrt(len(shown) * shape[0] / shape[1]))
    down = math.ceil(len(shown) / across)
    tiles = np.full((down * across, shape[0] + 1, shape[1] + 1), np.nan)  # a gap beside and below each
    largest = np.abs(shown).max(axis=1, keepdims=True)
    tiles[: len(shown), :-1, :-1] = (shown / np.where(largest > 0, largest, 1)).reshape(-1, *shape)
    picture = tiles.reshape(down, across, *tiles.shape[1:]).swapaxes(1, 2).reshape(down * tiles.shape[1], -1)
    scale = 7 / max(picture.shape)
    figure = _figure(max(2.5, picture.shape[1] * scale), max(2.5, picture.shape[0] * scale) + 0.5)
    axes = figure.subplots()
    axes.imshow(picture[:-1, :-1], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    of = "" if len(shown) == len(weights) else f" of {len(weights)}"
    axes.set_title(f"Weights of {len(shown)}{of} hidden units")
    return figure


def _first_weights(net: Any) -> Array:
    from .training.parameters import parameters_of_net

    return np.asarray(parameters_of_net(net).arrays()[0])
