"""How a gradient changes over the depth of a network, in numbers that do not depend on its size.

The root mean square (RMS) of a weight's gradient over the RMS of the weight itself says how fast
a layer would change at a given learning rate. The raw RMS says less: it grows with the number of
positions at which a convolution is applied.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lightning_depth.errors import check_real
from lightning_depth.functional.statistics import Numbers, fit_slope

__all__ = ["GradientFlow", "clipped_norm", "gradient_flow"]


class GradientFlow(NamedTuple):
    """The trend of the gradient-to-weight ratio over depth.

    Args:
        shrink_per_layer: Factor by which the ratio falls with every layer toward the input: 1
            where the gradient flows unchanged, above 1 where it vanishes, below 1 where it grows.
        low: Lower end of the 95 % interval of that factor.
        high: Upper end of that interval.
        first_to_last: Ratio of the first layer over the ratio of the last one.
        decades: Powers of ten by which the fitted trend falls from the last layer to the first.

    Example:
        >>> round(gradient_flow([1, 2, 3], [0.1, 0.2, 0.4]).first_to_last, 6)
        0.25
    """

    shrink_per_layer: float
    low: float
    high: float
    first_to_last: float
    decades: float


def gradient_flow(depths: Numbers, ratios: Numbers) -> GradientFlow:
    """Return how the gradient-to-weight ratio changes with every layer toward the input.

    The trend is the least-squares slope of the logarithm of the ratio over depth (the profile of
    Glorot and Bengio 2010), with the t interval of the slope; a single odd layer does not decide
    it, as it would decide a comparison of the first layer with the last.

    Args:
        depths: Depth of each layer, 1 being nearest the input.
        ratios: RMS of the gradient over RMS of the weight of each layer; zeros and non-finite
            values are left out of the fit.

    Returns:
        The trend; not-a-number where fewer than two layers have a ratio above zero.

    Example:
        >>> flow = gradient_flow([1, 2, 3, 4], [0.001, 0.01, 0.1, 1.0])
        >>> round(flow.shrink_per_layer, 6), round(flow.decades, 6)
        (10.0, 3.0)
    """
    depth, ratio = np.asarray(depths, np.float64), np.asarray(ratios, np.float64)
    span = float(depth.max() - depth.min()) if len(depth) else 0.0
    kept = (ratio > 0) & (ratio < math.inf)
    if not kept.all():
        depth, ratio = depth[kept], ratio[kept]
    logs = np.log(ratio)
    slope = fit_slope(depth, logs)
    return GradientFlow(
        shrink_per_layer=_exp(slope.value),
        low=_exp(slope.low),
        high=_exp(slope.high),
        first_to_last=_exp(float(logs[0] - logs[-1])) if len(logs) > 1 else math.nan,
        decades=slope.value * span / math.log(10),
    )


def clipped_norm(norm: float, limit: float) -> float:
    """Return the norm that a gradient has after clipping by norm.

    Args:
        norm: Norm before clipping.
        limit: Largest norm allowed.

    Returns:
        The norm after ``torch.nn.utils.clip_grad_norm_``, whose denominator adds 1e-6.

    Raises:
        ConfigurationError: The limit is not a number above zero.

    Example:
        >>> clipped_norm(0.5, 1.0), round(clipped_norm(5.0, 1.0), 6)
        (0.5, 1.0)
    """
    check_real("limit", limit, 0.0, exclusive=True)
    if not math.isfinite(norm):
        return norm
    return norm * min(1.0, limit / (norm + 1e-6))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
