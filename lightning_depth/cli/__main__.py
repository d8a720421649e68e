"""Lets ``python -m lightning_depth.cli`` run the commands."""

from __future__ import annotations

import sys

from lightning_depth.cli._main import main

if __name__ == "__main__":
    sys.exit(main())
