"""Between-class and within-class scatter, and the measures of separation that follow from it.

Letters: N samples, C classes, D features, K classes that have samples, R rank of the class means.
Everything is float64. The moments are plain sums, which add exactly over batches and processes;
centring is left to the end, where it costs about six digits at an offset of a thousand standard
deviations and leaves nine.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "CentredFeatures",
    "Scatter",
    "Weighting",
    "centre",
    "class_scatter",
    "data_separation",
    "fisher_of_features",
    "fisher_pairs",
    "fisher_ratio",
    "neural_collapse",
    "separation_of_features",
    "variances_of_features",
]

Weighting = Literal["samples", "classes"]

FEW = 64  # axes up to which a singular value decomposition costs nothing


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
    if not _measurable(scatter.counts, scatter.sums, scatter.moment):
        return scatter.sums.new_tensor(math.nan)
    span = _span_of_means(scatter.counts, scatter.sums, weighting)
    within = _within(scatter)
    energy = (span.axes * (within @ span.axes)).sum(0) / scatter.counts.sum()  # (R,)
    return _quotient(energy, span.values)


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
    x = features.double()
    x = x - x.mean(0)
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
    if not _measurable(counts, means):
        return x.new_tensor(math.nan)
    span = _span_of_means(counts, means * counts[:, None], weighting)
    residual = x @ span.axes - (means @ span.axes)[labels]  # (N, R)
    return _quotient(residual.square().mean(0), span.values)


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
    if not _measurable(counts, means):
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
    x, labels, counts, means = centred
    squares = (x - means[labels]).square().sum(1)
    return torch.zeros_like(counts).index_add_(0, labels, squares) / counts.clamp(min=1)


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
    if not _measurable(scatter.counts, scatter.sums, scatter.moment):
        return scatter.sums.new_tensor(math.nan)
    between = (scatter.counts[:, None] * _centred_means(scatter).square()).sum()
    within = _floor(_within(scatter).diagonal().sum(), scatter)
    return between / within


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


class _Span(NamedTuple):
    values: Tensor  # (R,) eigenvalues of the between-class scatter, largest first
    axes: Tensor  # (D, R) its eigenvectors


def _measurable(counts: Tensor, *sums: Tensor) -> bool:
    enough = int((counts > 0).sum()) >= 2 and bool((counts > 1).any())
    return enough and all(bool(torch.isfinite(part).all()) for part in sums)


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


def _span_of_means(counts: Tensor, sums: Tensor, weighting: Weighting) -> _Span:
    present = counts > 0
    counts, means = counts[present], sums[present] / counts[present][:, None]
    offset = means.abs().max()
    centre = sums[present].sum(0) / counts.sum()
    shares = counts / counts.sum() if weighting == "samples" else counts.new_ones(()) / len(counts)
    scaled = (means - centre) * shares.sqrt().reshape(-1, 1)  # (K, D)
    values, axes = _singular(scaled, len(counts) - 1)
    # a difference of means is only known to the rounding of the means themselves
    tiny = max(scaled.shape) * torch.finfo(values.dtype).eps * (values[0] + offset)
    kept = values > tiny
    return _Span(values[kept].square(), axes[:, kept])


def _singular(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest singular values of a (K, D) matrix and their right vectors ``(D, R)``.

    Of a thousand classes the eigenvectors of the smaller product are ten times faster, and as good
    to ten digits where the matrix is well conditioned.
    """
    rank = min(rank, *matrix.shape)
    if rank > FEW:
        tall = matrix.shape[0] > matrix.shape[1]
        squares, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
        squares, vectors = squares.flip(0)[:rank], vectors.flip(1)[:, :rank]
        if squares[-1] > 1e-6 * squares[0]:
            values = squares.sqrt()
            return values, vectors if tall else matrix.T @ (vectors / values)
    _, values, axes = torch.linalg.svd(matrix, full_matrices=False)
    return values[:rank], axes[:rank].T


def _quotient(energy: Tensor, values: Tensor) -> Tensor:
    if not len(values):
        return energy.new_tensor(math.nan)
    return (energy.clamp(min=0) / values).sum()
