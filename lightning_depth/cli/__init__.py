"""The commands: parse, call, print."""

from __future__ import annotations

from lightning_depth.cli._main import main

__all__ = ["main"]
