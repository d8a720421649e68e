"""Settings that every test shares: one thread, no display, no network, nothing written at home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Run every test in a folder of its own, so that nothing lands in the checkout."""
    folder: Path = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    yield


@pytest.fixture(autouse=True)
def _skip_without_accelerator(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an accelerator, and there is none here")
