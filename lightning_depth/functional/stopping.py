"""When to stop training: Prechelt's quantities on the curves of a run.

Letters: T checks so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_depth.errors import MisuseError

__all__ = ["generalization_loss", "rises_in_strips", "training_progress"]


def generalization_loss(scores: Sequence[float]) -> float:
    """Return by how many percent the last validation error lies above the lowest so far.

    GL of Prechelt 1998 ("Early stopping - but when?"): ``100 (E(t) / min E - 1)``.

    Args:
        scores: Validation errors, one a check, of at least 0.

    Returns:
        Percent; infinite where the lowest is 0 and the last is not.

    Raises:
        MisuseError: An error is negative, of which a percentage means nothing.

    Example:
        >>> round(generalization_loss([1.0, 0.5, 0.6]), 6)
        20.0
    """
    if min(scores) < 0:
        raise MisuseError(
            "Prechelt's criteria need a monitored error of at least 0 that is minimised, "
            f"but got {min(scores):g}."
        )
    best, last = min(scores), scores[-1]
    if last == best:
        return 0.0
    return 100 * (last / best - 1) if best else math.inf


def training_progress(train_losses: Sequence[float], k: int) -> float:
    """Return by how many per mille the mean of the last k training losses exceeds their lowest.

    P_k of Prechelt 1998: ``1000 (mean / min - 1)``, high while training moves or is unstable.

    Args:
        train_losses: Training losses, one a check.
        k: Length of the strip.

    Returns:
        Per mille; infinite where the lowest is 0 and the mean is not.

    Example:
        >>> round(training_progress([9.0, 0.3, 0.2], k=2), 6)
        250.0
    """
    strip = train_losses[-k:]
    mean, lowest = sum(strip) / len(strip), min(strip)
    if mean == lowest:
        return 0.0
    return 1000 * (mean / lowest - 1) if lowest else math.inf


def rises_in_strips(scores: Sequence[float], k: int) -> int:
    """Return in how many of the latest successive strips of k checks the error has risen.

    UP_s of Prechelt 1998 stops when this reaches s. A rise is from the end of one strip to the
    end of the next.

    Args:
        scores: Validation errors; the last is the end of a strip.
        k: Length of a strip.

    Returns:
        The number of rises in a row, counted from the end.

    Example:
        >>> rises_in_strips([3.0, 1.0, 2.0, 2.5], k=1)
        2
    """
    ends = list(scores[::-1][::k])  # newest first
    count = 0
    for later, earlier in pairwise(ends):
        if later <= earlier:
            break
        count += 1
    return count
