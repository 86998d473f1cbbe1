"""``twolayer plot``: pictures of a net that ``twolayer train`` saved, and of how its training went."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .data_options import Refused


def add_command(commands: Any) -> None:
    """Add ``plot`` to the argparse subcommands."""
    parser = commands.add_parser(
        "plot",
        help="draw a saved net's learning curve and first-layer weights",
        usage="twolayer plot MODEL [--out FOLDER]",
        description="Draw the learning curve, and of a net trained on images, what its hidden units look for.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="what twolayer train wrote, also a checkpoint")
    add("--out", type=Path, default=Path("."), metavar="FOLDER", help="for the pictures (default: this folder)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw; returns 0, or 1 when a picture could not be written. ``Refused`` when the model is not usable."""
    from ..extras import require
    from ..model_file import load_model

    try:
        require("matplotlib", "twolayer plot", "cli")
        model = load_model(options.model)
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise Refused(str(error)) from error
    from .. import plotting
    from .pictures import save_picture

    pictures = {"learning_curve.png": plotting.learning_curve(model.history)}
    if len(model.inputs.row_shape) == 2:
        pictures["first_layer_weights.png"] = plotting.first_layer_weights(model.net, model.inputs.row_shape)
    try:
        for name, figure in pictures.items():
            save_picture(options.out / name, figure)
    except OSError as error:
        print(f"twolayer plot: error: {error}", file=sys.stderr)
        return 1
    print(f"written to {options.out}: {', '.join(pictures)}")
    return 0
