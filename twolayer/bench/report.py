"""A run's document as tables on the terminal and as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..reporting.tables import machine_line, markdown_table, print_table

Table = tuple[list[str], list[list[str]]]
OURS = ("twolayer.fit", "twolayer.fit bfloat16", "twolayer.fit_many", "TwoLayerNet", "predictor")


def number(value: float | None) -> str:
    """Three digits or so."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows_table(case: Mapping[str, Any]) -> Table:
    """A case's rows, without columns that are empty throughout."""
    rows = case["rows"]
    cells = list(dict.fromkeys(name for row in rows for name in row["cell"]))
    headings = ["implementation", *cells, "threads", "µs", "min–max", "× peer", "% of limit"]
    lines = []
    for row in rows:
        share = row["share_of_limit"]
        spread = f"{number(row['us_least'])}–{number(row['us_most'])}" if row["us"] else "–"
        lines.append(
            [
                row["implementation"],
                *(str(row["cell"].get(name, "–")) for name in cells),
                str(row["threads"]),
                row["error"].partition(":")[0] if row["error"] else number(row["us"]),
                spread,
                "–" if row["speedup"] is None else f"{row['speedup']:.2f}",
                "–" if share is None else f"{100 * share:.0f}",
            ]
        )
    kept = [i for i in range(len(headings)) if i == 0 or any(line[i] != "–" for line in lines)]
    return [headings[i] for i in kept], [[line[i] for i in kept] for line in lines]


def verdicts_table(cases: Sequence[Mapping[str, Any]]) -> Table:
    """Targets and what was measured."""
    lines = []
    for case in cases:
        for verdict in case["verdicts"]:
            sign, unit = "≥" if verdict["at_least"] else "≤", verdict["unit"]
            reached = {True: "yes", False: "no", None: "not measured"}[verdict["reached"]]
            measured = "–" if verdict["value"] is None else f"{number(verdict['value'])} {unit}"
            bound = f"{sign} {verdict['bound']:g} {unit}"
            lines.append([verdict["what"], bound, measured, reached, verdict["note"] or "–"])
    return ["target", "asked", "measured", "reached", "of"], lines


def footnotes(case: Mapping[str, Any]) -> list[str]:
    """Peers, errors, absences and notes, in words."""
    peers = dict.fromkeys(row["peer"] for row in case["rows"] if row["peer"])
    notes = [f"× peer: over {next(iter(peers))}."] if len(peers) == 1 else []
    if len(peers) > 1:
        notes.append("× peer: in each cell over the peer's best time, at its best number of threads.")
    errors = [row for row in case["rows"] if row["error"]]
    notes += [f"{row['implementation']}, {row['threads']} threads, {row['cell']}: {row['error']}" for row in errors]
    notes += [f"{name} is absent: {reason}." for name, reason in case["absent"].items()]
    return [*notes, *case["notes"], f"The case took {case['seconds']:.0f} s."]


def limits_tables(limits: Mapping[str, Any]) -> list[Table]:
    """Peaks by instruction set, and reading by level."""
    peaks: list[list[str]] = []
    for isa, by_dtype in limits["gflops"].items():
        for dtype, by_threads in by_dtype.items():
            peaks.append([f"{isa} {dtype}", *(number(rate) for rate in by_threads.values())])
    reads = [
        [f"{read['level']}, {read['bytes'] / 1024:,.0f} KiB a thread", *map(number, read["gigabytes"].values())]
        for read in limits["reads"]
    ]
    counts = [
        f"{count} thread{'s' if count != '1' else ''}" for count in (limits["reads"][0]["gigabytes"] if reads else ())
    ]
    return [(["GFLOP/s", *counts], peaks), (["read, GB/s", *counts], reads)]


def print_limits(limits: Mapping[str, Any]) -> None:
    print("\nThe machine's limits, measured")
    for headings, rows in limits_tables(limits):
        print_table(headings, rows)


def print_case(case: Mapping[str, Any]) -> None:
    """A case's rows, verdicts and notes."""
    print_table(*rows_table(case), bold=OURS)
    _print_verdicts([case])
    print("\n".join(f"  {note}" for note in footnotes(case)), flush=True)


def print_verdicts(found: Mapping[str, Any]) -> None:
    """All verdicts of a run."""
    print("\nTargets")
    _print_verdicts(list(found["cases"].values()))


def _print_verdicts(cases: Sequence[Mapping[str, Any]]) -> None:
    for what, bound, measured, reached, of in verdicts_table(cases)[1]:
        sign = {"yes": "✓", "no": "✗"}.get(reached, "?")
        print(f"  {sign} {what}: {measured}, asked {bound}{'' if of == '–' else f'; {of}'}")


def as_markdown(found: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole run as a page; ``pictures`` are file names beside it."""
    cases = list(found["cases"].values())
    parts = ["# Benchmark", machine_line(found["machine"])]
    if found["quick"]:
        parts.append("A quick run: fewer turns, shorter ones, and fewer cells.")
    parts += ["## Targets", markdown_table(*verdicts_table(cases)), "## The machine's limits, measured"]
    parts += [markdown_table(*table) for table in limits_tables(found["limits"])]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]
    for case in cases:
        parts += [f"## {case['name']}: {case['title']}", markdown_table(*rows_table(case))]
        if notes := footnotes(case):
            parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"
