"""The law of data separation: a straight line through its logarithm over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_depth.functional.statistics import fit_slope

__all__ = ["Gain", "SeparationLaw", "fit_separation_law", "separation_gain"]


class SeparationLaw(NamedTuple):
    """Straight line through the logarithm of the separation over depth.

    Args:
        decay_ratio: Factor by which the separation changes from a layer to the next; below 1 every
            layer helps.
        r_squared: Share of the variance of the log separation that the line explains.
        intercept: Logarithm of the separation that the line has at depth 0.
        num_layers: Layers that went into it.
        low: Lower end of the 95 % interval of the decay ratio, by Student's t over the layers.
        high: Upper end of that interval.

    Example:
        >>> SeparationLaw(0.5, 1.0, 0.0, 3).decay_ratio
        0.5
    """

    decay_ratio: float
    r_squared: float
    intercept: float
    num_layers: int
    low: float = math.nan
    high: float = math.nan


def fit_separation_law(depths: Sequence[float], separations: Sequence[float]) -> SeparationLaw:
    r"""Fit :math:`D_l = \rho^l D_0` by least squares on the logarithm.

    He and Su, "A law of data separation in deep learning" (2022, arXiv 2210.17020).

    Args:
        depths: Depth of each layer.
        separations: Data separation at each layer; layers where it is not a positive number are
            left out.

    Returns:
        The line, all NaN with fewer than three layers.

    Example:
        >>> law = fit_separation_law([1, 2, 3, 4], [8.0, 4.0, 2.0, 1.0])
        >>> round(law.decay_ratio, 6), round(law.r_squared, 6)
        (0.5, 1.0)
    """
    points = [
        (float(depth), math.log(value))
        for depth, value in zip(depths, separations, strict=True)
        if math.isfinite(value) and value > 0
    ]
    if len(points) < 3:
        return SeparationLaw(math.nan, math.nan, math.nan, len(points))
    x, y = (np.array(values) for values in zip(*points, strict=True))
    line = fit_slope(x, y)
    spread_x, spread_y = (float(((values - values.mean()) ** 2).sum()) for values in (x, y))
    r_squared = line.value**2 * spread_x / spread_y if spread_y > 0 else math.nan
    ratio, low, high = (math.exp(end) for end in (line.value, line.low, line.high))
    return SeparationLaw(ratio, r_squared, line.intercept, len(points), low, high)


class Gain(NamedTuple):
    """How much a layer lowers the logarithm of the separation, and how sure that is.

    Args:
        gain: Fall of the log separation against the layer before; negative where the layer makes
            it worse.
        error: Standard error of the gain, from a jackknife over the samples; NaN where there are
            fewer than two groups of them.
        probability: Probability that the gain is below what counts as one.

    Example:
        >>> Gain(0.5, 0.1, 0.0).gain
        0.5
    """

    gain: float
    error: float
    probability: float


def separation_gain(
    before: Sequence[float], after: Sequence[float], minimum: float, full: tuple[float, float]
) -> Gain:
    """Return the fall of the log separation between two layers with its jackknife standard error.

    The same samples are left out at both layers, so that what they share cancels.

    Args:
        before: log separation at the first layer without each group of samples.
        after: log separation at the second layer without the same groups.
        minimum: Fall of the log separation that counts as a gain.
        full: log separation of both layers with all samples.

    Returns:
        The gain.

    Example:
        >>> gain = separation_gain([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], 0.05, (2.0, 1.0))
        >>> round(gain.gain, 6), round(gain.error, 6), round(gain.probability, 6)
        (1.0, 0.0, 0.0)
    """
    differences = [first - second for first, second in zip(before, after, strict=True)]
    count, gain = len(differences), full[0] - full[1]
    if count < 2:
        return Gain(gain, math.nan, math.nan)
    mean = math.fsum(differences) / count
    variance = (count - 1) / count * math.fsum((value - mean) ** 2 for value in differences)
    error = math.sqrt(variance)
    if error > 1e-12:
        probability = 0.5 * (1 + math.erf((minimum - gain) / (error * math.sqrt(2))))
    else:
        probability = math.nan if math.isnan(gain) else float(gain < minimum)
    return Gain(gain, error, probability)
