"""A callback that gives up on one rank gives up on all, and no rank waits for another."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_depth.callbacks import ObserverWarning
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.callbacks._memory import Memory
from tests.callbacks._runs import Toy, loader, make, trainer
from tests.callbacks.test_contract_processes import Leave


class Witness(Leave):
    """Writes what each rank knows when the run is over."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        watchers: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        state = {
            "steps": trainer.global_step,
            "retired": [w._retired for w in watchers if isinstance(w, DepthCallback)],
            "said": [
                w._summary().partition(" (")[0]
                for w in watchers
                if type(w).__name__ == "TrainingErrorMonitor"
            ],
        }
        torch.save(state, self.folder / f"rank{trainer.global_rank}.pt")
        super().teardown(trainer, pl_module, stage)


def _broken_on_rank_one(callback: DepthCallback, hook: str, at: int) -> DepthCallback:
    """Return the callback with a hook that fails on rank one before it does anything."""
    original = getattr(type(callback), hook)
    calls = [0]

    def fail(self: Any, trainer: Trainer, *args: Any) -> None:
        calls[0] += 1
        if trainer.global_rank == 1 and calls[0] == at:
            raise RuntimeError("out of luck")
        original(self, trainer, *args)

    callback.__class__ = type(type(callback).__name__, (type(callback),), {hook: fail})
    return callback


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "hook", "options"),
    [
        ("ActivationMonitor", "on_train_batch_start", {}),
        ("ActivationMonitor", "on_train_batch_end", {}),
        ("GradientFlowMonitor", "on_before_optimizer_step", {}),
        ("GradientFlowMonitor", "on_before_optimizer_step", {"signal": "activations"}),
        (
            "GradientFlowMonitor",
            "on_train_batch_end",
            {"signal": "activations", "every_n_steps": 4},
        ),
        ("LayerSeparabilityProbe", "on_validation_batch_end", {}),
        ("LayerSeparabilityProbe", "on_validation_epoch_end", {}),
        ("TrainingErrorMonitor", "on_train_batch_start", {}),
        ("TrainingErrorMonitor", "on_train_epoch_end", {}),
    ],
)
def test_all_ranks_give_up_together(
    name: str, hook: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIGHTNING_DEPTH_STRICT")
    others = ["GradientFlowMonitor", "ActivationMonitor"]
    callbacks = [_broken_on_rank_one(make(name, **options), hook, at=2)]
    callbacks += [make(other) for other in others if other != name]
    run = trainer(
        *(*callbacks, Witness(tmp_path)), strategy="ddp_fork", devices=2, enable_checkpointing=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ObserverWarning)
        run.fit(Toy(), loader(), loader())
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["retired"] == [True] + [False] * (len(callbacks) - 1)
    assert ranks[0]["steps"] == 6


@pytest.mark.timeout(120)
def test_pass_that_one_rank_cannot_put_back_ends_the_measuring_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIGHTNING_DEPTH_STRICT")
    original, calls = Memory.restore, [0]

    def fail(self: Memory) -> None:
        original(self)
        calls[0] += 1
        if torch.distributed.get_rank() == 1 and calls[0] == 2:
            raise RuntimeError("out of luck")

    monkeypatch.setattr(Memory, "restore", fail)
    run = trainer(
        *(make("TrainingErrorMonitor"), Witness(tmp_path)),
        **{"strategy": "ddp_fork", "devices": 2, "enable_checkpointing": True},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run.fit(Toy(), loader(), loader())
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["steps"] == 6
    assert ["it failed" in summary for summary in ranks[0]["said"]] == [True]
