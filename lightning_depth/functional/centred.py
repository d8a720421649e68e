"""Separation of features that are all at hand: no matrix of D by D, no sums to be centred later.

Letters: N samples, C classes, D features, R rank of the class means. Everything is float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional._span import Weighting, is_measurable, total, whiten_means

__all__ = [
    "CentredFeatures",
    "centre",
    "fisher_of_features",
    "separation_of_features",
]

BLOCK = 256  # samples whose residuals are formed at once
ROUNDING = 4  # units in the last place of the features that are rounding


class CentredFeatures(NamedTuple):
    """Features at hand about their class means: what several measures share.

    Args:
        residuals: Float64, about the class mean ``(N - K, D)``; one sample of each of the K classes
            is left out, as it is minus the sum of the others.
        labels: Class of each residual ``(N - K,)``.
        counts: Samples of each class ``(C,)``.
        means: Mean of each class about the mean of all ``(C, D)``, zero for absent classes.
        variances: Mean squared distance of each class's samples from their mean ``(C,)``, zero for
            absent classes.

    Example:
        >>> centre(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), 2).means.tolist()
        [[-1.0], [1.0]]
    """

    residuals: Tensor
    labels: Tensor
    counts: Tensor
    means: Tensor
    variances: Tensor


def centre(features: Tensor, labels: Tensor, num_classes: int) -> CentredFeatures:
    """Return features about their class means in float64, with those means.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``, none negative

    Args:
        features: Features, any floating type.
        labels: Class of each sample.
        num_classes: Number of classes C.

    Returns:
        Residuals, class means and class variances. Residuals are zero where the classes are points
        but for rounding, and so are the means where those points coincide.

    Example:
        >>> centre(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), 1).variances.tolist()
        [1.0]
    """
    order = torch.argsort(labels, stable=True)
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[1:] = labels[order[1:]] != labels[order[:-1]]
    order = torch.cat([order[~is_first], order[is_first]])  # so that those left out come last
    kept = int((~is_first).sum())
    x, y = features[order].double(), labels[order]
    # what is no more than the rounding of the features themselves is no spread
    noise = (ROUNDING * torch.finfo(features.dtype).eps * torch.linalg.vector_norm(x)) ** 2
    x -= x.mean(0)
    counts = torch.bincount(y, minlength=num_classes).double()
    sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, y, x)
    means = sums / counts.clamp(min=1)[:, None]
    squares = torch.zeros_like(counts)
    for rows, numbers in zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True):
        squares.index_add_(0, numbers, rows.sub_(means[numbers]).square().sum(1))
    if bool(squares.sum() <= noise):
        x.zero_()
        squares.zero_()
        if bool((counts * means.square().sum(1)).sum() <= noise):
            means.zero_()
    return CentredFeatures(x[:kept], y[:kept], counts, means, squares / counts.clamp(min=1))


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
    residuals, labels, counts, means, _ = centred
    if not is_measurable(counts, means):
        return means.new_tensor(math.nan)
    factors = whiten_means(counts, means, weighting)
    whitened = torch.linalg.multi_dot([residuals, *factors])  # (N - K, R)
    left_out = whitened.new_zeros(len(counts), whitened.shape[1]).index_add_(0, labels, whitened)
    energy = whitened.square_().sum(0) + left_out.square_().sum(0)
    return total(energy) / counts.sum()


def fisher_of_features(centred: CentredFeatures) -> Tensor:
    """Return the Fisher ratio of features at hand.

    Args:
        centred: What ``centre`` returned.

    Returns:
        A float64 scalar, as ``fisher_ratio``: infinite where the classes are points.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> fisher_of_features(centre(x, torch.tensor([0, 0, 1, 1]), 2)).item()
        25.0
    """
    _, _, counts, means, variances = centred
    if not is_measurable(counts, means):
        return means.new_tensor(math.nan)
    return (counts * means.square().sum(1)).sum() / (counts * variances).sum()
