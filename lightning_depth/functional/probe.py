"""Linear and nearest-neighbour probes in closed form: no training loop, no seed, no step size.

Letters: N samples, C classes, D features, M samples of the test set.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional._gram import lower_gram
from lightning_depth.functional.scatter import Scatter

__all__ = ["LinearReadout", "fit_ridge", "knn_labels", "ridge_labels", "ridge_scores"]

BLOCK = 256  # samples whose distances to all others are in memory at once


class LinearReadout(NamedTuple):
    """A linear classifier: the class is the argmax of ``features @ weight + bias``.

    Args:
        weight: ``(D, C)``.
        bias: ``(C,)``; minus infinity for classes that were not in the training set.

    Example:
        >>> readout = LinearReadout(torch.eye(2), torch.zeros(2))
        >>> readout.classify(torch.tensor([[1.0, 3.0]])).tolist()
        [1]
    """

    weight: Tensor
    bias: Tensor

    def classify(self, features: Tensor) -> Tensor:
        """Return the class of each sample.

        Args:
            features: ``(M, D)``.

        Returns:
            Class numbers, ``(M,)``.
        """
        return (features.to(self.weight.dtype) @ self.weight + self.bias).argmax(1)


def fit_ridge(scatter: Scatter, ridge: float = 1e-3) -> LinearReadout:
    """Return the ridge regression onto one-hot labels, from the moments alone.

    The linear probe of Alain and Bengio, "Understanding intermediate layers using linear
    classifier probes" (2016, arXiv 1610.01644), solved instead of trained.

    Args:
        scatter: Sums over the training samples.
        ridge: Strength of the penalty, in units of the features' mean variance: the answer does
            not change when all features are scaled.

    Returns:
        The classifier; all NaN where the sums are not finite.

    Example:
        >>> from lightning_depth.functional.scatter import class_scatter
        >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> fit_ridge(class_scatter(x, y, 2)).classify(torch.tensor([[0.5], [4.5]])).tolist()
        [0, 1]
    """
    count = scatter.counts.sum()
    mean = scatter.sums.sum(0) / count
    covariance = scatter.moment / count - torch.outer(mean, mean)
    cross = (scatter.sums - scatter.counts[:, None] * mean).T / count  # (D, C)
    diagonal = covariance.diagonal()
    penalty = (ridge * diagonal.mean()).clamp(min=torch.finfo(mean.dtype).tiny)
    weight = _solve(covariance + penalty * torch.eye(len(mean)).to(covariance), cross)
    return _readout(weight, mean, scatter.counts)


def ridge_scores(
    features: Tensor, labels: Tensor, test: Tensor, num_classes: int, ridge: float = 1e-3
) -> Tensor:
    """Return the scores that the same ridge regression, fitted to features at hand, gives others.

    It is solved through the smaller of N and D, and of C and M.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``, none negative
        - test: ``(M, D)``
        - output: ``(M, C)``

    Args:
        features: Features of the training samples, any floating type.
        labels: Class of each training sample.
        test: Features of the samples to classify.
        num_classes: Number of classes C.
        ridge: As in ``fit_ridge``.

    Returns:
        Scores, minus infinity for a class without a training sample; all not-a-number where the
        training features are not finite.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> scores = ridge_scores(x, y, torch.tensor([[2.5]]), num_classes=2)
        >>> [round(score, 6) for score in scores[0].tolist()]
        [0.5, 0.5]
    """
    x = features.to(torch.float64, copy=True)
    mean = x.mean(0)
    x -= mean
    test = test.to(torch.float64, copy=True)
    test -= mean
    few = x.shape[0] < x.shape[1]
    gram = lower_gram(x.T if few else x)
    # its trace is the sum of all squares, whichever side is the smaller
    penalty = (ridge * gram.diagonal().sum() / x.shape[1]).clamp(min=torch.finfo(x.dtype).tiny)
    gram.diagonal().add_(penalty)
    counts = torch.bincount(labels, minlength=num_classes).double()
    if not few:
        sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, labels, x)
        scores = test @ _solve(gram, sums.T)
    elif 2 * num_classes <= len(test):
        targets = x.new_zeros(len(x), num_classes)
        targets[torch.arange(len(x)), labels] = 1
        scores = test @ (x.T @ _solve(gram, targets))
    else:
        weights = _solve(gram, x @ test.T)  # of the training samples for each test sample (N, M)
        scores = x.new_zeros(num_classes, len(test)).index_add_(0, labels, weights).T
    return scores + torch.where(counts > 0, counts / len(x), -math.inf)


def ridge_labels(
    features: Tensor, labels: Tensor, test: Tensor, num_classes: int, ridge: float = 1e-3
) -> Tensor:
    """Return what the same ridge regression, fitted to features at hand, says of other samples.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``, none negative
        - test: ``(M, D)``
        - output: ``(M,)``

    Args:
        features: Features of the training samples, any floating type.
        labels: Class of each training sample.
        test: Features of the samples to classify.
        num_classes: Number of classes C.
        ridge: As in ``fit_ridge``.

    Returns:
        Class numbers; all -1 where the training features are not finite.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> ridge_labels(x, y, torch.tensor([[0.5], [4.5]]), num_classes=2).tolist()
        [0, 1]
    """
    scores = ridge_scores(features, labels, test, num_classes, ridge)
    if bool(torch.isnan(scores).any()):
        return torch.full_like(labels[:1], -1).expand(len(test))
    return scores.argmax(1)


def knn_labels(
    features: Tensor, labels: Tensor, num_classes: int, num_neighbors: int = 20
) -> Tensor:
    """Return what the nearest other samples say about each sample, itself left out.

    Every neighbour has one vote, distances are Euclidean, and the smaller class number wins a tie.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``, none negative
        - output: ``(N,)``

    Args:
        features: Features, any floating type.
        labels: Class of each sample.
        num_classes: Number of classes C.
        num_neighbors: Votes a sample gets; at most N - 1 are used.

    Returns:
        The class that most neighbours have.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
        >>> knn_labels(x, y, num_classes=2, num_neighbors=1).tolist()
        [0, 0, 1, 1]
    """
    x = features.to(torch.float64, copy=True)
    x -= x.mean(0)
    norms = x.square().sum(1)
    numbers = torch.arange(len(x), device=x.device)
    found = []
    for rows in torch.split(numbers, BLOCK):
        distances = norms[rows, None] + norms - 2 * (x[rows] @ x.T)  # (BLOCK, N)
        distances[numbers[: len(rows)], rows] = math.inf
        nearest = distances.topk(min(num_neighbors, len(x) - 1), largest=False).indices
        votes = torch.zeros(len(rows), num_classes, dtype=torch.long, device=x.device)
        found.append(votes.scatter_add_(1, labels[nearest], torch.ones_like(nearest)).argmax(1))
    return torch.cat(found)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed) or not bool(torch.isfinite(factor.diagonal().sum())):
        return torch.full_like(right, math.nan)
    return torch.cholesky_solve(right, factor)


def _readout(weight: Tensor, mean: Tensor, counts: Tensor) -> LinearReadout:
    bias = counts / counts.sum() - mean @ weight
    return LinearReadout(weight, torch.where(counts > 0, bias, -math.inf))
