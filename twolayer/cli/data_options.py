"""The options that say how to read a file of one's own, shared by ``train``, ``predict`` and ``evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..data.table import FORMATS, Reading, Table, format_of, read_table
from ..model_file import Model

DATA_HELP = "CSV, Parquet, .npy, .npz, IDX (MNIST's format) or svmlight, as it is or gzipped"


class Refused(Exception):
    """An option, the data or a file is wrong, and nothing was done: exit code 2, with this line."""


def add_data_options(parser: argparse.ArgumentParser, *, target: str | None) -> None:
    """Add them, as a group; ``target`` is the help of ``--target``, None where there is no such option."""
    add = parser.add_argument_group("reading the data").add_argument
    if target is not None:
        add("--target", action="append", default=[], metavar="COLUMN", help=target)
    add("--drop", action="append", default=[], metavar="COLUMN", help="a column to leave out; may be given repeatedly")
    add("--inputs", metavar="NAME", help="of .npz: the array of inputs (default: x beside y, x_test beside y_test …)")
    add("--format", choices=FORMATS, metavar="NAME", help=f"{', '.join(FORMATS)} (default: told by the file)")
    add("--separator", metavar="TEXT", help="of CSV, between columns (default: a comma; a tab in .tsv)")
    add("--no-header", action="store_true", help="the CSV's first line is data; its columns are called 0, 1, 2 …")


def reading_of(options: argparse.Namespace) -> Reading:
    """What the options say about reading."""
    return Reading(
        targets=tuple(getattr(options, "target", ())),
        drop=tuple(options.drop),
        inputs=options.inputs,
        format=options.format,
        header=not options.no_header,
        separator=options.separator,
    )


def read_for(model: Model, path: Path, options: argparse.Namespace, *, targets: bool) -> Table:
    """Read data for a trained net: as it was for training, where the options do not say otherwise.

    Errors are those of ``read_table``.
    """
    given = reading_of(options)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    format = given.format or format_of(path)
    before: dict[str, Any] = model.training.get("reading", {})
    kept: dict[str, Any] = {}
    if before.get("format") == format:
        kept = {"header": before["header"], "separator": before["separator"], "targets": tuple(before["targets"])}
        kept["drop"] = tuple(before["drop"]) if model.inputs.columns is None else ()  # names are left out by themselves
    elif format in ("csv", "parquet"):
        kept["targets"] = model.target.names
    chosen = {name: value for name, value in dataclasses.asdict(given).items() if value != getattr(Reading(), name)}
    known = {"features": model.inputs.features, "zero_based": model.inputs.zero_based}
    return read_table(path, Reading(**{**kept, **known, **chosen, "format": format}), targets=targets)
