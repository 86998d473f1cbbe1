"""Tables of text: on the terminal, and in Markdown. The first column is of names, the others are of figures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], bold: Collection[str] = ()) -> None:
    """Print a table, with rich when it is installed; rows whose name is in ``bold`` stand out."""
    if importlib.util.find_spec("rich"):
        _print_rich_table(headings, rows, bold)
    else:
        print("\n".join(_aligned([headings, *rows])))


def _print_rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]], bold: Collection[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # then 80 columns are enough
    for heading in headings:
        table.add_column(
            heading.replace(" ", "\n"), justify="left" if heading == headings[0] else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(*map(Text, row), style="bold" if row[0] in bold else None)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    rule = [":--", *["--:"] * (len(headings) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (headings, rule, *rows)
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    isa = machine["isa"] or "none"
    return f"{machine['cpu']}, {machine['system']}, threads: {machine['threads']}, isa: {isa}; {versions}"
