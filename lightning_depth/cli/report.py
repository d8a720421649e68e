"""``lightning-depth report``: rebuild a report from stored results."""

from __future__ import annotations

import argparse

from lightning_depth.cli._show import make_console, show_result
from lightning_depth.study import StudyResult

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Write the report of a stored study.

    Args:
        arguments: The parsed command line.

    Returns:
        0.
    """
    console = make_console()
    result = StudyResult.load(arguments.folder)
    path = result.write_report(arguments.output or result.folder / "report.html")
    show_result(console, result, path)
    return 0
