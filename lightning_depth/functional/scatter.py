"""Between-class and within-class scatter, and the measures of separation that follow from it.

Letters: N samples, C classes, D features, K classes that have samples, R rank of the class means.
Everything is float64. The moments are plain sums, which add exactly over batches and processes;
centring is left to the end, where it costs about six digits at an offset of a thousand standard
deviations and leaves nine.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional._span import Weighting, is_measurable, total, whiten_means

__all__ = [
    "Scatter",
    "Weighting",
    "class_scatter",
    "data_separation",
    "fisher_pairs",
    "fisher_ratio",
    "neural_collapse",
]


class Scatter(NamedTuple):
    """Sums from which every scatter matrix of labelled features can be formed.

    Args:
        counts: Samples of each class, ``(C,)``.
        sums: Sum of the features of each class, ``(C, D)``.
        moment: Sum of the outer products of all features with themselves, ``(D, D)``.

    Example:
        >>> scatter = class_scatter(torch.eye(4), torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> scatter.counts.tolist(), tuple(scatter.moment.shape)
        ([2.0, 2.0], (4, 4))
    """

    counts: Tensor
    sums: Tensor
    moment: Tensor


def class_scatter(features: Tensor, labels: Tensor, num_classes: int) -> Scatter:
    """Return counts, sums and second moments of labelled features.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``; samples with a negative label are left out

    Args:
        features: Features, any floating type; the sums are float64.
        labels: Class of each sample.
        num_classes: Number of classes C.

    Returns:
        The sums.

    Example:
        >>> class_scatter(torch.ones(3, 2), torch.tensor([0, 1, 1]), 2).sums.tolist()
        [[1.0, 1.0], [2.0, 2.0]]
    """
    kept = labels >= 0
    x, y = features[kept].double(), labels[kept]
    counts = torch.bincount(y, minlength=num_classes).double()
    sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, y, x)
    return Scatter(counts, sums, x.T @ x)


def data_separation(scatter: Scatter, weighting: Weighting = "samples") -> Tensor:
    r"""Return how far the classes are from being separated: the smaller, the better.

    :math:`D = \mathrm{Tr}(S_W S_B^+)` of He and Su, "A law of data separation in deep learning"
    (2022, arXiv 2210.17020). The pseudo-inverse is taken on the span of the class means, whose
    rank is at most K - 1.

    Args:
        scatter: Sums over the samples.
        weighting: How classes count in the between-class scatter: "samples" by their number of
            samples, as in the paper, "classes" all alike. Balanced data give the same.

    Returns:
        A float64 scalar; NaN where fewer than two classes have samples, where no class has two, or
        where the class means coincide or the features are not finite.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> round(data_separation(class_scatter(x, torch.tensor([0, 0, 1, 1]), 2)).item(), 9)
        0.04
    """
    if not is_measurable(scatter.counts, scatter.sums, scatter.moment):
        return scatter.sums.new_tensor(math.nan)
    whitener = reduce(torch.matmul, whiten_means(scatter.counts, _means(scatter), weighting))
    energy = (whitener * (_within(scatter) @ whitener)).sum(0)  # (R,)
    return total(energy) / scatter.counts.sum()


def neural_collapse(scatter: Scatter) -> Tensor:
    r"""Return the within-class variability that is left, NC1: zero when the classes collapsed.

    :math:`\mathrm{Tr}(S_W S_B^+) / K` of Papyan, Han and Donoho, "Prevalence of neural collapse"
    (2020, arXiv 2008.08186), with :math:`S_W` averaged over the samples and :math:`S_B` over the
    classes, so that it does not grow with the samples of a class.

    Args:
        scatter: Sums over the samples.

    Returns:
        A float64 scalar, NaN as in ``data_separation``.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> round(neural_collapse(class_scatter(x, torch.tensor([0, 0, 1, 1]), 2)).item(), 9)
        0.02
    """
    return data_separation(scatter, "classes") / (scatter.counts > 0).sum()


def fisher_ratio(scatter: Scatter) -> Tensor:
    r"""Return the between-class over the within-class variance, :math:`Tr(S_B) / Tr(S_W)`.

    Fisher, "The use of multiple measurements in taxonomic problems" (1936), in its trace form: it
    needs no inverse and exists where there are more features than samples. The larger, the better
    the classes are separated.

    Args:
        scatter: Sums over the samples.

    Returns:
        A float64 scalar; infinite where the classes are points, NaN where fewer than two classes
        have samples, no class has two, or all samples are equal.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> fisher_ratio(class_scatter(x, torch.tensor([0, 0, 1, 1]), 2)).item()
        25.0
    """
    if not is_measurable(scatter.counts, scatter.sums, scatter.moment):
        return scatter.sums.new_tensor(math.nan)
    between = (scatter.counts[:, None] * _centred_means(scatter).square()).sum()
    within = _within(scatter).diagonal().sum()
    # so much is left of equal samples where every addition rounds the same way
    left = scatter.counts.sum() * torch.finfo(within.dtype).eps * scatter.moment.diagonal().sum()
    if not bool(between + within > left):
        return torch.full_like(within, math.nan)
    return between / _floor(within, scatter)


def fisher_pairs(variances: Tensor, means: Tensor) -> Tensor:
    r"""Return Fisher's two-class criterion for every pair of classes.

    :math:`\lVert \mu_a - \mu_b \rVert^2 / (v_a + v_b)` with the mean squared distance :math:`v` of
    a class's samples from their mean. It is twice ``fisher_ratio`` of a balanced pair, and half the
    reciprocal of the class-distance normalised variance of Galanti et al. (2021, arXiv 2112.15121).

    Shape:
        - variances: ``(C,)``
        - means: ``(C, D)``

    Args:
        variances: Mean squared distance of each class's samples from their mean.
        means: Mean of each class.

    Returns:
        A symmetric ``(C, C)`` matrix; its diagonal and absent classes (NaN) hold NaN.

    Example:
        >>> fisher_pairs(torch.tensor([1.0, 1.0]), torch.tensor([[1.0], [11.0]]))[0, 1].item()
        50.0
    """
    centred = means - means.nanmean(0)
    gram = centred @ centred.T
    norms = gram.diagonal()
    squared = (norms[:, None] + norms - 2 * gram).clamp(min=0)
    ratio = squared / (variances[:, None] + variances)
    return ratio.fill_diagonal_(math.nan)


def _means(scatter: Scatter) -> Tensor:
    return scatter.sums / scatter.counts.clamp(min=1)[:, None]


def _centred_means(scatter: Scatter) -> Tensor:
    """Class means about the mean of all samples, zero for absent classes."""
    centre = scatter.sums.sum(0) / scatter.counts.sum()
    return torch.where(scatter.counts[:, None] > 0, _means(scatter) - centre, 0.0)


def _within(scatter: Scatter) -> Tensor:
    """Within-class scatter, not divided; the offset is taken out before anything else."""
    total = scatter.sums.sum(0)
    means = _centred_means(scatter)
    about_centre = scatter.moment - torch.outer(total, total) / scatter.counts.sum()
    return about_centre - means.T @ (scatter.counts[:, None] * means)


def _floor(trace: Tensor, scatter: Scatter) -> Tensor:
    """Zero where a trace is no more than the rounding of the sums it came from."""
    noise = 8 * torch.finfo(trace.dtype).eps * scatter.moment.diagonal().sum()
    return torch.where(trace > noise, trace, torch.zeros_like(trace))
