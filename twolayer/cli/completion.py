"""``twolayer completion``: a script that completes commands, options and file names in a shell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .data_options import Refused

SHELLS = ("bash", "zsh", "fish")


def add_command(commands: Any) -> None:
    """Add ``completion`` to the argparse subcommands."""
    parser = commands.add_parser(
        "completion",
        help="print a script for completion in bash, zsh or fish",
        description="Print a script that completes twolayer's commands, options and files. For bash, once: "
        "twolayer completion bash > ~/.local/share/bash-completion/completions/twolayer",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script; returns 0. ``Refused`` when shtab is not installed."""
    from ..extras import require
    from . import build_parser

    try:
        shtab = require("shtab", "twolayer completion", "cli")
    except ImportError as error:
        raise Refused(str(error)) from error
    parser = build_parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, options.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Have every option and argument that is a path completed as one, in all commands."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)
