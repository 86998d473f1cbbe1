"""The comparison's result as a table on the terminal, as Markdown and as JSON; all three from the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..reporting.strict_json import dumps
from ..reporting.tables import machine_line, markdown_table, print_table
from .measure import Row, TaskResult

Format = Callable[[float], str]


def _columns(result: TaskResult) -> list[tuple[str, str, Format]]:
    """Heading, field of ``Row`` and format of each column of numbers."""
    return [
        ("final loss", "final_loss", lambda value: f"{value:.4g}"),
        ("tutorial printed", "tutorial_loss", lambda value: f"{value:.5g}"),
        ("test accuracy", "accuracy", lambda value: f"{value:.2%}"),
        ("largest deviation", "max_deviation", lambda value: f"{value:.1e}" if value else "0"),
        ("µs per step", "us_per_step", lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}"),
        ("seconds", "seconds", lambda value: f"{value:.3g}"),
        (f"× {result.table.baseline}", "speedup", lambda value: f"{value:.2f}"),
    ]


def _cells(result: TaskResult) -> tuple[list[str], list[list[str]]]:
    """The table's headings and rows as text, without columns that are empty throughout."""
    columns = [column for column in _columns(result) if any(getattr(row, column[1]) is not None for row in result.rows)]
    rows = [[row.name, *(_cell(row, field, text) for _, field, text in columns)] for row in result.rows]
    return ["program", *(heading for heading, _, _ in columns)], rows


def _cell(row: Row, field: str, text: Format) -> str:
    value = getattr(row, field)
    return "–" if value is None else text(value)


def _footnotes(result: TaskResult) -> list[str]:
    failures = [f"{row.name} failed: {row.error}" for row in result.rows if row.error]
    return [*failures, *result.notes]


def _title(result: TaskResult) -> str:
    return f"{result.problem.title}: {result.problem.summary}"


def print_result(result: TaskResult) -> None:
    """Print a task's table, with rich when it is installed."""
    headings, rows = _cells(result)
    print()
    print_table(headings, rows, bold=(result.table.native,))
    print("\n".join(f"  {note}" for note in _footnotes(result)), flush=True)


def as_markdown(machine: Mapping[str, Any], results: Sequence[TaskResult], pictures: Sequence[str]) -> str:
    """The whole comparison as a Markdown page; ``pictures`` are file names beside it."""
    parts = ["# The same two-layer net, trained in many ways", machine_line(machine)]
    for result in results:
        parts += [f"## {_title(result)}", f"Data: {result.problem.data}.", markdown_table(*_cells(result))]
        parts.append("\n".join(f"- {note}" for note in _footnotes(result)))
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def as_json(machine: Mapping[str, Any], results: Sequence[TaskResult]) -> str:
    """The whole comparison as JSON; a figure that is missing or not finite is null."""
    tasks = [
        {
            "task": result.problem.task,
            "data": result.problem.data,
            "training": result.problem.summary,
            "baseline": result.table.baseline,
            "notes": list(result.notes),
            "rows": [asdict(row) for row in result.rows],
        }
        for result in results
    ]
    return dumps({"machine": machine, "tasks": tasks}) + "\n"
