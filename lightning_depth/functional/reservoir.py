"""Bounded samples of a stream that do not depend on its order, its batches or its processes.

Every sample gets a key, a seeded hash of what it holds, and those with the smallest keys are kept.
The same samples are therefore chosen by one process and by eight, and twice in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced_quota", "content_keys", "rank_in_class", "smallest_keys"]

_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of the splitmix64 generator
_SHIFTS = (30, 27, 31)


def content_keys(rows: Tensor, seed: int = 0) -> Tensor:
    """Return a pseudo-random key for each row, equal for equal rows.

    Shape:
        - rows: ``(N, D)``
        - output: ``(N,)``

    Args:
        rows: Any real type; the value counts, not the type it is stored in.
        seed: Another seed gives another order of the same rows.

    Returns:
        Keys, int64, never negative.

    Example:
        >>> keys = content_keys(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
        (True, False)
    """
    bits = rows.double().contiguous().view(torch.int64)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randint(-(2**63), 2**63 - 1, (rows.shape[1],), generator=generator)
    keys = bits >> 32
    keys ^= bits
    keys *= (factors | 1).to(bits.device)
    keys = keys.sum(1)
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        keys = (keys ^ ((keys >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    return keys & (2**63 - 1)


def smallest_keys(keys: Tensor, capacity: int) -> Tensor:
    """Return where the smallest keys are, smallest first.

    Shape:
        - keys: ``(N,)``
        - output: ``(M,)`` with M the smaller of N and ``capacity``

    Args:
        keys: Keys of the samples.
        capacity: At most this many are kept.

    Returns:
        Indices into ``keys``; the earlier of two equal keys comes first.

    Example:
        >>> smallest_keys(torch.tensor([5, 1, 3]), capacity=2).tolist()
        [1, 2]
    """
    return torch.argsort(keys, stable=True)[:capacity]


def rank_in_class(keys: Tensor, labels: Tensor) -> Tensor:
    """Return the place of each sample's key among the keys of its class, from 0.

    Shape:
        - keys: ``(N,)``
        - labels: ``(N,)``
        - output: ``(N,)``

    Args:
        keys: Keys of the samples.
        labels: Class of each sample.

    Returns:
        Places, int64.

    Example:
        >>> rank_in_class(torch.tensor([5, 1, 3]), torch.tensor([0, 0, 1])).tolist()
        [1, 0, 0]
    """
    order = torch.argsort(keys, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    ordered = labels[order]
    ranks = torch.empty_like(order)
    first_of_class = torch.searchsorted(ordered, ordered)
    ranks[order] = torch.arange(len(keys), device=keys.device) - first_of_class
    return ranks


def balanced_quota(counts: Tensor, capacity: int) -> int:
    """Return how many samples a class may keep so that all classes together fit.

    Classes with fewer samples keep all, and the others share what is left alike.

    Shape:
        - counts: ``(C,)``

    Args:
        counts: Samples of each class that were seen.
        capacity: Samples that may be kept in all.

    Returns:
        The largest quota for which the kept samples are at most ``capacity``; 1 where there are
        more classes than that.

    Example:
        >>> balanced_quota(torch.tensor([2, 100, 100]), capacity=50)
        24
    """
    present = counts[counts > 0].sort().values
    if not len(present):
        return 1
    smaller = present.cumsum(0) - present  # samples of all classes that have fewer
    shares = (capacity - smaller) // torch.arange(len(present), 0, -1, device=counts.device)
    cut = (shares < present).nonzero()[:, 0]
    # the first class that cannot be kept whole sets the quota
    return max(1, int(shares[cut[0]])) if len(cut) else int(present[-1])
