"""``twolayer predict``: classes or values for a file of one's own, by a net that ``twolayer train`` saved."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..reporting.strict_json import dumps
from .data_options import DATA_HELP, Refused, add_data_options, read_for

Array = NDArray[Any]

_ROWS = 4096  # written together


def add_command(commands: Any) -> None:
    """Add ``predict`` to the argparse subcommands."""
    parser = commands.add_parser(
        "predict",
        help="predict for a file of your own with a net that train saved",
        usage="twolayer predict MODEL DATA [--out FILE] [options]",
        description="Predict a class or values for each row of DATA. Columns are found by their names, where they have "
        "names; others, the target's too, are left out.",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="what twolayer train wrote, also a checkpoint")
    add("data", type=Path, metavar="DATA", help=DATA_HELP)
    add("--out", type=Path, metavar="FILE", help="CSV, Parquet (.parquet) or .npy to write (default: CSV on stdout)")
    add("--probabilities", action="store_true", help="a column for the probability of each class too")
    add("--json", action="store_true", help="print what was done as JSON; needs --out")
    add_data_options(parser, target=None)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Predict and write; returns 0, or 1 when the predictions could not be written. ``Refused`` when data are wrong."""
    from ..model_file import load_model, probabilities

    try:
        if options.json and options.out is None:
            raise ValueError("argument --json: needs --out, as the predictions themselves go to standard output")
        _check_out(options)
        model = load_model(options.model)
        table = read_for(model, options.data, options, targets=False)
        if options.probabilities and model.target.classes is None:
            raise ValueError("argument --probabilities: the net predicts values, which have none")
        outputs = _outputs(model, table, options.data)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise Refused(str(error)) from error
    columns = _named(model, model.target.decode(outputs))
    if options.probabilities:
        classes = model.target.classes or ()
        columns |= {f"probability {name}": p for name, p in zip(classes, probabilities(outputs).T, strict=True)}
    try:
        _write(options.out, columns)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"twolayer predict: error: {error}", file=sys.stderr)
        return 1
    if options.json:
        found = {"model": str(options.model), "rows": len(table), "columns": list(columns), "out": str(options.out)}
        print(dumps(found, indent=None))
    return 0


def _check_out(options: argparse.Namespace) -> None:
    out = options.out
    if out is None:
        return
    if out.resolve() in (options.data.resolve(), options.model.resolve()):
        raise ValueError(f"argument --out: {out} is what is read")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"argument --out: there is no folder {out.parent}")
    if out.suffix == ".parquet":
        from ..extras import require

        require("pandas", "writing Parquet", "cli")
        require("pyarrow", "writing Parquet", "cli")


def _outputs(model: Any, table: Any, path: Path) -> Array:
    try:
        return model.outputs(table.inputs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _named(model: Any, predicted: Array) -> dict[str, Array]:
    """The predictions by column: called as the target was, or ``prediction``."""
    predicted = predicted.reshape(len(predicted), -1)
    names: Sequence[str] = model.target.names
    if len(names) != predicted.shape[1]:
        count = predicted.shape[1]
        names = ["prediction"] if count == 1 else [f"prediction {number}" for number in range(count)]
    return dict(zip(names, predicted.T, strict=True))


def _write(out: Path | None, columns: dict[str, Array]) -> None:
    from ..atomic import replacing

    if out is not None and out.suffix == ".npy":
        arrays = list(columns.values())
        with replacing(out) as file:
            np.save(file, arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1), allow_pickle=False)
    elif out is not None and out.suffix == ".parquet":
        import pandas

        with replacing(out) as file:
            pandas.DataFrame(columns).to_parquet(file, engine="pyarrow", index=False)
    else:
        with _text(out) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            arrays = list(columns.values())
            for first in range(0, len(arrays[0]), _ROWS):
                writer.writerows(zip(*(array[first : first + _ROWS].tolist() for array in arrays), strict=True))


@contextmanager
def _text(out: Path | None) -> Iterator[IO[str]]:
    from ..atomic import replacing

    if out is None:
        yield sys.stdout
        sys.stdout.flush()
    else:
        with replacing(out, text=True) as file:
            yield file
