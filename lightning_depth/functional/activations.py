"""What the activations of a layer say about its units, from sums that need no second pass.

Letters: N samples, D features of a sample, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_depth.errors import check_real, invalid

__all__ = [
    "code_features",
    "dead_units",
    "dormant_units",
    "gram_matrix",
    "rank_of_gram",
    "sample_features",
    "saturated_share",
]


def dead_units(maximum: Tensor) -> Tensor:
    """Return which rectified units were dead: never above zero for any sample.

    A dead unit is a property of the unit, not a share of zeros: a layer in which every unit is
    silent for half of the samples has no dead unit (Lu et al. 2019, 1903.06733).

    Shape:
        ``(units,)`` to ``(units,)``

    Args:
        maximum: Largest output of each unit over all samples and positions.

    Returns:
        Whether each unit was dead.

    Example:
        >>> dead_units(torch.tensor([0.0, 1e-3, 2.0])).tolist()
        [True, False, False]
    """
    return maximum <= 0


def dormant_units(
    mean_size: Tensor, tau: float = 0.025, sizes: Sequence[int] | None = None
) -> Tensor:
    """Return which units are dormant: much quieter than the layer's average.

    Dormant neurons of Sokar et al. (2023, 2302.12902). A layer that is silent as a whole has only
    dormant units.

    Shape:
        ``(units,)`` to ``(units,)``

    Args:
        mean_size: Mean absolute output of each unit.
        tau: Share of the layer's average at or below which a unit is dormant.
        sizes: Units of each layer where several stand one after the other; one layer by default.

    Returns:
        Whether each unit is dormant.

    Raises:
        ConfigurationError: ``tau`` is negative.

    Example:
        >>> dormant_units(torch.tensor([1.0, 1.0, 0.01]), tau=0.1).tolist()
        [False, False, True]
        >>> dormant_units(torch.tensor([1.0, 0.01, 0.01]), tau=0.1, sizes=[2, 1]).tolist()
        [False, True, False]
    """
    check_real("tau", tau, 0.0)
    if sizes is None:
        return mean_size <= tau * mean_size.mean()
    lengths = torch.tensor(sizes, device=mean_size.device)
    averages: Tensor = torch.segment_reduce(mean_size, "mean", lengths=lengths)
    return mean_size <= tau * averages.repeat_interleave(lengths)


def saturated_share(outputs: Tensor, low: float, high: float, margin: float = 0.05) -> Tensor:
    """Return the share of outputs that lie near a bound of their activation.

    Saturation is measured against the bounds of the activation itself (Glorot and Bengio 2010); a
    bound that is infinite is not looked at.

    Shape:
        any to ``()``

    Args:
        outputs: Outputs of a bounded activation.
        low: Its lower bound.
        high: Its upper bound.
        margin: How near counts, as a share of the distance between the bounds, or of the finite
            one from zero.

    Returns:
        A share between 0 and 1.

    Raises:
        ConfigurationError: The bounds are in the wrong order.

    Example:
        >>> saturated_share(torch.tensor([0.99, 0.5, 0.01, 0.3]), 0.0, 1.0).item()
        0.5
    """
    if not low < high:
        raise invalid("low", f"below `high` (={high})", low)
    near = torch.zeros_like(outputs, dtype=torch.bool)
    both = low > -torch.inf and high < torch.inf
    span = high - low if both else min(abs(low), abs(high))
    if low > -torch.inf:
        near |= outputs <= low + margin * span
    if high < torch.inf:
        near |= outputs >= high - margin * span
    return near.float().mean()


def sample_features(outputs: Tensor, max_samples: int = 16, max_features: int = 4096) -> Tensor:
    """Return a copy of a few outputs that stands for all of them.

    Shape:
        ``(N, ...)`` to ``(n, d)``

    Args:
        outputs: One output a sample.
        max_samples: Samples that are taken, the first ones.
        max_features: Features that are taken, spread evenly over the output.

    Returns:
        The copy, in single precision.

    Example:
        >>> sample_features(torch.zeros(100, 3, 64, 64)).shape
        torch.Size([16, 4096])
    """
    features = outputs[:max_samples].flatten(1)
    if features.shape[1] > max_features:
        features = features[:, :: -(-features.shape[1] // max_features)]
    return features.to(torch.float32, copy=True)


def code_features(codes: Tensor, max_samples: int = 16, max_positions: int = 256) -> Tensor:
    """Return features of words or class numbers in which only equal ones are alike.

    At each position samples with the same code share a one, as in a one-hot code whose length
    does not depend on how many codes there are.

    Shape:
        ``(N, ...)`` to ``(n, n * d)``

    Args:
        codes: Whole numbers or flags, one row a sample.
        max_samples: Samples that are taken, the first ones.
        max_positions: Positions that are taken, spread evenly.

    Returns:
        Zeros and ones in single precision.

    Example:
        >>> code_features(torch.tensor([[7], [9], [7]])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    rows = codes[:max_samples].flatten(1)
    rows = rows[:, :: max(1, -(-rows.shape[1] // max_positions))]
    first = (rows[:, None] == rows[None]).int().argmax(1)  # (n, d), the first sample that is alike
    places = torch.arange(len(rows), device=rows.device)
    return (first[..., None] == places).flatten(1).float()


def gram_matrix(features: Tensor) -> Tensor:
    """Return the inner products between the centered outputs of samples, over their mean square.

    The trace is the share of the signal that differs between samples, and the spectrum is that of
    the covariance of the features.

    Shape:
        ``(..., n, d)`` to ``(..., n, n)``

    Args:
        features: One row a sample.

    Returns:
        The matrix; its trace lies between 0 (every sample gives the same output) and 1.

    Example:
        >>> gram_matrix(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    pair = (-2, -1)
    largest = torch.maximum(features.amax(pair), -features.amin(pair))[..., None, None]
    scale = largest.clamp_min(torch.finfo(features.dtype).tiny)  # squares of 1e-25 would be zero
    mean = features.mean(dim=-2, keepdim=True)
    centered = (features - mean).div_(scale)
    gram = centered @ centered.mT
    differing = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    size = differing + (mean / scale).square().sum(pair, keepdim=True) * features.shape[-2]
    scaled: Tensor = gram / size.clamp_min(torch.finfo(features.dtype).tiny)
    return scaled


def rank_of_gram(grams: Tensor) -> Tensor:
    """Return the effective rank: the exponential of the entropy of the singular values.

    The centered effective rank of Roy and Vetterli (2007), from the matrix of inner products.
    Outputs that do not differ at all have rank zero.

    Shape:
        ``(L, n, n)`` to ``(L,)``

    Args:
        grams: What ``gram_matrix`` returned for each layer.

    Returns:
        Between 0 and ``n - 1``.

    Example:
        >>> rank_of_gram(torch.eye(4)[None]).tolist()
        [4.0]
    """
    spectra = torch.linalg.eigvalsh(grams.double()).clamp_min(0.0).sqrt()
    totals = spectra.sum(dim=-1, keepdim=True)
    shares = spectra / totals.clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -torch.xlogy(shares, shares).sum(dim=-1)
    return torch.where(totals[..., 0] > 1e-10, entropy.exp(), torch.zeros_like(entropy))
