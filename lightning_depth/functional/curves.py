"""What the curves of a run say: over-fitting, under-fitting, still improving, or nothing.

Curves hold errors or losses, lower is better, one value a check. Letters: T checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Literal

__all__ = ["CurveVerdict", "judge_curves", "noise_level"]

MIN_CHECKS = 5
"""Shorter curves say nothing."""
NOISE_FACTOR = 4.0
"""A change is one if it exceeds this many standard deviations of the curve's noise."""
RISE = 0.05
"""A rise is one if it also exceeds this share of the lowest value."""
SWING_FACTOR = 3.0
"""A rise is one if it exceeds this many times the largest swing the other way, or earlier on."""
HIGH = 0.5
"""An error is high above this share of what always answering the commonest class gives."""
NO_BETTER = 0.95
"""An error is no better than chance above this share of it."""
FALL = 0.05
"""Training falls if it ends by more than this share below its level at the best validation."""
DONE = 0.05
"""Training below this share of chance has nothing left to fall by."""

Kind = Literal["overfitting", "not_generalizing", "underfitting", "unstable", "still_improving"]


@dataclass(frozen=True)
class CurveVerdict:
    """What the curves of a run say.

    Args:
        kind: What they say.
        value: The number that decided.
        threshold: What it was held against.
        at: Index of the check at which validation was lowest.

    Example:
        >>> CurveVerdict("overfitting", value=0.2, threshold=0.05, at=7).kind
        'overfitting'
    """

    kind: Kind
    value: float
    threshold: float
    at: int


def noise_level(values: Sequence[float]) -> float:
    """Return the standard deviation of a curve about its trend, from its second differences.

    The median makes it robust: a steep start or a single jump does not count as noise.

    Args:
        values: A curve.

    Returns:
        The standard deviation; 0 for fewer than three values.

    Example:
        >>> noise_level([5.0, 4.0, 3.0, 2.0])
        0.0
    """
    bends = [
        abs(after - 2 * here + before)
        for before, here, after in zip(values, values[1:], values[2:], strict=False)
    ]
    # of independent noise a second difference has variance 6; 1.4826 makes a median a deviation
    return 1.4826 * median(bends) / math.sqrt(6) if bends else 0.0


def judge_curves(
    validation: Sequence[float],
    training: Sequence[float] | None = None,
    *,
    chance: float | None = None,
    comparable: bool = True,
    stopped: bool = False,
) -> CurveVerdict | None:
    """Return what the curves of a run say, if they say anything.

    - "underfitting": training is no better than ``chance`` at the end, or both are high compared
      with it.
    - "overfitting": validation has risen from its lowest level while training still falls, or has
      no error left.
    - "not_generalizing": training has fallen far, validation never got better than ``chance``.
    - "unstable": validation has risen, and training has not fallen.
    - "still_improving": validation is still falling at the end, and nothing stopped it.

    A network that is no better than chance has fitted nothing, so that it is never called
    over-fitted. Checks at which a value is not finite do not count.

    Args:
        validation: Errors or losses on validation data, one a check.
        training: Errors or losses on training data at the same checks, if they are known.
        chance: What a network that looks at nothing gets, if it is known; never guessed from the
            curves, whose first value may be far above it, or far below.
        comparable: Whether training is the same quantity as validation, measured in the same way.
            Otherwise it is asked only whether it falls.
        stopped: Whether training stopped because nothing improved any more.

    Returns:
        The verdict, or None where the curves are short or say nothing.

    Example:
        >>> falling = [2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
        >>> judge_curves([2.0, 1.2, 1.0, 1.1, 1.3, 1.6, 1.9, 2.2], falling).kind
        'overfitting'
    """
    if training is not None and len(training) != len(validation):
        training = None
    curves = [validation] if training is None else [validation, training]
    counted = [index for index, row in enumerate(zip(*curves, strict=True)) if _all_finite(row)]
    if len(counted) < MIN_CHECKS:
        return None
    verdict = _judge(
        [validation[index] for index in counted],
        None if training is None else [training[index] for index in counted],
        chance if comparable and chance is not None and 0 < chance < math.inf else None,
        stopped,
    )
    if verdict is None or not _all_finite([verdict.value, verdict.threshold]):
        return None
    return replace(verdict, at=counted[verdict.at])


def _judge(
    validation: Sequence[float],
    training: Sequence[float] | None,
    chance: float | None,
    stopped: bool,
) -> CurveVerdict | None:
    lowest = _lowest(validation)
    if training is None:
        return _judge_alone(validation, lowest, stopped)
    end = median(training[-3:])
    share = None if chance is None else end / chance
    high = chance is not None and min(end, median(validation[-3:])) > HIGH * chance
    if high and share is not None and share > NO_BETTER:
        return CurveVerdict("underfitting", share, HIGH, lowest)
    rise, limit = _rise(validation, lowest)
    if rise > limit and _is_falling(training, lowest, chance):
        return CurveVerdict("overfitting", rise, limit, lowest)
    if chance is not None and end < HIGH * chance and median(validation) > NO_BETTER * chance:
        return CurveVerdict("not_generalizing", median(validation) / chance, NO_BETTER, lowest)
    if high and share is not None:
        return CurveVerdict("underfitting", share, HIGH, lowest)
    if rise > limit:
        return CurveVerdict("unstable", rise, limit, lowest)
    return _judge_alone(validation, lowest, stopped)


def _is_falling(training: Sequence[float], since: int, chance: float | None) -> bool:
    """Whether training has fallen since a check, or has nothing left to fall by."""
    end = median(training[-3:])
    if end == 0 <= min(training) or (chance is not None and end < DONE * chance):
        return True
    level = _level(training, since)
    return level - end > FALL * _unit(training, level)


def _judge_alone(validation: Sequence[float], lowest: int, stopped: bool) -> CurveVerdict | None:
    """Whether validation is still falling."""
    if stopped or lowest < len(validation) - 3:
        return None
    quarter = max(2, len(validation) // 4)
    now, earlier = mean(validation[-2:]), mean(validation[-quarter - 2 : -quarter])
    fall = earlier - now
    limit = max(NOISE_FACTOR * noise_level(validation), 0.02 * abs(earlier))
    return CurveVerdict("still_improving", fall, limit, lowest) if fall > limit else None


def _all_finite(values: Iterable[float]) -> bool:
    return all(map(math.isfinite, values))


def _unit(values: Sequence[float], level: float) -> float:
    """What shares of a curve are taken of: a level, or its range where it goes below zero."""
    return level if min(values) >= 0 else max(values) - min(values)


def _lowest(values: Sequence[float]) -> int:
    """Index of the lowest level, which one lucky check does not make."""
    levels = [_level(values, index) for index in range(len(values))]
    return levels.index(min(levels))


def _window(values: Sequence[float]) -> int:
    """Number of checks over which a level is taken; odd, and more of them in long curves."""
    return max(3, len(values) // 8 | 1)


def _level(values: Sequence[float], index: int) -> float:
    half = _window(values) // 2
    return median(values[max(index - half, 0) : index + half + 1])


def _rise(values: Sequence[float], lowest: int) -> tuple[float, float]:
    """Return by how much the end lies above the lowest level, and what it must exceed.

    A curve that wanders up and down has risen and fallen as far before: such swings count as
    noise too, whatever their length.
    """
    levels = [_level(values, index) for index in range(len(values))]
    unit = _unit(values, levels[lowest])
    if len(values) - lowest < 4:
        return 0.0, RISE * unit
    window = _window(values)
    rise = median(values[-window:]) - levels[lowest]
    noise = NOISE_FACTOR * noise_level(values) * math.sqrt(3 / window)
    swing = max(_climb(levels[: lowest + 1]), _climb(levels[lowest:][::-1]))
    return rise, max(noise, SWING_FACTOR * swing, RISE * unit)


def _climb(levels: Sequence[float]) -> float:
    """Largest rise from a value to a later one."""
    low, climb = levels[0], 0.0
    for level in levels:
        low = min(low, level)
        climb = max(climb, level - low)
    return climb
