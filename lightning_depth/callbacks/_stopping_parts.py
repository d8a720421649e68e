"""Parts of early stopping that need no callback: the moving average and a criterion's record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_depth.callbacks._criteria import StoppingCriterion
from lightning_depth.callbacks._metric_watch import nearest_first
from lightning_depth.errors import MisuseError

__all__ = ["CriterionRecord", "MovingAverage", "finite"]


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
        if torch.isnan(current):
            return None  # no number is no better and no worse, now and as the first of all
        key = criterion.train_monitor
        if key is not None and key in logs:
            self.train_losses.append(float(logs[key]))
        elif key is not None and self.scores:  # the first check may come before the first value
            raise MisuseError(
                f"The criterion {criterion!r} needs the metric {key!r}, which is not logged. "
                f"Logged: {', '.join(nearest_first(key, logs))}."
            )
        self.scores.append(float(current))
        return criterion.should_stop(self.scores, self.train_losses)


def finite(value: Tensor | None) -> float | None:
    """Return a number, None where there is none that states can be compared by."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
