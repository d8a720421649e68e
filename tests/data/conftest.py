"""Real data sets, where this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the data sets, or a skip that says how to give it."""
    root = Path(os.environ.get("LIGHTNING_DEPTH_DATA") or _BESIDE_THE_CHECKOUT)
    if not root.is_dir():
        pytest.skip("needs real data: set LIGHTNING_DEPTH_DATA to the folder that holds it")
    return root
