"""The state of every callback survives checkpoints, copies and further runs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.errors import MisuseError
from tests.callbacks._runs import (
    BATCH_SIZE,
    NUM_BATCHES,
    Toy,
    every_callback,
    every_observer,
    fit,
    loader,
    make,
    network,
    num_hooks,
    samples,
    table,
    trainer,
)


class Alike(Toy):
    """Every batch is the same, so that a resumed run sees what it would have seen."""

    def __init__(self) -> None:
        super().__init__(network(dropout=0.0))


def _alike_loader() -> DataLoader[Any]:
    x, y = samples(1).tensors
    return DataLoader(TensorDataset(x.repeat(NUM_BATCHES, 1), y.repeat(NUM_BATCHES)), BATCH_SIZE)


def _fit_alike(*callbacks: Callback, ckpt_path: str | None = None) -> None:
    torch.manual_seed(0)
    saves = isinstance(callbacks[-1], Checkpoint)
    run = trainer(*callbacks, max_epochs=3, enable_checkpointing=saves)
    run.fit(Alike(), _alike_loader(), _alike_loader(), ckpt_path=ckpt_path, weights_only=True)


class Crash(Checkpoint):
    """Saves a checkpoint, after all other callbacks, and ends the run like a lost machine does."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.step, self.epoch = step, epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            self._crash(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self._crash(trainer)

    def _crash(self, trainer: Trainer) -> None:
        trainer.save_checkpoint("crash.ckpt")
        raise RuntimeError("lost")


@every_callback
@pytest.mark.parametrize("when", [{"step": 4}, {"epoch": 0}, {"step": NUM_BATCHES + 3}])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_resumed_run_ends_like_an_uninterrupted_one(name: str, when: dict[str, int]) -> None:
    whole, first, second = (make(name) for _ in range(3))
    _fit_alike(whole)
    with pytest.raises(RuntimeError, match=r"^lost$"):
        _fit_alike(first, Crash(**when))
    _fit_alike(second, ckpt_path="crash.ckpt")
    pd.testing.assert_frame_equal(table(second), table(whole))
    assert second.findings == whole.findings


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}


@every_callback
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("after_fit", [False, True])
def test_copies_can_be_used(name: str, how: str, after_fit: bool) -> None:
    callback = make(name)
    if after_fit:
        fit(callback)
    other = COPIES[how](callback)
    if after_fit:
        pd.testing.assert_frame_equal(table(other), table(callback))
        assert other.findings == callback.findings
    fit(other)
    assert num_hooks(fit(other)) == 0


@every_callback
def test_copies_do_not_take_the_module_along(name: str) -> None:
    callback, toy = make(name), Toy()
    toy.ballast = torch.zeros(1_000_000)
    fit(callback, module=toy)
    assert len(pickle.dumps(callback)) < 1_000_000


@every_callback
def test_module_can_be_copied_during_the_run(name: str) -> None:
    class Copier(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            copy.deepcopy(pl_module.net)
            torch.save(pl_module.net, "net.pt")

    fit(make(name), Copier())


@every_callback
def test_one_callback_in_two_trainers(name: str) -> None:
    callback, alone = make(name), make(name)
    fit(callback, seed=1)
    fit(callback, seed=2)
    fit(alone, seed=2)
    pd.testing.assert_frame_equal(table(callback), table(alone))
    assert callback.findings == alone.findings


@every_callback
def test_fit_twice_goes_on(name: str) -> None:
    callback, toy = make(name), Toy()
    run = trainer(callback, max_epochs=1)
    run.fit(toy, loader(), loader())
    before = table(callback)
    run.fit_loop.max_epochs = 2
    run.fit(toy, loader(), loader())
    after = table(callback)
    assert len(after) >= len(before)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert num_hooks(toy) == 0


@every_callback
def test_reading_before_a_run_is_refused(name: str) -> None:
    callback = make(name)
    for what in ("findings", "history"):
        sentence = f"^`{name}.{what}` cannot be read because no run has reached this object"
        with pytest.raises(MisuseError, match=sentence):
            getattr(callback, what)


@every_observer
def test_history_is_a_tidy_table_and_can_be_drawn(name: str) -> None:
    callback = make(name)
    fit(callback)
    rows = table(callback)
    assert {"step", "epoch"} <= set(rows.columns)
    assert not rows.duplicated(["step", "layer"] if "layer" in rows else ["step"]).any()
    figure, axes = callback.plot()
    assert axes is not None
    figure.savefig("figure.png")
