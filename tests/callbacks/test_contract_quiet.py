"""Every callback logs a handful of scalars, on Lightning's own step axis."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from tests.callbacks._runs import (
    NUM_BATCHES,
    Toy,
    every_callback,
    every_observer,
    fit,
    make,
)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _deep_toy() -> Toy:
    return Toy(
        nn.Sequential(nn.Linear(6, 8), *(nn.Linear(8, 8) for _ in range(198)), nn.Linear(8, 3))
    )


@every_callback
def test_at_most_ten_scalars_however_deep_the_model(name: str, tmp_path: Path) -> None:
    fit(make(name), module=_deep_toy(), logger=CSVLogger(tmp_path, "", ""), max_epochs=1)
    own = {key for row in _rows(tmp_path) for key in row} - {"epoch", "step", "val/loss"}
    assert len(own) <= 10
    assert all("/" in key for key in own)


@every_observer
def test_scalars_are_on_lightnings_own_step_axis(name: str, tmp_path: Path) -> None:
    fit(make(name), logger=CSVLogger(tmp_path, "", ""))
    rows = _rows(tmp_path)
    last_of_epoch = {str(NUM_BATCHES - 1), str(2 * NUM_BATCHES - 1)}
    steps = {row["step"] for row in rows}
    assert steps <= {str(step) for step in range(2 * NUM_BATCHES)}
    assert last_of_epoch <= steps


@every_callback
@pytest.mark.parametrize("run", [{"fast_dev_run": True}, {"max_epochs": 0}])
def test_nothing_is_logged_in_a_sanity_check_or_a_trial_run(
    name: str, run: dict[str, Any], tmp_path: Path
) -> None:
    fit(make(name), logger=CSVLogger(tmp_path, "", ""), **run)
    assert not (tmp_path / "metrics.csv").exists()
    assert not list(tmp_path.rglob("*.png"))
