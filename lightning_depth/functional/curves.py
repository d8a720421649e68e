"""What the curves of a run say: over-fitting, under-fitting, still improving, or nothing.

Curves hold errors or losses, lower is better, one value a check. Letters: T checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
"""Validation is no better than chance above this share of it."""
UNMOVED = 0.9
"""Where chance is not known, training that stays above this share of its start learnt nothing."""

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
    stopped: bool = False,
) -> CurveVerdict | None:
    """Return what the curves of a run say, if they say anything.

    - "overfitting": validation has risen from its lowest level while training still falls.
    - "not_generalizing": training has fallen far, validation never got better than ``chance``.
    - "underfitting": both are high at the end, compared with ``chance``; where that is not known,
      training has hardly moved.
    - "unstable": validation has risen, and training has not fallen.
    - "still_improving": validation is still falling at the end, and nothing stopped it.

    Args:
        validation: Errors or losses on validation data, one a check.
        training: The same quantity on training data at the same checks, if it is known.
        chance: What a network that looks at nothing gets, if it is known.
        stopped: Whether training stopped because nothing improved any more.

    Returns:
        The verdict, or None where the curves are short or say nothing.

    Example:
        >>> falling = [2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
        >>> judge_curves([2.0, 1.2, 1.0, 1.1, 1.3, 1.6, 1.9, 2.2], falling).kind
        'overfitting'
    """
    if len(validation) < MIN_CHECKS:
        return None
    lowest = _lowest(validation)
    rise, limit = _rise(validation, lowest)
    if training is None:
        return _judge_alone(validation, lowest, stopped)
    reference = chance if chance is not None else training[0]
    end = median(training[-3:])
    falling = end < 0.95 * _level(training, lowest) or end < 0.05 * reference
    if rise > limit and falling:
        return CurveVerdict("overfitting", rise, limit, lowest)
    level = median(validation) / reference
    if chance is not None and end < HIGH * reference and level > NO_BETTER:
        return CurveVerdict("not_generalizing", level, NO_BETTER, lowest)
    if chance is not None and min(end, median(validation[-3:])) > HIGH * reference:
        return CurveVerdict("underfitting", end / reference, HIGH, lowest)
    if chance is None and end > UNMOVED * reference:
        return CurveVerdict("underfitting", end / reference, UNMOVED, lowest)
    if rise > limit:
        return CurveVerdict("unstable", rise, limit, lowest)
    return _judge_alone(validation, lowest, stopped)


def _judge_alone(validation: Sequence[float], lowest: int, stopped: bool) -> CurveVerdict | None:
    """Whether validation is still falling."""
    if stopped or lowest < len(validation) - 3:
        return None
    quarter = max(2, len(validation) // 4)
    now, earlier = mean(validation[-2:]), mean(validation[-quarter - 2 : -quarter])
    fall = earlier - now
    limit = max(NOISE_FACTOR * noise_level(validation), 0.02 * abs(earlier))
    return CurveVerdict("still_improving", fall, limit, lowest) if fall > limit else None


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
    unit = levels[lowest] if min(values) >= 0 else max(values) - min(values)
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
