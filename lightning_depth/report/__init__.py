"""A stored study as one self-contained HTML file."""

from lightning_depth.report._writer import write_report

__all__ = ["write_report"]
