"""The command line: ``twolayer compare``, ``twolayer bench`` and ``twolayer info``.

Exit codes: 0, all went well; 1, native training failed; 2, an option was wrong; 130, interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import bench, compare, info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (default: ``sys.argv[1:]``) and return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("twolayer: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command's options set ``run``, which takes the parsed options and returns the exit code."""
    parser = argparse.ArgumentParser(prog="twolayer", description="Two-layer neural nets, trained and served natively.")
    parser.add_argument("--version", action="version", version=f"twolayer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    compare.add_command(commands)
    bench.add_command(commands)
    info.add_command(commands)
    return parser
