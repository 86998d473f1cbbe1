"""``twolayer info``: versions, instruction sets, threads and the state of every native module; or what a model is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..reporting.strict_json import dumps
from .data_options import Refused

if TYPE_CHECKING:
    from ..model_file import Model


def add_command(commands: Any) -> None:
    """Add ``info`` to the argparse subcommands."""
    parser = commands.add_parser("info", help="what is installed, and what of it runs natively; or what a model is")
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="what twolayer train wrote")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    parser.set_defaults(run=lambda options: run(options, parser.error))


def run(options: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    """Print ``twolayer.info()``, or what the model is; returns 0.

    ``fail`` is called with one line when the environment has a wrong value. ``Refused`` when the model is not usable.
    """
    if options.model is not None:
        return _run_model(options)
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
    return _aligned(facts)


def _aligned(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def _run_model(options: argparse.Namespace) -> int:
    from ..model_file import load_model

    try:
        model = load_model(options.model)
    except (OSError, ValueError, ImportError) as error:
        raise Refused(str(error)) from error
    if options.json:
        facts = {"activation": model.net.activation, "task": model.target.task, "hidden": len(model.net.w1)}
        encoding = {"inputs": model.inputs.to_json(), "target": model.target.to_json()}
        print(dumps({**facts, **encoding, "training": model.training, "history": vars(model.history)}))
    else:
        print(_aligned(_facts(model)))
    return 0


def _facts(model: Model) -> dict[str, str]:
    from ..data.encoding.columns import listed

    inputs, target, history = model.inputs, model.target, model.history
    columns = f"{inputs.features:,} columns of numbers"
    if inputs.columns is not None:
        columns = listed([f"{c.name} ({c.width} texts)" if c.categories else c.name for c in inputs.columns])
    classes = "values" if target.classes is None else f"{len(target.classes)} classes: {listed(target.classes)}"
    (hidden, features), out = model.net.w1.shape, len(model.net.w2)
    facts = {
        "task": target.task,
        "net": f"{features} → {hidden} {model.net.activation} → {out}, {model.net.w1.dtype}",
        "inputs": columns,
        "target": f"{', '.join(target.names)}: {classes}" if target.names else classes,
    }
    if "data" in model.training:
        data = model.training["data"]
        facts["data"] = f"{data['name']}, {data['rows']:,} rows"
    if history.loss:
        best = "" if history.best_epoch is None else f", the best of them {history.best_epoch + 1}"
        facts["training"] = f"{len(history.loss)} epochs in {history.seconds:.3g} s{best}; loss {history.loss[-1]:.4g}"
    if history.val_loss:
        accuracy = f", accuracy {history.val_accuracy[-1]:.2%}" if history.val_accuracy else ""
        facts["validation"] = f"loss {history.val_loss[-1]:.4g}{accuracy} after the last epoch"
    return facts
