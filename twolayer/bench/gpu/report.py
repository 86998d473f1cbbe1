"""A run on a GPU as JSON, and as tables."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping
from typing import Any

import torch

from ... import _native
from ..._version import __version__
from ...reporting.tables import markdown_table
from ..report import Table, number, verdicts_table

HEADINGS = {
    "error": "relative error",
    "us": "µs",
    "speedup": "× eager",
    "gigabytes": "GB/s",
    "share": "% of a copy",
    "lost": "× the best",
}
LEFT_OUT_OF_TABLES = ("us_least", "us_most", "left_out", "bytes", "work")


def machine(device: str) -> dict[str, Any]:
    """The GPU, its driver and the versions."""
    module, reason = _native.cuda_state()
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        found["multiprocessors"] = properties.multi_processor_count
    else:
        found["gpu"] = f"none: {device}"
    found["versions"] = {
        "twolayer": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "CUDA of twolayer": module.version() if module else reason,
        "CUDA of torch": torch.version.cuda,
    }
    return found


def short_name(machine: Mapping[str, Any]) -> str:
    """The GPU's name for a file's: "NVIDIA H200" is "h200"."""
    words = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    return words.removeprefix("nvidia-")


def table(case: Mapping[str, Any], least_lost: float = 0) -> Table:
    """A case's rows; of choices, those that cost so many times the best."""
    rows = [row for row in case["rows"] if row.get("lost", math.inf) >= least_lost]
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in LEFT_OUT_OF_TABLES]
    lines = [[_cell(row, name) for name in columns] for row in rows]
    return [HEADINGS.get(name, name) for name in columns], lines


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return "left out" if name == "us" and "left_out" in row else "–"
    if isinstance(value, str):
        return value
    if name == "share":
        return f"{100 * value:.0f}"
    if name in ("speedup", "lost"):
        return f"{value:.2f}"
    return f"{value:.1e}" if value and abs(value) < 0.01 else number(value)


def as_markdown(found: Mapping[str, Any]) -> str:
    """The whole run as a page."""
    cases = list(found["cases"].values())
    versions = ", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items())
    parts = [f"# Benchmark on a GPU: {found['machine']['gpu']}", versions]
    if found["quick"]:
        parts.append("A quick run: fewer turns, shorter ones, and fewer cells.")
    parts += ["## Targets", markdown_table(*verdicts_table(cases))]
    for case in cases:
        notes = [f"{row['program']}, {row['net']}: {row['left_out']}" for row in case["rows"] if "left_out" in row]
        notes = [*dict.fromkeys(notes), *case["notes"], f"The case took {case['seconds']:.0f} s."]
        parts += [f"## {case['title']}", markdown_table(*table(case)), "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"
