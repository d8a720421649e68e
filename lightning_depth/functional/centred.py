"""Separation of features that are all at hand: no matrix of D by D, no sums to be centred later.

Letters: N samples, C classes, D features, R rank of the class means. Everything is float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional._span import (
    Weighting,
    is_measurable,
    quotient,
    span_of_means,
)

__all__ = [
    "CentredFeatures",
    "centre",
    "fisher_of_features",
    "separation_of_features",
    "variances_of_features",
]


BLOCK = 256  # samples whose residuals are in memory at once


class CentredFeatures(NamedTuple):
    """Features at hand about their mean, with their class means: what several measures share.

    Args:
        features: Float64, mean zero ``(N, D)``.
        labels: Class of each sample ``(N,)``.
        counts: Samples of each class ``(C,)``.
        means: Mean of each class ``(C, D)``, zero for absent classes.

    Example:
        >>> centre(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), 2).means.tolist()
        [[-1.0], [1.0]]
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    means: Tensor


def centre(features: Tensor, labels: Tensor, num_classes: int) -> CentredFeatures:
    """Return features about their mean in float64, with their class means.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``, none negative

    Args:
        features: Features, any floating type.
        labels: Class of each sample.
        num_classes: Number of classes C.

    Returns:
        Features and class means.

    Example:
        >>> centre(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), 2).features.tolist()
        [[-1.0], [1.0]]
    """
    x = features.to(torch.float64, copy=True)
    x -= x.mean(0)
    counts = torch.bincount(labels, minlength=num_classes).double()
    sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, labels, x)
    return CentredFeatures(x, labels, counts, sums / counts.clamp(min=1)[:, None])


def separation_of_features(centred: CentredFeatures, weighting: Weighting = "samples") -> Tensor:
    """Return the data separation of features at hand, without any matrix of D by D.

    The within-class scatter is formed only on the span of the class means, which is all that
    ``data_separation`` needs of it.

    Args:
        centred: What ``centre`` returned.
        weighting: As in ``data_separation``.

    Returns:
        A float64 scalar, NaN as in ``data_separation``.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> round(separation_of_features(centre(x, torch.tensor([0, 0, 1, 1]), 2)).item(), 9)
        0.04
    """
    x, labels, counts, means = centred
    if not is_measurable(counts, means):
        return x.new_tensor(math.nan)
    span = span_of_means(counts, means * counts[:, None], weighting)
    residual = x @ span.axes - (means @ span.axes)[labels]  # (N, R)
    return quotient(residual.square().mean(0), span.values)


def fisher_of_features(centred: CentredFeatures) -> Tensor:
    """Return the Fisher ratio of features at hand.

    Args:
        centred: What ``centre`` returned.

    Returns:
        A float64 scalar, as ``fisher_ratio``.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> fisher_of_features(centre(x, torch.tensor([0, 0, 1, 1]), 2)).item()
        25.0
    """
    x, _, counts, means = centred
    if not is_measurable(counts, means):
        return x.new_tensor(math.nan)
    between = (counts * means.square().sum(1)).sum()
    return between / (counts * variances_of_features(centred)).sum()


def variances_of_features(centred: CentredFeatures) -> Tensor:
    """Return the mean squared distance of each class's samples from their mean.

    Shape:
        - output: ``(C,)``

    Args:
        centred: What ``centre`` returned.

    Returns:
        The variances, zero for absent classes.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
        >>> variances_of_features(centre(x, torch.tensor([0, 0, 1, 1]), 2)).tolist()
        [1.0, 4.0]
    """
    variances = torch.zeros_like(centred.counts)
    parts = (torch.split(part, BLOCK) for part in (centred.features, centred.labels))
    for x, labels in zip(*parts, strict=True):
        squares = centred.means[labels].sub_(x).square_().sum(1)
        variances.index_add_(0, labels, squares)
    return variances / centred.counts.clamp(min=1)
