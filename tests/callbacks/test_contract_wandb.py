"""Weights & Biases for real, offline: what the written runs hold, read back from their files."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks._runs import NUM_BATCHES, observers
from tests.callbacks._wandb_file import history_rows

ROOT = Path(__file__).parents[2]
LAST_STEP = 2 * NUM_BATCHES - 1

# In a process of its own, because the threads of W&B's service would outlive the test.
SCRIPT = """
import json, sys, wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tests.callbacks._runs import fit, make, public_callbacks

ids = []
for seed in (1, 2):
    logger = WandbLogger(name=f"seed {seed}", save_dir=".", offline=True)
    callbacks = [make(name) for name in public_callbacks()]
    fit(*callbacks, seed=seed, logger=[logger, CSVLogger(".", "csv", str(seed))])
    ids.append(logger.version)
    wandb.finish()
print(json.dumps(ids))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[dict[str, Any]], Path]]:
    """Rows of two W&B runs of one process, each with the folder of its CSV logger."""
    folder = tmp_path_factory.mktemp("wandb")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "offline"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    ids = json.loads(run.stdout.splitlines()[-1])
    (folder / "stdout.txt").write_text(run.stdout)
    folders = [next((folder / "wandb").glob(f"offline-run-*-{name}")) for name in ids]
    return [
        (history_rows(path), folder / "csv" / str(seed))
        for path, seed in zip(folders, (1, 2), strict=True)
    ]


def _logged_by_csv(folder: Path) -> set[tuple[int, str, float]]:
    """Every scalar with its step, as another logger of the same run has it."""
    with (folder / "metrics.csv").open() as file:
        return {
            (int(row["step"]), key, float(value))
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key not in ("step", "epoch") and not math.isnan(float(value))
        }


def _scalars(rows: list[dict[str, Any]]) -> set[tuple[int, str, float]]:
    return {
        (row["trainer/global_step"], key, float(value))
        for row in rows
        for key, value in row.items()
        if isinstance(value, (int, float))
        and not key.startswith(("_", "trainer/"))
        and ".width" not in key
        and ".height" not in key
        and ".count" not in key
        and key != "epoch"
        and not math.isnan(value)
    }


@pytest.mark.parametrize("number", [0, 1])
def test_every_scalar_is_there_at_its_step(runs: Any, number: int) -> None:
    rows, folder = runs[number]
    expected = _logged_by_csv(folder)
    assert len(expected) > 2 * NUM_BATCHES
    assert _scalars(rows) == expected


@pytest.mark.parametrize("number", [0, 1])
def test_no_row_is_dropped(runs: Any, number: int) -> None:
    rows, _ = runs[number]
    assert [row["_step"] for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("number", [0, 1])
def test_every_figure_is_there_at_the_end_of_the_run(runs: Any, number: int) -> None:
    rows, _ = runs[number]
    figures: dict[str, list[int]] = {}
    for row in rows:
        for key in row:
            if key.endswith("._type"):
                figures.setdefault(key, []).append(row["trainer/global_step"])
    assert len(figures) == len(observers())
    assert all(steps == [LAST_STEP] for steps in figures.values())


def test_two_runs_in_one_process_do_not_mix(runs: Any) -> None:
    first, second = (_scalars(rows) for rows, _ in runs)
    assert {key for _, key, _ in first} == {key for _, key, _ in second}
    assert len(first & second) < len(first) / 4
