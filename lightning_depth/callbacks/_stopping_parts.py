"""Parts of early stopping that need no callback: average, criterion, agreement, verdict, figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from lightning_depth import _extras
from lightning_depth.callbacks._criteria import StoppingCriterion
from lightning_depth.callbacks._curves_figure import draw_curve
from lightning_depth.callbacks._ending import as_errors, find_ending, is_rate, match_epochs
from lightning_depth.callbacks.training_error import TrainingErrorMonitor
from lightning_depth.errors import MisuseError
from lightning_depth.findings import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CriterionRecord",
    "MetricWatch",
    "MovingAverage",
    "agree_on_stop",
    "conclude",
    "draw_checks",
    "finite",
    "may_stop",
]


@dataclass
class MovingAverage:
    """An exponential moving average without the bias of its start.

    Args:
        smoothing: Weight of the past.
        total: Weighted sum so far.
        count: How many values it holds.

    Example:
        >>> average = MovingAverage(0.5)
        >>> [float(average.update(torch.tensor(x))) for x in (4.0, 1.0)]
        [4.0, 2.0]
    """

    smoothing: float
    total: float = 0.0
    count: int = 0

    def update(self, score: Tensor) -> Tensor:
        """Take a value in and return the average; a value that is not finite is handed back."""
        if not self.smoothing or not torch.isfinite(score):
            return score
        self.total = self.smoothing * self.total + (1 - self.smoothing) * float(score)
        self.count += 1
        return torch.as_tensor(self.total / (1 - self.smoothing**self.count)).to(score)


@dataclass
class CriterionRecord:
    """What a criterion has been told so far.

    Args:
        scores: Monitored values, one a check.
        train_losses: Training losses at the same checks, where the criterion needs them.
    """

    scores: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)

    def ask(
        self, criterion: StoppingCriterion, current: Tensor, logs: Mapping[str, Tensor]
    ) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            criterion: The rule.
            current: The monitored value.
            logs: The metrics logged so far.
        """
        key = criterion.train_monitor
        if key is not None and key in logs:
            self.train_losses.append(float(logs[key]))
        elif key is not None and self.scores:  # the first check may come before the first value
            raise MisuseError(
                f"The criterion {criterion!r} needs the metric {key!r}, which is not logged. "
                f"Logged: {', '.join(logs)}."
            )
        self.scores.append(float(current))
        return criterion.should_stop(self.scores, self.train_losses)


@dataclass
class MetricWatch:
    """Where the metric comes from, and when it is due to be looked at by steps.

    Args:
        monitor: Key of the metric.
        from_validation: Whether validation measures it.
        unseen: Whether validation has measured it since it was last looked at.
        last_step: Step at which it was last looked at.
        before: Its value when a validation began.
    """

    monitor: str
    from_validation: bool = False
    unseen: bool = False
    last_step: int = 0
    before: Tensor | None = None

    def begin_validation(self, logs: Mapping[str, Tensor]) -> None:
        """Remember the value; one that is another object afterwards has been measured."""
        self.before = logs.get(self.monitor)

    def end_validation(self, logs: Mapping[str, Tensor]) -> None:
        """See whether validation has measured the metric."""
        self.from_validation = logs.get(self.monitor) is not self.before
        self.before, self.unseen = None, True

    def is_due(self, trainer: pl.Trainer, every_n_steps: int) -> bool:
        """Whether a check by steps is due; a value of validation counts once.

        Args:
            trainer: The Trainer.
            every_n_steps: Steps between checks.
        """
        step, earlier = trainer.global_step, self.last_step
        if step // every_n_steps == earlier // every_n_steps:
            return False
        self.last_step = step
        missing = self.monitor not in trainer.callback_metrics
        if missing and trainer.enable_validation and not self.from_validation:
            return False  # its first validation may be yet to come
        seen, self.unseen = not self.unseen, False
        return not (self.from_validation and seen)


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


def may_stop(trainer: pl.Trainer) -> bool:
    """Whether the Trainer has done its ``min_epochs`` and ``min_steps``."""
    tracker: Any = trainer.fit_loop.epoch_progress.current
    epochs = tracker.processed >= (trainer.min_epochs or 0)
    return bool(epochs and trainer.global_step >= (trainer.min_steps or 0))


def finite(value: Tensor | None) -> float | None:
    """Return a number, None where there is none that states can be compared by."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def conclude(
    trainer: pl.Trainer,
    table: Mapping[str, Sequence[Any]],
    monitor: str,
    mode: str,
    stopped: bool,
) -> list[Finding]:
    """Judge validation beside training, from the training monitor or the metric's twin.

    Args:
        trainer: The Trainer.
        table: History of early stopping.
        monitor: Key of the metric.
        mode: "min" or "max".
        stopped: Whether training stopped because nothing improved any more.
    """
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    rows = [row for row in rows if row["score"] is not None]
    epochs = [row["epoch"] for row in rows]
    validation = as_errors([row["score"] for row in rows], mode)
    twins = [row["train_score"] for row in rows]
    training = None if None in twins else as_errors(twins, mode)
    chance = None
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    for callback in callbacks:
        if isinstance(callback, TrainingErrorMonitor):
            rate = mode == "max" or is_rate(monitor)
            column = callback.twin_of(monitor)
            found = column and match_epochs(callback.history, epochs, column)
            training = as_errors(found, mode) if found else training
            chance = (callback.chance_error if rate else callback.chance_loss) if found else None
    return find_ending(monitor, epochs, validation, training, chance=chance, stopped=stopped)


def draw_checks(
    table: Mapping[str, Sequence[Any]], monitor: str, best_step: int | None
) -> tuple[Figure, Axes]:
    """Draw the metric over the checks and mark the best.

    Args:
        table: History of early stopping.
        monitor: Key of the metric.
        best_step: Step of the best check.
    """
    figure = _extras.matplotlib_figure().Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    draw_curve(axes, table.get("step", []), table.get("score", []), monitor)
    if best_step is not None:
        axes.axvline(best_step, color="C1", linestyle="--", label=f"best, step {best_step}")
    axes.set(xlabel="optimizer step", ylabel=monitor, title="Checks of early stopping")
    axes.legend()
    return figure, axes
