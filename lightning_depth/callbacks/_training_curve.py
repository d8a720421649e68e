"""The curve on training data that stands beside a validation metric, and what is known of chance.

Two numbers are held against each other only where they are one quantity: what the training monitor
measured with the module's own validation step, under the key that is monitored. A training loss
that the loop logs under the twin of the metric's name is measured in training mode, on changing
weights and augmented samples: it may show whether training falls, nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_depth.findings import FindingKind
from lightning_depth.functional.curves import MIN_CHECKS

__all__ = ["TrainingCurve", "find_training_curve", "has_mode_gap", "twin_key"]

_VALIDATION = r"(?<![A-Za-z])val(?:id(?:ation)?)?(?![A-Za-z])"
_ERROR = r"(error|err)([_-]?rate)?|acc(uracy)?([_@-]?1)?|top[_-]?1([_-]?(acc(uracy)?|err(or)?))?"
_CROSS_ENTROPY = r"((ce|nll|cross[_-]?entropy)[_-]?)?loss|ce|nll|cross[_-]?entropy"


@dataclass(frozen=True)
class TrainingCurve:
    """A curve on training data, a value a check, None where there is none.

    Args:
        name: What it is called in messages and figures.
        values: In the metric's own direction.
        comparable: Whether it is the same quantity as the metric.
        chance: What a network that looks at nothing gets, as an error, where that is known.
    """

    name: str
    values: Sequence[float | None]
    comparable: bool
    chance: float | None = None


def find_training_curve(
    callbacks: Iterable[Any], table: Mapping[str, Sequence[Any]], monitor: str, mode: str
) -> TrainingCurve | None:
    """Return the curve on training data that is nearest to being the same quantity, if any.

    Args:
        callbacks: Callbacks of the Trainer; among them there may be a training monitor.
        table: History of early stopping.
        monitor: Key of the metric.
        mode: "min" or "max".
    """
    epochs = table.get("epoch", ())
    for callback in callbacks:
        twin_of = getattr(callback, "twin_of", None)
        column = None if twin_of is None else twin_of(monitor)
        if column is None:
            continue
        measured = callback.history
        by_epoch = dict(zip(measured.get("epoch", ()), measured.get(column, ()), strict=True))
        values = [by_epoch.get(epoch) for epoch in epochs]
        if _long_enough(values):
            chance = _chance(callback, monitor, mode, values)
            return TrainingCurve(f"{callback._prefix}/{column}", values, True, chance)
    logged = table.get("train_score", ())
    if not _long_enough(logged):
        return None
    return TrainingCurve(f"{twin_key(monitor)} as logged", list(logged), False)


def twin_key(monitor: str) -> str | None:
    """Return the key under which a loop logs the metric on training data, None without one.

    Example:
        >>> twin_key("valid/loss"), twin_key("interval_loss")
        ('train/loss', None)
    """
    twin, found = re.subn(_VALIDATION, "train", monitor, count=1)
    return twin if found else None


def has_mode_gap(callbacks: Iterable[Any]) -> bool:
    """Whether the training monitor found a network that is good in training mode only.

    It may keep one for its own conclusion, which need not come before this one.
    """
    found = [
        finding
        for callback in callbacks
        for finding in [*getattr(callback, "_found", ()), getattr(callback, "_lasting", None)]
    ]
    return any(one is not None and one.kind is FindingKind.MODE_GAP for one in found)


def _long_enough(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return len(known) >= MIN_CHECKS


def _chance(callback: Any, monitor: str, mode: str, values: Sequence[float | None]) -> float | None:
    """Return what chance gives, where the metric is what it is known of; no percentages."""
    name = re.sub(_VALIDATION, "", monitor).strip("_/-. ")
    shares = all(0 <= value <= 1 for value in values if value is not None)
    chance: float | None = None
    if mode == "min" and re.fullmatch(_CROSS_ENTROPY, name, re.IGNORECASE):
        chance = getattr(callback, "chance_loss", None)
    elif shares and re.fullmatch(_ERROR, name, re.IGNORECASE):
        chance = getattr(callback, "chance_error", None)
    return chance
