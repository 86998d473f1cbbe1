"""``twolayer evaluate``: how good a net that ``twolayer train`` saved is on a file whose targets are known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..reporting.strict_json import dumps
from .data_options import DATA_HELP, Refused, add_data_options, read_for
from .in_words import metrics_line

_MOST_CLASSES = 30  # that a table is printed of


def add_command(commands: Any) -> None:
    """Add ``evaluate`` to the argparse subcommands."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a net that train saved on a file with known targets",
        usage="twolayer evaluate MODEL DATA [--picture FILE] [options]",
        description="Measure accuracy, and precision and recall of each class, or R², RMSE and mean absolute error.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="what twolayer train wrote, also a checkpoint")
    add("data", type=Path, metavar="DATA", help=DATA_HELP)
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw the confusion matrix, or predicted against true values (.png, .svg, .pdf)",
    )
    add("--json", action="store_true", help="print the result as JSON")
    add_data_options(parser, target="where the targets are (default: where they were for training)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print; returns 0, or 1 when the picture could not be written. ``Refused`` when data are wrong."""
    from ..extras import require
    from ..metrics import class_metrics, confusion_counts, value_metrics
    from ..model_file import load_model

    try:
        if options.picture:
            require("matplotlib", "--picture", "cli")
            if not options.picture.parent.is_dir():
                raise FileNotFoundError(f"argument --picture: there is no folder {options.picture.parent}")
        model = load_model(options.model)
        table = read_for(model, options.data, options, targets=True)
        target, classes = model.target, model.target.classes
        try:
            truth = target.numbered(table.targets) if classes is not None else target.values(table.targets)
            outputs = model.outputs(table.inputs)
        except ValueError as error:
            raise ValueError(f"{options.data}: {error}") from error
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise Refused(str(error)) from error
    found: dict[str, Any] = {"model": str(options.model), "rows": len(table), "task": target.task}
    if classes is not None:
        counts = confusion_counts(truth, outputs.argmax(axis=1), len(classes))
        found |= class_metrics(counts) | {"classes": list(classes), "confusion": counts.tolist()}
    else:
        predicted = target.decode(outputs)
        found |= value_metrics(truth, predicted)
    if options.picture:
        from .. import plotting
        from .pictures import save_picture

        if classes is not None:
            named = [np.array(classes)[numbers] for numbers in (truth, outputs.argmax(axis=1))]
            figure = plotting.confusion_matrix(named[0], named[1], classes)
        else:
            figure = plotting.predicted_and_true(truth, predicted, target.names)
        try:
            save_picture(options.picture, figure)
        except OSError as error:
            print(f"twolayer evaluate: error: {error}", file=sys.stderr)
            return 1
    if options.json:
        print(dumps(found, indent=None))
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    from ..reporting.tables import print_table

    print(f"{found['rows']:,} rows: {metrics_line(found)}")
    if 0 < len(found.get("classes", ())) <= _MOST_CLASSES:
        rows = [
            [str(name), f"{sum(counts):,}", _percent(precision), _percent(recall)]
            for name, counts, precision, recall in zip(
                found["classes"], found["confusion"], found["precision"], found["recall"], strict=True
            )
        ]
        print_table(["class", "rows", "precision", "recall"], rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
