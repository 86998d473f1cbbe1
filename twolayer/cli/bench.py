"""``twolayer bench``: what the library is worth on this machine, against others and against the machine's limits."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ..bench.document import CaseResult

CASE_NAMES = (
    *("digits", "dense", "bfloat16", "regression", "tiny", "grid-8", "grid-64", "grid-784"),
    *("module-forward", "module-backward", "module-step", "inference"),
    *("optimizers", "threads", "many", "busy", "widths", "memory", "startup"),
)


def add_command(commands: Any) -> None:
    """Add ``bench`` to the argparse subcommands."""
    parser = commands.add_parser(
        "bench",
        help="time training and inference against other libraries and the machine's limits",
        description="Measure the machine's limits, then time training and inference natively and by other libraries, "
        "in turns, each verified before it is timed. Exit code 1: an implementation of twolayer's failed or was wrong.",
    )
    add = parser.add_argument
    add("cases", nargs="*", type=_case, metavar="CASE", help=f"default: all of {', '.join(CASE_NAMES)}")
    add("--quick", action="store_true", help="fewer turns and cells: a minute and a half")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write bench.json, bench.md and pictures to FOLDER; cases that its bench.json has from this machine stay",
    )
    parser.set_defaults(run=lambda options: run(options, parser.error))


def _case(text: str) -> str:
    if text not in CASE_NAMES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(CASE_NAMES)}; got {text!r}")
    return text


def run(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    """Run the cases and write what was asked for; returns 1 if a row of twolayer's is an error, else 0.

    ``fail`` is called with one line when the folder or file is not usable.
    """
    from ..bench import document, report
    from ..bench.run import run as run_cases
    from ..reporting.tables import machine_line

    try:
        machine = document.machine()
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
        if options.json and not options.json.parent.is_dir():
            raise FileNotFoundError(f"argument --json: there is no folder {options.json.parent}")
    except (OSError, ValueError) as error:
        fail(str(error))
    print(machine_line(machine))

    def done(result: CaseResult) -> None:
        report.print_case(document.as_case(result))

    found = run_cases(
        options.cases or CASE_NAMES,
        quick=options.quick,
        measured=report.print_limits,
        begin=lambda name, title: print(f"\n{name}: {title}", flush=True),
        done=done,
    )
    if len(found["cases"]) > 1:
        report.print_verdicts(found)
    if options.json:
        options.json.write_text(document.as_json(found), encoding="utf-8")
    if options.out:
        _write(options.out, found)
    rows = [row for case in found["cases"].values() for row in case["rows"]]
    return int(any(row["error"] and row["implementation"] in report.OURS for row in rows))


def _write(folder: Path, found: dict[str, Any]) -> None:
    from ..bench import document, report

    path = folder / "bench.json"
    if path.exists() and document.same_machine(earlier := document.read(path), found):
        found = document.merged(earlier, found)
    if importlib.util.find_spec("matplotlib"):
        from ..bench.plots import draw

        pictures = draw(found, folder)
    else:
        pictures = []
        print("no pictures were drawn: matplotlib is not installed (pip install 'twolayer[bench]')")
    path.write_text(document.as_json(found), encoding="utf-8")
    (folder / "bench.md").write_text(report.as_markdown(found, pictures), encoding="utf-8")
    print(f"\nwritten to {folder}: {', '.join(['bench.json', 'bench.md', *pictures])}")
