"""``python -m twolayer.bench.gpu``: measure, and write gpu-<name>.json and gpu-<name>.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from ... import _native
from ...reporting.tables import markdown_table
from ..document import as_json
from ..report import verdicts_table
from . import report
from .cases import CASES, run
from .clock import Clock
from .plan import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; returns 1 where there is no GPU, or where a result of ours was wrong."""
    parser = argparse.ArgumentParser(prog="python -m twolayer.bench.gpu", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=Path("benchmarks", "results"))
    parser.add_argument("--name", help="of the files, by default the GPU's")
    parser.add_argument("--quick", action="store_true", help="fewer turns and cells: a look")
    parser.add_argument("--seconds", type=float, default=300, help="start no further case after so many (default 300)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for tests, emulated")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    module, reason = _native.cuda_state()
    if module is None:
        print(f"nothing is measured: twolayer's CUDA library is not loaded: {reason}", file=sys.stderr)
        return 1

    plan = Plan.quick(options.device) if options.quick else Plan(Clock(options.device))
    machine = report.machine(options.device)
    found = {"machine": machine, "quick": options.quick, "cases": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{options.name or report.short_name(machine)}"
    started, wrong = perf_counter(), False
    for name in options.cases or CASES:
        if perf_counter() - started > options.seconds:
            print(f"{name}: left out, {options.seconds:.0f} s have passed", flush=True)
            continue
        try:
            case = run(name, plan).document()
        except Exception as error:  # whatever it was, the other cases are worth having
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
            wrong = True
            continue
        found["cases"][name] = case
        print(f"\n{case['title']}, {case['seconds']:.0f} s\n{_rows(case)}\n" + "\n".join(case["notes"]), flush=True)
        for row in case["rows"]:
            if "left_out" in row:
                print(f"left out: {row['program']}, {row['net']} {row['precision']}: {row['left_out']}")
                wrong |= row["program"].startswith("twolayer") and "no graphs on the CPU" not in row["left_out"]
        # After every case: a machine that is taken away leaves what was measured.
        path.with_suffix(".json").write_text(as_json(found), encoding="utf-8")
        path.with_suffix(".md").write_text(report.as_markdown(found), encoding="utf-8")
    print("\nTargets\n" + markdown_table(*verdicts_table(list(found["cases"].values()))))
    print(f"written to {path}.json and {path}.md")
    return int(wrong)


def _rows(case: Mapping[str, Any]) -> str:
    """The table of a case as it is printed: a sweep's good choices stand in the files alone."""
    return markdown_table(*report.table(case, least_lost=1.05))


if __name__ == "__main__":
    sys.exit(main())
