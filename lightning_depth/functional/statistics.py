"""Least-squares slopes with their interval, without scipy.

A callback concludes from the slope of a quantity over depth, in a base install that has torch
only. Student's distribution has a finite series for whole degrees of freedom (Abramowitz and
Stegun 1964, 26.7.3 and 26.7.4), which is exact, and its quantile is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_depth.errors import ConfigurationError, check_count, check_real

__all__ = ["Numbers", "Slope", "fit_slope", "student_t_quantile"]

Numbers: TypeAlias = Sequence[float] | NDArray[np.float64]
"""Numbers in a row, as a list or an array."""


class Slope(NamedTuple):
    """A fitted straight line and the interval of its slope.

    Args:
        value: Change of the response per unit of the predictor.
        low: Lower end of the interval, minus infinity where two points leave no freedom.
        high: Upper end of the interval.
        intercept: Fitted response where the predictor is zero.
        num_points: How many points were fitted.

    Example:
        >>> Slope(value=2.0, low=1.5, high=2.5, intercept=0.0, num_points=9).value
        2.0
    """

    value: float
    low: float
    high: float
    intercept: float
    num_points: int


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution.

    Args:
        probability: Share of the distribution below the quantile, between 0 and 1.
        degrees: Degrees of freedom, a whole number of at least 1.

    Returns:
        The quantile.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> round(student_t_quantile(0.975, 10), 6)
        2.228139
    """
    check_count("degrees", degrees)
    check_real("probability", probability, 0.0, 1.0, exclusive=True)
    return _quantile(probability, degrees)


def fit_slope(x: Numbers, y: Numbers, confidence: float = 0.95) -> Slope:
    """Return the least-squares line through points, with the t interval of its slope.

    Args:
        x: The predictor, for instance the depth of each layer.
        y: The response; points at which either is not finite are left out.
        confidence: Probability that the interval covers the slope, under normal errors.

    Returns:
        The slope with its interval; not-a-number where fewer than two distinct predictors are
        left.

    Raises:
        ConfigurationError: The two differ in length, or the confidence is out of range.

    Example:
        >>> slope = fit_slope([1, 2, 3, 4], [1.0, 2.9, 5.1, 7.0])
        >>> [round(end, 3) for end in (slope.low, slope.value, slope.high)]
        [1.837, 2.02, 2.203]
    """
    check_real("confidence", confidence, 0.0, 1.0, exclusive=True)
    if len(x) != len(y):
        raise ConfigurationError(f"`x` (={len(x)} values) must be as long as `y` (={len(y)}).")
    x_kept, y_kept = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(x_kept) & np.isfinite(y_kept)
    if not finite.all():
        x_kept, y_kept = x_kept[finite], y_kept[finite]
    count = len(x_kept)
    if not count:
        return Slope(math.nan, math.nan, math.nan, math.nan, count)
    mean_x, mean_y = float(x_kept.sum()) / count, float(y_kept.sum()) / count
    from_mean, residuals = x_kept - mean_x, y_kept - mean_y
    spread = float(from_mean @ from_mean)
    if not spread:
        return Slope(math.nan, math.nan, math.nan, math.nan, count)
    value = float(from_mean @ residuals) / spread
    intercept = mean_y - value * mean_x
    if count == 2:
        return Slope(value, -math.inf, math.inf, intercept, count)
    residuals -= value * from_mean
    error = math.sqrt(float(residuals @ residuals) / (count - 2) / spread)
    margin = _quantile(0.5 + confidence / 2, count - 2) * error
    return Slope(value, value - margin, value + margin, intercept, count)


@lru_cache(maxsize=1024)
def _quantile(probability: float, degrees: int) -> float:
    if probability < 0.5:
        return -_quantile(1.0 - probability, degrees)
    low, high = 0.0, 1.0
    while _cumulative(high, degrees) < probability:
        low, high = high, 2.0 * high
    for _ in range(80):  # halves the bracket down to float64's last digit
        middle = (low + high) / 2
        low, high = (middle, high) if _cumulative(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _cumulative(t: float, degrees: int) -> float:
    """The share of the distribution below a quantile of at least zero."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    within = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return 0.5 + within / 2
