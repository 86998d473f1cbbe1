"""``twolayer info``: versions, instruction sets, threads and the state of every native module."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn


def add_command(commands: Any) -> None:
    """Add ``info`` to the argparse subcommands."""
    parser = commands.add_parser("info", help="what is installed, and what of it runs natively")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    parser.set_defaults(run=lambda options: run(options, parser.error))


def run(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    """Print ``twolayer.info()``; returns 0. ``fail`` is called with one line when the environment has a wrong value."""
    from .. import info

    try:
        report = info()
    except ValueError as error:
        fail(str(error))
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0


def as_text(report: Mapping[str, Any]) -> str:
    """``twolayer.info()``'s dictionary as aligned lines."""
    isa = report["isa"]
    facts = {
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "cpu": report["cpu"],
        "threads": str(report["threads"]),
        "isa in use": isa["in_use"] or "none",
        "isa available": ", ".join(isa["available"]) or "none",
        "isa compiled": ", ".join(isa["compiled"]) or "none",
    }
    for module, state in report["native"].items():
        facts[module] = "loaded" if state["loaded"] else f"not loaded: {state['reason']}"
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())
