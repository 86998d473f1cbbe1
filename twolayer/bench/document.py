"""What a run leaves, as plain data that JSON can hold: the machine, its limits, and rows and verdicts by case."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..reporting.strict_json import dumps
from .targets import TARGETS

PEERS = ("jax", "scikit-learn", "scipy")


@dataclass
class Row:
    """One implementation's figures on one cell of a case; times are µs of a step or call."""

    cell: dict[str, Any]  # what tells it from the case's other rows, by name
    implementation: str
    threads: int
    us: float | None = None  # median
    us_least: float | None = None
    us_most: float | None = None
    turns: int = 0
    peer: str | None = None  # the implementation that ``speedup`` is over, the best of its kind
    speedup: float | None = None
    limit_us: float | None = None  # what the machine's limits would allow
    error: str | None = None  # it failed, or was wrong: then it was not timed

    @property
    def share_of_limit(self) -> float | None:
        return self.limit_us / self.us if self.limit_us and self.us else None


@dataclass
class Verdict:
    """A measured figure and what was asked of it."""

    target: str  # a name in ``TARGETS``
    value: float | None  # None: not measured
    note: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.value is None else TARGETS[self.target].reached(self.value)


@dataclass
class CaseResult:
    """A case's rows and verdicts; ``absent`` says which implementations were not there, and why."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def judge(self, target: str, value: float | None, note: str = "") -> None:
        """Hold ``value`` to the target called ``target``."""
        self.verdicts.append(Verdict(target, value, note))

    def best(self, names: str | tuple[str, ...], **cell: Any) -> Row | None:
        """The fastest row of these implementations in that cell, None where none was timed."""
        wanted = (names,) if isinstance(names, str) else names
        rows = [
            row
            for row in self.rows
            if row.implementation in wanted
            and row.us is not None
            and all(row.cell.get(name, getattr(row, name, None)) == value for name, value in cell.items())
        ]
        return min(rows, key=lambda row: row.us or math.inf, default=None)


def machine() -> dict[str, Any]:
    """CPU, system, threads, ISA and versions, with the peers'."""
    from .. import info

    known = info()
    versions = {**known["versions"], **{name: _version(name) for name in PEERS}}
    return {
        "cpu": known["cpu"],
        "system": f"{platform.system()} {platform.machine()}",
        "threads": known["threads"],
        "isa": known["isa"]["in_use"],
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def document(limits: dict[str, Any], results: list[CaseResult], quick: bool) -> dict[str, Any]:
    """The whole run."""
    cases = {result.name: as_case(result) for result in results}
    return {"machine": machine(), "quick": quick, "limits": limits, "cases": cases}


def as_case(result: CaseResult) -> dict[str, Any]:
    """A case as the document has it."""
    rows = [{**asdict(row), "share_of_limit": row.share_of_limit} for row in result.rows]
    verdicts = [
        {**asdict(verdict), **TARGETS[verdict.target].words(), "reached": verdict.reached}
        for verdict in result.verdicts
    ]
    return {**asdict(result), "rows": rows, "verdicts": verdicts}


def merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """``later`` with those cases of ``earlier`` that it lacks, in the earlier order; both are of one machine."""
    return {**later, "cases": {**earlier["cases"], **later["cases"]}}


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether figures of the two runs may stand in one table."""
    return bool(one.get("machine") == other["machine"])


def as_json(found: dict[str, Any]) -> str:
    return dumps(found, indent=1) + "\n"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
