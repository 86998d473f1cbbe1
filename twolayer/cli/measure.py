"""Runs a task's programs against the clock and against the float64 reference, and gives one row for each."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from ..programs.problem import Problem, TimedRun, Train
from ..reference import numpy as numpy_reference
from ..reference.run import OnEpoch, Run
from .methods import Course, Method, MethodTable
from .progress import Progress


@dataclass(frozen=True)
class Row:
    """A program's figures, None where there are none; ``error`` says why a program failed."""

    name: str
    final_loss: float | None = None
    tutorial_loss: float | None = None
    accuracy: float | None = None  # share of the test images, 0 to 1
    max_deviation: float | None = None  # see ``deviation``
    us_per_step: float | None = None
    seconds: float | None = None
    speedup: float | None = None  # over the baseline
    error: str | None = None


@dataclass(frozen=True)
class TaskResult:
    """A task's rows, in the table's order, and what the plots need."""

    problem: Problem
    table: MethodTable
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    losses: Mapping[str, Sequence[float]]  # by row name
    references: Mapping[Course, Sequence[float]]  # the float64 loss curves

    @property
    def native_error(self) -> str | None:
        return next(row.error for row in self.rows if row.name == self.table.native)

    def reference_of(self, name: str) -> Sequence[float] | None:
        """The float64 loss curve from the initial weights, and by the optimiser, of the row called ``name``."""
        return self.references.get(self.table.named(name).course)


def deviation(losses: Sequence[float], reference: Sequence[float], loss: str) -> np.ndarray:
    """How far each loss is from the reference's, relative to the reference's largest.

    Sums of squares are compared by their root, the norm of the residual. Rounding is linear in it, so this stays small
    in float32; the loss itself falls by twelve orders of magnitude, to where float32 leaves of it only rounding noise.
    """
    curve, truth = np.asarray(losses, np.float64), np.asarray(reference, np.float64)
    if loss == "mse_sum":
        curve, truth = np.sqrt(curve), np.sqrt(truth)
    return np.abs(curve - truth) / np.abs(truth).max()


@dataclass
class _Trial:
    """What is known so far of one program."""

    method: Method
    losses: list[float] | None = None
    accuracy: float | None = None
    seconds: list[float] = field(default_factory=list)  # per round
    warm_up_seconds: float = 0.0
    error: str | None = None

    @property
    def name(self) -> str:
        return self.method.name

    def warm_up(self, problem: Problem) -> None:
        started = perf_counter()
        self.method.prepared(problem.warm_up())(None)
        self.warm_up_seconds = perf_counter() - started

    def train(self, problem: Problem, report: Callable[[int, float], None]) -> None:
        """Train once; ``report(epochs, loss)`` says how many more epochs are done."""
        train = self.method.prepared(problem)
        if problem.rounds == 1:
            run, seconds = _timed(train, lambda epoch, loss: report(1, loss))
        else:  # rounds are for runs of a fraction of a second, not to be interrupted
            run, seconds = _timed(train, None)
            report(problem.epochs, run.losses[-1])
        _check_finite(run.losses)
        self.losses, self.accuracy = run.losses, _accuracy(run, problem)
        self.seconds.append(seconds)


def run_task(problem: Problem, table: MethodTable, progress: Progress) -> TaskResult:
    """Warm every program up, run each ``problem.rounds`` times in turns, and compare.

    What a program raises becomes its row's ``error``; the others still run.
    """
    rivals = [_Trial(method) for method in table.methods]
    trials = [_Trial(method) for method in _further_references(table)] + rivals
    progress.begin([trial.name for trial in trials], total=problem.rounds * problem.epochs)
    for trial in trials:
        progress.update(trial.name, 0, "compiling" if trial.method.compiles else "warming up")
        with _errors_kept(trial, progress):
            trial.warm_up(problem)
            progress.update(trial.name, 0, "ready")
    for _ in range(problem.rounds):
        for trial in trials:
            if trial.error is None:
                with _errors_kept(trial, progress):
                    trial.train(problem, _reporter(trial.name, progress))
                    if len(trial.seconds) == problem.rounds:
                        progress.finish(trial.name, _figures(trial, problem))
    references = _references(table, trials)
    return TaskResult(
        problem=problem,
        table=table,
        rows=tuple(_rows(problem, table, rivals, references)),
        notes=(*problem.notes, *_notes(problem, rivals)),
        losses={trial.name: trial.losses for trial in rivals if trial.losses and trial.error is None},
        references=references,
    )


@contextmanager
def _errors_kept(trial: _Trial, progress: Progress) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a program may fail in any way; its row says how
        lines = str(error).strip().splitlines()
        trial.error = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        progress.finish(trial.name, f"failed: {trial.error}")


def _reporter(name: str, progress: Progress) -> Callable[[int, float], None]:
    return lambda epochs, loss: progress.update(name, epochs, f"loss {loss:.4g}")


def _timed(train: Train, on_epoch: OnEpoch | None) -> tuple[Run, float]:
    """The run and its seconds, less those that ``on_epoch`` took; or those that it took itself."""
    reporting = 0.0

    def timed_on_epoch(epoch: int, loss: float) -> None:
        nonlocal reporting
        entered = perf_counter()
        if on_epoch:
            on_epoch(epoch, loss)
        reporting += perf_counter() - entered

    started = perf_counter()
    outcome = train(timed_on_epoch if on_epoch else None)
    if isinstance(outcome, TimedRun):
        return outcome.run, outcome.seconds
    return outcome, perf_counter() - started - reporting


def _check_finite(losses: Sequence[float]) -> None:
    wrong = np.flatnonzero(~np.isfinite(losses))
    if wrong.size:
        raise FloatingPointError(f"the loss became {losses[wrong[0]]} in epoch {wrong[0] + 1}")


def _accuracy(run: Run, problem: Problem) -> float | None:
    if problem.test is None:
        return None
    x, labels = problem.test
    z, _, _ = numpy_reference.forward(x, run.w1, run.b1, run.w2, run.b2, problem.activation)
    return float(np.mean(z.argmax(axis=1) == labels))


def _further_references(table: MethodTable) -> list[Method]:
    """The reference on those courses that its own row does not take."""
    reference = table.named(table.reference)
    courses = dict.fromkeys(method.course for method in table.methods if method.course != reference.course)
    return [
        dataclasses.replace(reference, name=f"{reference.name}, {course}", **course._asdict()) for course in courses
    ]


def _references(table: MethodTable, trials: Sequence[_Trial]) -> dict[Course, list[float]]:
    prepare = table.named(table.reference).prepare
    return {
        trial.method.course: trial.losses
        for trial in trials
        if trial.method.prepare is prepare and trial.losses and trial.error is None
    }


def _us_per_step(trial: _Trial, problem: Problem) -> float:
    return statistics.median(trial.seconds) / problem.steps * 1e6


def _figures(trial: _Trial, problem: Problem) -> str:
    return f"{statistics.median(trial.seconds):.2f} s, {_us_per_step(trial, problem):,.0f} µs/step"


def _rows(
    problem: Problem, table: MethodTable, trials: Sequence[_Trial], references: Mapping[Course, Sequence[float]]
) -> Iterator[Row]:
    baseline = next(trial for trial in trials if trial.name == table.baseline)
    for trial in trials:
        method = trial.method
        if trial.error is not None or trial.losses is None:
            yield Row(method.name, tutorial_loss=method.printed, error=trial.error)
            continue
        reference = references.get(method.course)
        us_per_step = _us_per_step(trial, problem)
        yield Row(
            name=method.name,
            final_loss=trial.losses[-1],
            tutorial_loss=method.printed,
            accuracy=trial.accuracy,
            max_deviation=float(deviation(trial.losses, reference, problem.loss).max()) if reference else None,
            us_per_step=us_per_step,
            seconds=statistics.median(trial.seconds),
            speedup=_us_per_step(baseline, problem) / us_per_step if baseline.error is None else None,
        )


def _notes(problem: Problem, trials: Sequence[_Trial]) -> Iterator[str]:
    if problem.loss == "mse_sum":
        of_what = "√loss, the norm of the residual,"
        yield "In float32 the loss levels off where the residual is rounding noise; in float64 it goes on falling."
    else:
        of_what = "the loss"
    yield f"Deviation: the largest difference of {of_what} from the float64 reference's, over the latter's largest."
    if problem.rounds > 1:
        yield f"Times are the median of {problem.rounds} runs, all programs in turns."
    for trial in trials:
        if trial.method.note:
            yield f"{trial.name}: {trial.method.note}."
        if trial.method.compiles and trial.error is None:
            yield f"{trial.name}: compiling took {trial.warm_up_seconds:.1f} s, not counted."
