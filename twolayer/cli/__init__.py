"""The command line, a file for each command.

Exit codes: 0, all went well; 1, the work failed; 2, an option, the data or a file was wrong, and nothing was done; 130,
interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import bench, compare, completion, evaluate, info, plot, predict, train
from .data_options import Refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (default: ``sys.argv[1:]``) and return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except Refused as error:
        print(f"twolayer {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("twolayer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, such as head, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command's options set ``run``, which takes the parsed options and returns the exit code."""
    parser = argparse.ArgumentParser(prog="twolayer", description="Two-layer neural nets, trained and served natively.")
    parser.add_argument("--version", action="version", version=f"twolayer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in (train, predict, evaluate, plot, compare, bench, info, completion):
        command.add_command(commands)
    return parser
