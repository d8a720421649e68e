"""The monitored metric among those that are logged: where it comes from, and if it is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import lightning.pytorch as pl
from torch import Tensor

from lightning_depth.errors import closest

__all__ = ["MetricWatch", "missing_metric", "nearest_first", "same_key"]


@dataclass
class MetricWatch:
    """Where the metric comes from, and when it is due to be looked at by steps.

    Args:
        monitor: Key of the metric.
        from_validation: Whether validation measures it.
        unseen: Whether validation has measured it since it was last looked at.
        last_step: Step at which it was last looked at.
        before: What was logged when a validation began.
        validated: Whether a validation has ended since this object was made.
    """

    monitor: str
    from_validation: bool = False
    unseen: bool = False
    last_step: int = 0
    before: dict[str, Tensor] = field(default_factory=dict)
    validated: bool = False

    def begin_validation(self, logs: Mapping[str, Tensor]) -> None:
        """Remember the values; one that is another object afterwards has been measured."""
        self.before = dict(logs)

    def end_validation(self, logs: Mapping[str, Tensor]) -> str | None:
        """See whether validation has measured the metric.

        Args:
            logs: What is logged now.

        Returns:
            Where the first validation has not: a key it has measured that is the metric's,
            written otherwise.
        """
        measured = [key for key, value in logs.items() if self.before.get(key) is not value]
        self.from_validation = self.monitor in measured
        first, self.validated = not self.validated, True
        self.before, self.unseen = {}, True
        if not first or self.monitor in logs:
            return None
        return next((key for key in measured if same_key(key, self.monitor)), None)

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
        if missing and trainer.enable_validation and self._may_yet_come(trainer):
            return False
        seen, self.unseen = not self.unseen, False
        return not (self.from_validation and seen)

    def _may_yet_come(self, trainer: pl.Trainer) -> bool:
        """Whether the first validation, or the first end of an epoch, has yet to log it."""
        return not self.validated or trainer.current_epoch == 0


def same_key(one: str, other: str) -> bool:
    """Whether two keys are one, but for separators, capitals and the word for validation.

    Example:
        >>> same_key("val/loss", "valid_Loss")
        True
    """
    return _letters(one) == _letters(other)


def nearest_first(key: str, known: Iterable[str]) -> list[str]:
    """Return keys with those nearest to a given one first.

    Example:
        >>> nearest_first("val/loss", ["train_loss", "epoch", "val_loss"])
        ['val_loss', 'train_loss', 'epoch']
    """
    names = list(known)
    near = [name for name in names if same_key(key, name)]
    near += closest(key, [name for name in names if name not in near], count=len(names) or 1)
    return near + [name for name in names if name not in near]


def missing_metric(monitor: str, logs: Iterable[str]) -> str:
    """Return what is said where the metric is not there; it begins as Lightning's does.

    Example:
        >>> missing_metric("val/loss", ["train_loss", "val_loss"])[:89]
        'Early stopping conditioned on metric `val/loss` which is not available. Did you mean `val'
    """
    names = nearest_first(monitor, logs)
    near = names[:1] if names and (same_key(names[0], monitor) or closest(monitor, names)) else []
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return (
        f"Early stopping conditioned on metric `{monitor}` which is not available.{hint} Pass in "
        "or modify your `EarlyStopping` callback to use any of the following: "
        f"`{'`, `'.join(names)}`"
    )


def _letters(key: str) -> str:
    return re.sub(r"[\W_]+", "", re.sub(r"validation|valid", "val", key.lower()))
