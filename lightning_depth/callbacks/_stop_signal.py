"""Telling the Trainer to stop as Lightning does, and taking it back if the metric recovers in time.

A Trainer that has to train for longer (``min_epochs``, ``min_steps``) is told at once, and goes on.
What it is told in that time is a value of its own, so that a stop that anybody else asks for, by
writing ``True`` in its place, is not taken back with it.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

__all__ = ["agree_on_stop", "settle_stop", "signal_stop", "take_stop_back"]


class _Pending(int):
    """True, for as long as it may be taken back."""

    def __repr__(self) -> str:
        return "True"


def agree_on_stop(
    trainer: pl.Trainer, should_stop: bool, reason: str | None, kind: EarlyStoppingReason
) -> tuple[bool, str | None, EarlyStoppingReason]:
    """Stop all ranks if any wants to, and give all the reason of the first that does.

    Args:
        trainer: The Trainer.
        should_stop: What this rank wants.
        reason: Why, in words.
        kind: Why, in Lightning's terms.
    """
    strategy = trainer.strategy
    decided = strategy.reduce_boolean_decision(should_stop, all=False)
    if decided and trainer.world_size > 1:
        own = trainer.global_rank if should_stop else trainer.world_size
        place = torch.tensor(float(own), device=strategy.root_device)
        first = int(strategy.reduce(place, reduce_op="min"))
        reason, value = strategy.broadcast((reason, kind.value), src=first)
        kind = EarlyStoppingReason(value)
    return decided, reason, kind


def signal_stop(trainer: pl.Trainer) -> None:
    """Tell the Trainer to stop; before its required minimum this can be taken back."""
    asked = trainer.should_stop and not isinstance(trainer.should_stop, _Pending)
    if not asked:
        trainer.should_stop = True if _may_stop(trainer) else _Pending(1)  # type: ignore[assignment]


def take_stop_back(trainer: pl.Trainer, callback: Any) -> None:
    """Let the Trainer go on, unless anybody else has asked for a stop.

    Args:
        trainer: The Trainer.
        callback: The callback whose metric has recovered.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    others = any(_wants_stop(other) for other in callbacks if other is not callback)
    if isinstance(trainer.should_stop, _Pending) and not others:
        trainer.should_stop = False


def settle_stop(trainer: pl.Trainer) -> None:
    """Leave a plain bool behind, once training has ended."""
    trainer.should_stop = bool(trainer.should_stop)


def _wants_stop(callback: Any) -> bool:
    """Whether it is an early stopping, of either package, that has told the Trainer to stop.

    Lightning's writes no new value where there is a true one.
    """
    reason = getattr(callback, "stopping_reason", None)
    return reason is not None and reason.value != EarlyStoppingReason.NOT_STOPPED.value


def _may_stop(trainer: pl.Trainer) -> bool:
    """Whether the Trainer has done its ``min_epochs`` and ``min_steps``."""
    tracker: Any = trainer.fit_loop.epoch_progress.current
    epochs = tracker.processed >= (trainer.min_epochs or 0)
    return bool(epochs and trainer.global_step >= (trainer.min_steps or 0))
