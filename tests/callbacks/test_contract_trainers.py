"""Every callback in every kind of run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks._runs import (
    BATCH_SIZE,
    FOR_UNKNOWN_BATCHES,
    OPTIONS,
    Endless,
    Toy,
    as_batch,
    every_callback,
    every_observer,
    fit,
    loader,
    make,
    network,
    num_hooks,
    public_callbacks,
    samples,
    table,
    toy_of,
    trainer,
)


def test_every_public_callback_is_tried_here() -> None:
    assert set(public_callbacks()) == set(OPTIONS)


@every_callback
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_works_under_both_names_of_lightning(name: str, package: str) -> None:
    pl, toy = toy_of(package)
    callback = make(name)
    trainer(callback, package=pl).fit(toy, loader(), loader())
    if name != "EarlyStopping":
        assert len(table(callback)) > 0


RUNS: dict[str, dict[str, Any]] = {
    "barebones": {"barebones": True},
    "fast_dev_run": {"fast_dev_run": True},
    "overfit_batches": {"overfit_batches": 1},
    "limited": {"limit_train_batches": 2, "limit_val_batches": 1},
    "no training": {"limit_train_batches": 0},
    "no validation": {"limit_val_batches": 0},
    "validation within the epoch": {"val_check_interval": 0.5},
    "validation by steps": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "validation now and then": {"check_val_every_n_epoch": 2},
    "max_time": {"max_time": "00:00:01:00"},
    "max_steps": {"max_steps": 3},
    "no sanity check": {"num_sanity_val_steps": 0},
    "accumulation": {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


def _tolerates(name: str) -> dict[str, Any]:
    """EarlyStopping is Lightning's: without its metric the run ends, unless told otherwise."""
    return {"strict": False} if name == "EarlyStopping" else {}


@every_callback
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*overfit:UserWarning")
def test_works_in_runs_of_every_kind(name: str, run: str) -> None:
    callback = make(name, **_tolerates(name))
    toy = fit(callback, **RUNS[run])
    assert isinstance(callback.findings, list)
    assert isinstance(callback.history, dict)
    assert num_hooks(toy) == 0


@every_callback
def test_works_with_several_loggers(name: str, tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "a"), TensorBoardLogger(tmp_path / "b"), CSVLogger(tmp_path)]
    fit(make(name), logger=loggers)
    assert (tmp_path / "a" / "lightning_logs" / "version_0" / "findings.json").exists()


@every_callback
def test_works_with_data_without_a_length(name: str) -> None:
    callback = make(name)
    toy = Toy()
    train, val = (DataLoader(Endless(), batch_size=BATCH_SIZE) for _ in range(2))
    trainer(callback).fit(toy, train, val)
    assert num_hooks(toy) == 0


@every_callback
def test_works_with_batches_of_an_unknown_type(name: str) -> None:
    callback = make(name, **FOR_UNKNOWN_BATCHES.get(name, {}))
    train, val = (DataLoader(samples(), BATCH_SIZE, collate_fn=as_batch) for _ in range(2))
    trainer(callback).fit(Toy(), train, val)
    if name != "EarlyStopping":
        assert len(table(callback)) > 0


@every_callback
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric:RuntimeWarning")
def test_works_without_validation_at_all(name: str) -> None:
    toy = SilentToy()
    trainer(make(name, **_tolerates(name))).fit(toy, loader())
    assert num_hooks(toy) == 0


class SilentToy(LightningModule):
    """A module that neither validates nor logs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Alternating(Toy):
    """Two optimizers in manual optimization, of which each step uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        optimizer = optimizers[batch_idx % 2]
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        halves = [list(self.parameters())[:4], list(self.parameters())[4:]]
        return [torch.optim.SGD(half, lr=0.1) for half in halves]


@every_callback
def test_works_with_several_optimizers(name: str) -> None:
    callback = make(name)
    toy = fit(callback, module=Alternating())
    assert num_hooks(toy) == 0
    if name != "EarlyStopping":
        assert len(table(callback)) > 0


@every_observer
def test_two_of_a_kind_work_side_by_side(name: str) -> None:
    first, second = make(name), make(name, prefix="second")
    fit(first, second)
    pd.testing.assert_frame_equal(table(first), table(second))


@every_callback
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_works_outside_fit(name: str, stage: str) -> None:
    callback, toy = make(name), Toy()
    toy.test_step = toy.validation_step  # type: ignore[method-assign]
    toy.predict_step = lambda batch: toy(batch[0])  # type: ignore[method-assign,misc]
    getattr(trainer(callback), stage)(toy, loader())
    assert num_hooks(toy) == 0
