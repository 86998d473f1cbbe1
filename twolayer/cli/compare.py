"""``twolayer compare``: the tutorial's two tasks, or one's own, trained by every program, in one table."""

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

from ..registry import ACTIVATIONS
from .arguments import positive_float, positive_int, seed
from .own_data import SUFFIXES

if TYPE_CHECKING:
    from ..data import MNIST
    from ..programs.problem import Problem
    from .measure import TaskResult

EXTRA = "pip install 'twolayer[demo]'"
TASKS = ("all", "regression", "classification")


def add_command(commands: Any) -> None:
    """Add ``compare`` to the argparse subcommands."""
    parser = commands.add_parser(
        "compare",
        help="train the same net with NumPy, torch, scikit-learn and natively, and compare",
        description="Train the same two-layer net with NumPy, torch, scikit-learn and natively, from the same initial "
        "weights and on the same batches, and compare losses, accuracy and speed. Exit code 1: native training failed.",
    )
    add = parser.add_argument
    add(
        "--task",
        type=_task,
        default="all",
        metavar="TASK",
        help=f"{', '.join(TASKS)}, or a file of your own: .npz with x and y (and x_test and y_test), or .csv whose "
        "last column is y; whole numbers in y are classes, others are values (default: %(default)s)",
    )
    add("--epochs", type=positive_int, metavar="N", help="of the classification or a file (default: 30; 3 if --quick)")
    add("--steps", type=positive_int, metavar="N", help="of the regression (default: 500)")
    add(
        "--activation",
        choices=tuple(ACTIVATIONS),
        default="relu",
        help="of the regression, relu or identity, or of a file (default: %(default)s)",
        metavar="NAME",
    )
    add("--seed", type=seed, default=0, metavar="N", help="of data and initial weights (default: %(default)s)")
    add("--threads", type=positive_int, metavar="N", help="default: all cores this process may use")
    add("--data", type=Path, metavar="PATH", help="MNIST as a folder or file (default: search, download, or digits)")
    add("--out", type=Path, default=Path("compare-out"), metavar="FOLDER", help="for the report (default: %(default)s)")
    add("--quick", action="store_true", help="a part of the data, fewer epochs, no torch.compile: half a minute")
    own = parser.add_argument_group("for a --task of your own").add_argument
    own("--hidden", type=positive_int, metavar="N", help="units in the hidden layer (default: 100)")
    own("--optimizer", choices=("sgd", "adam"), help="default: sgd")
    own("--lr", type=positive_float, metavar="RATE", help="default: 0.01 by sgd, 0.001 by adam")
    own("--batch-size", type=positive_int, metavar="N", help="default: 64")
    parser.set_defaults(run=lambda options: run(options, parser.error))


def _task(text: str) -> str:
    if text not in TASKS and Path(text).suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"expected {', '.join(TASKS)}, or a .npz or .csv file; got {text!r}")
    return text


def run(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    """Run the comparison and write its report; returns 1 if native training failed, else 0.

    ``fail`` is called with one line when data, threads or the output folder are not usable.
    """
    from ..reporting.tables import machine_line
    from . import report
    from .measure import run_task
    from .methods import table_for
    from .progress import open_progress

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        machine = _machine(options.threads)
        problems = _problems(options, machine["threads"])
    except (OSError, ValueError, ImportError) as error:
        fail(str(error))
    print(machine_line(machine))
    results = []
    with _threads(machine["threads"]):
        for problem in problems:
            print(f"\n{problem.task}: {problem.summary}\n  on {problem.data}", flush=True)
            table = table_for(problem).without_compiling() if options.quick else table_for(problem)
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
    from . import own_data, problems

    _check_belonging(options)
    shared = {"seed": options.seed, "threads": threads, "quick": options.quick}
    if options.task not in TASKS:
        path = Path(options.task)
        names = ("hidden", "activation", "optimizer", "lr", "batch_size", "epochs")
        chosen = {name: value for name in names if (value := getattr(options, name)) is not None}
        return [problems.own(own_data.load(path), path.name, problems.OwnOptions(**chosen), **shared)]
    found = []
    if options.task != "classification":
        found.append(problems.regression(steps=options.steps, activation=options.activation, **shared))
    if options.task != "regression":
        found.append(problems.classification(_digits(options.data), epochs=options.epochs, **shared))
    return found


def _check_belonging(options: argparse.Namespace) -> None:
    """Refuse options that the task has no use for."""
    own = options.task not in TASKS
    for name in ("steps", "data") if own else ("hidden", "optimizer", "lr", "batch_size"):
        if getattr(options, name) is not None:
            whose = "the tutorial's tasks" if own else "a file of your own"
            raise ValueError(f"argument --{name.replace('_', '-')}: is for {whose}, and --task is {options.task}")
    if not own and options.activation not in ("relu", "identity"):
        raise ValueError(f"argument --activation: the regression takes relu or identity; got {options.activation!r}")


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
