"""Writes the tables of results/bench.json into the documents, between their marks: ``python benchmarks/tables.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twolayer.bench.report import limits_tables, number, verdicts_table
from twolayer.reporting.tables import machine_line, markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
STEPS = {"digits": "MNIST's pixels, µs", "dense": "inputs without zeros, µs"}  # cases of the README's table


def step_table(found: Mapping[str, Any]) -> str:
    """The best time of a step of 64 × 784-100-10, at one thread or two, by implementation."""
    best: dict[str, dict[str, float]] = {}
    for case in STEPS:
        for row in found["cases"][case]["rows"]:
            if row["us"] is not None:
                times = best.setdefault(row["implementation"], {})
                times[case] = min(row["us"], times.get(case, row["us"]))
    lines = [
        [name, *(number(times[case]) if case in times else "–" for case in STEPS)]
        for name, times in sorted(best.items(), key=lambda item: item[1].get("dense", 0))
    ]
    return markdown_table(["a step of SGD, 64 × 784-100-10", *STEPS.values()], lines)


def sections(found: Mapping[str, Any]) -> dict[str, str]:
    """The text of each section, by its mark."""
    machine = machine_line(found["machine"])
    return {
        "bench": f"{machine}\n\n{step_table(found)}",
        "bench: limits": "\n\n".join([machine, *(markdown_table(*table) for table in limits_tables(found["limits"]))]),
        "bench: targets": markdown_table(*verdicts_table(list(found["cases"].values()))),
    }


def with_sections(document: str, found: Mapping[str, Any]) -> str:
    """``document`` with what stands between each pair of marks replaced."""
    for mark, text in sections(found).items():
        begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        before, opened, rest = document.partition(begin)
        _, closed, after = rest.partition(end)
        if opened and closed:
            document = f"{before}{begin}\n{text}\n{end}{after}"
    return document


def main() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for path in (ROOT / "README.md", ROOT / "README.zh.md", ROOT / "docs" / "performance.md"):
        path.write_text(with_sections(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
