"""Restoring the best weights, whatever ended training."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_depth.callbacks import EarlyStopping
from tests.callbacks.stopping_models import QUIET, ScriptedModule, differing, loader, tensors_of


@pytest.fixture(autouse=True)
def _keep_interrupts() -> Iterator[None]:
    """Lightning leaves SIGINT ignored after a Ctrl-C."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


class StopAfterFiveEpochs(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch >= 4


class TimeIsUp(pl.Callback):
    """Lets ``max_time`` run out in the fifth epoch, without waiting."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 4:
            timer = next(c for c in trainer.callbacks if isinstance(c, pl.callbacks.Timer))  # type: ignore[attr-defined]
            timer._duration = 0.0


def fit(
    module: ScriptedModule, stopping: EarlyStopping, callbacks: tuple[Any, ...] = (), **options: Any
) -> pl.Trainer:
    trainer = pl.Trainer(**{**QUIET, "callbacks": [stopping, *callbacks], **options})
    trainer.fit(module, loader(), loader())
    return trainer


ENDINGS: dict[str, dict[str, Any]] = {
    "patience": {"max_epochs": 20},
    "max_epochs": {"max_epochs": 5, "patience": 10},
    "max_steps": {"max_steps": 10, "max_epochs": -1, "patience": 10},
    "max_steps inside an epoch": {"max_steps": 9, "max_epochs": -1, "patience": 10},
    "other callback": {"max_epochs": 9, "patience": 10, "callbacks": (StopAfterFiveEpochs(),)},
    "max_time": {
        "max_epochs": 9,
        "patience": 10,
        "max_time": datetime.timedelta(hours=1),
        "callbacks": (TimeIsUp(),),
    },
}


@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_gives_back_the_third_epoch(ending: str, place: Any, tmp_path: Path) -> None:
    options = dict(ENDINGS[ending])
    module = ScriptedModule()
    patience, callbacks = options.pop("patience", 3), options.pop("callbacks", ())
    stopping = EarlyStopping("val_loss", patience=patience, restore_best_weights=place)

    fit(module, stopping, callbacks, default_root_dir=tmp_path, **options)

    assert len(module.seen) >= 4
    assert differing(module, module.seen[2]) == []
    assert differing(module, module.seen[3]) != []
    assert (stopping.best_epoch, stopping.best_step, float(stopping.best_score)) == (2, 6, 1.0)
    assert module.net[2].weight is module.net[0].weight
    assert not module.head.bias.requires_grad


def test_without_restoring_the_last_weights_stay() -> None:
    module = ScriptedModule()
    fit(module, EarlyStopping("val_loss"), max_epochs=20)
    assert differing(module, module.seen[-1]) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_weights_come_only_when_asked_for(error: type[BaseException]) -> None:
    class Breaks(ScriptedModule):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 4:
                raise error

    module = Breaks()
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    with pytest.raises((SystemExit, RuntimeError)):
        fit(module, stopping, max_epochs=9)
    assert differing(module, module.seen[-1]) == []

    stopping.load_best_weights(module)
    assert differing(module, module.seen[2]) == []


def test_model_checkpoint_saves_the_restored_weights(tmp_path: Path) -> None:
    module = ScriptedModule()
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    saving = ModelCheckpoint(
        tmp_path, save_last=True, every_n_epochs=100, save_on_train_epoch_end=True
    )
    fit(module, stopping, (saving,), max_epochs=20, enable_checkpointing=True)
    trainer_weights = module.state_dict()
    path = saving.last_model_path or str(next(tmp_path.glob("*.ckpt")))
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], trainer_weights[name]) for name in saved)


def test_copy_is_no_view() -> None:
    module = ScriptedModule()
    stopping = EarlyStopping("val_loss", restore_best_weights="device")
    fit(module, stopping, max_epochs=3)
    before = tensors_of(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    stopping.load_best_weights(module)
    assert differing(module, before) == []


def test_restoring_from_disk_keeps_nothing_in_memory(tmp_path: Path) -> None:
    module = ScriptedModule()
    stopping = EarlyStopping("val_loss", restore_best_weights="disk")
    fit(module, stopping, max_epochs=20, default_root_dir=tmp_path)
    assert stopping._weights is not None
    assert stopping._weights.best.tensors is None
    maps = Path("/proc/self/maps")  # only Linux has it
    assert not maps.exists() or str(tmp_path) not in maps.read_text()
    assert [file.suffix for file in (tmp_path / "best_weights").iterdir()] == [".pt"]
