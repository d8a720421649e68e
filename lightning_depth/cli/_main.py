"""The entry point: finds the command, calls it, and turns refusals into one sentence."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_depth.cli._parser import make_parser
from lightning_depth.errors import LightningDepthError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command line; those of this process by default.

    Returns:
        Exit status: 0 for success, 1 where a trial failed, 2 for bad input, 130 after Ctrl-C.
    """
    parsed = make_parser().parse_args(arguments)
    sys.path.append(str(Path.cwd()))  # a class or model of the user's own, as `python -m` finds it
    try:
        # By name: each command brings in what it needs, and --help brings in nothing.
        command = importlib.import_module(f"lightning_depth.cli.{parsed.command}")
        status: int = command.run(parsed)
    except LightningDepthError as error:
        sys.stderr.write(f"lightning-depth: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("lightning-depth: stopped.\n")
        return 130
    return status
