"""How many directions features really use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["effective_rank"]


def effective_rank(features: Tensor, centered: bool = True) -> Tensor:
    r"""Return the exponential of the entropy of the singular values.

    :math:`\exp(-\sum_i p_i \log p_i)` with :math:`p = \sigma / \sum \sigma`, of Roy and Vetterli,
    "The effective rank" (2007); RankMe (Garrido et al. 2023, arXiv 2210.02885) is the same without
    centring. It lies between 1 and the smaller of N - 1 and D.

    Shape:
        - features: ``(N, D)``

    Args:
        features: Features, any floating type.
        centered: Whether the mean is taken out first. Left in, a common offset counts as a
            direction and hides the others.

    Returns:
        A float64 scalar; NaN with fewer than two samples, for constant and for non-finite features.

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 9)
        3.0
    """
    x = features.double()
    if len(x) < 2 or not bool(torch.isfinite(x).all()):
        return x.new_tensor(math.nan)
    size = x.abs().max()
    x = x - x.mean(0) if centered else x
    values = torch.linalg.svdvals(x)
    if not values[0] > 8 * max(x.shape) * torch.finfo(x.dtype).eps * size:
        return x.new_tensor(math.nan)
    shares = values / values.sum()
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank
