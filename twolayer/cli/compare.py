"""``twolayer compare``: the tutorial's two tasks, trained by every program, in one table."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ..data import MNIST
    from .measure import TaskResult
    from .problems import Problem

EXTRA = "pip install 'twolayer[demo]'"
TASKS = ("regression", "classification")


def add_command(commands: Any) -> None:
    """Add ``compare`` to the argparse subcommands."""
    parser = commands.add_parser(
        "compare",
        help="train the same net with NumPy, torch, scikit-learn and natively, and compare",
        description="Train the same two-layer net with NumPy, torch, scikit-learn and natively, from the same initial "
        "weights and on the same batches, and compare losses, accuracy and speed. Exit code 1: native training failed.",
    )
    add = parser.add_argument
    add("--task", choices=("all", *TASKS), default="all", help="default: %(default)s")
    add("--epochs", type=_positive_int, metavar="N", help="of the classification (default: 30; 3 with --quick)")
    add("--steps", type=_positive_int, metavar="N", help="of the regression (default: 500)")
    add("--activation", choices=("relu", "identity"), default="relu", help="of the regression (default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="N", help="of data and initial weights (default: %(default)s)")
    add("--threads", type=_positive_int, metavar="N", help="default: all cores this process may use")
    add("--data", type=Path, metavar="PATH", help="MNIST as a folder or file (default: search, download, or digits)")
    add("--out", type=Path, default=Path("compare-out"), metavar="FOLDER", help="for the report (default: %(default)s)")
    add("--quick", action="store_true", help="a part of the data, fewer epochs, no torch.compile: half a minute")
    parser.set_defaults(run=lambda options: run(options, parser.error))


def _positive_int(text: str) -> int:
    return _int_from(text, 1)


def _seed(text: str) -> int:
    return _int_from(text, 0)


def _int_from(text: str, least: int) -> int:
    most = 2**63 - 1
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
    return number


def run(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    """Run the comparison and write its report; returns 1 if native training failed, else 0.

    ``fail`` is called with one line when data, threads or the output folder are not usable.
    """
    from . import report
    from .measure import run_task
    from .methods import TABLES
    from .progress import open_progress

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        machine = _machine(options.threads)
        problems = _problems(options, machine["threads"])
    except (OSError, ValueError, ImportError) as error:
        fail(str(error))
    print(report.machine_line(machine))
    results = []
    with _threads(machine["threads"]):
        for problem in problems:
            print(f"\n{problem.task}: {problem.summary}\n  on {problem.data}", flush=True)
            table = TABLES[problem.task].without_compiling() if options.quick else TABLES[problem.task]
            with open_progress() as progress:
                result = run_task(problem, table, progress)
            report.print_result(result)
            results.append(result)
    _write_report(options.out, machine, results)
    return int(any(result.native_error for result in results))


def _machine(threads: int | None) -> dict[str, Any]:
    from .. import info

    known = info()
    return {
        "cpu": known["cpu"],
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads or known["threads"],
        "isa": known["isa"]["in_use"],
        "versions": known["versions"],
    }


def _problems(options: argparse.Namespace, threads: int) -> list[Problem]:
    from . import problems

    shared = {"seed": options.seed, "threads": threads, "quick": options.quick}
    chosen = []
    if options.task != "classification":
        chosen.append(problems.regression(steps=options.steps, activation=options.activation, **shared))
    if options.task != "regression":
        chosen.append(problems.classification(_digits(options.data), epochs=options.epochs, **shared))
    return chosen


def _digits(path: Path | None) -> MNIST:
    from ..data import load_mnist_or_digits

    @functools.cache
    def announce(name: str) -> None:
        print(f"downloading {name}", flush=True)

    return load_mnist_or_digits(path, notify=print, progress=lambda name, done, total: announce(name))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give torch, and with threadpoolctl (it comes with scikit-learn) NumPy, ``count`` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        if importlib.util.find_spec("threadpoolctl"):
            with importlib.import_module("threadpoolctl").threadpool_limits(limits=count):
                yield
        else:
            print(f"NumPy chooses its own number of threads: threadpoolctl is not installed ({EXTRA})")
            yield
    finally:
        torch.set_num_threads(before)


def _write_report(folder: Path, machine: dict[str, Any], results: list[TaskResult]) -> None:
    from . import report

    if importlib.util.find_spec("matplotlib"):
        from . import plots

        pictures = plots.draw(results, folder)
    else:
        pictures = []
        print(f"no pictures were drawn: matplotlib is not installed ({EXTRA})")
    (folder / "compare.md").write_text(report.as_markdown(machine, results, pictures), encoding="utf-8")
    (folder / "compare.json").write_text(report.as_json(machine, results), encoding="utf-8")
    print(f"\nwritten to {folder}: {', '.join(['compare.md', 'compare.json', *pictures])}")
