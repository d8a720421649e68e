"""Every callback in two processes, and what the script's own objects know afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_depth.errors import MisuseError
from tests.callbacks._runs import (
    Toy,
    fit,
    loader,
    make,
    num_hooks,
    observers,
    public_callbacks,
    trainer,
)


class Leave(Checkpoint):
    """Ends the process group in order; gloo may abort at exit otherwise. Runs as the last one."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.mark.parametrize(
    "strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)]
)
def test_parent_knows_what_its_children_measured(
    strategy: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    callbacks = [make(name) for name in public_callbacks()]
    toy = Toy()
    run = trainer(*(*callbacks, Leave()), strategy=strategy, devices=2, enable_checkpointing=True)
    run.fit(toy, loader(), loader())
    for callback in callbacks:
        assert isinstance(callback.findings, list)
        if type(callback).__name__ in observers():
            assert len(pd.DataFrame(callback.history)) > 0
    assert num_hooks(toy) == 0
    assert capfd.readouterr().out.count("+-- depth verdict") == 1
    assert list(folder.glob("lightning-depth-*")) == []


def test_parent_of_a_run_that_left_nothing_does_not_look_healthy() -> None:
    callbacks = [make(name) for name in public_callbacks()]
    run = trainer(
        *(*callbacks, Leave()),
        strategy="ddp_fork",
        devices=2,
        fast_dev_run=True,
        enable_checkpointing=True,
    )
    run.fit(Toy(), loader(), loader())
    for callback in callbacks:
        with pytest.raises(MisuseError, match="because no run has reached this object"):
            _ = callback.findings


def test_run_here_counts_more_than_an_earlier_one_in_children() -> None:
    callback = make("TrainingErrorMonitor")
    run = trainer(*(callback, Leave()), strategy="ddp_fork", devices=2, enable_checkpointing=True)
    run.fit(Toy(), loader(), loader())
    fit(callback, max_epochs=1)
    assert len(pd.DataFrame(callback.history)) == 1


SCRIPT = """
from tests.callbacks._runs import Toy, loader, make, public_callbacks, trainer
from tests.callbacks.test_contract_processes import Leave

callbacks = [make(name) for name in public_callbacks()]
run = trainer(*callbacks, Leave(), strategy="ddp", devices=2, enable_checkpointing=True,
              default_root_dir="root")
run.fit(Toy(), loader(), loader())
assert all(len(callback.findings) >= 0 for callback in callbacks)
"""


@pytest.mark.slow
def test_script_of_its_own_tells_one_verdict(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.count("+-- depth verdict") == 1
    assert (tmp_path / "root" / "findings.json").exists()
