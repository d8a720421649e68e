"""What is measured at one layer, from the features of a sample or from sums over the whole pass.

Letters: N samples, C classes, D features, G groups of the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional.probe import fit_ridge, fit_ridge_to_features, knn_labels
from lightning_depth.functional.rank import effective_rank
from lightning_depth.functional.scatter import (
    Scatter,
    class_scatter,
    data_separation,
    fisher_pairs,
    fisher_ratio,
    separation_of_features,
)

__all__ = [
    "MEASURES",
    "LayerSample",
    "LayerSums",
    "Measure",
    "jackknife_separation",
    "measure_sample",
    "measure_sums",
    "pairs_of",
    "spread_shares",
]

Measure = Literal["separation", "fisher", "linear_probe", "collapse", "knn", "effective_rank"]
MEASURES: tuple[Measure, ...] = (
    "separation", "fisher", "linear_probe", "collapse", "knn", "effective_rank",
)  # fmt: skip
NUM_GROUPS = 10
NUM_NEIGHBORS = 20


class LayerSample(NamedTuple):
    """Features of one layer on the sample.

    Args:
        features: ``(N, D)``.
        labels: Class of each sample from 0, ``(N,)``.
        places: Place of each sample within its class, ``(N,)``: odd ones test the linear probe.
        num_classes: Number of classes C.
    """

    features: Tensor
    labels: Tensor
    places: Tensor
    num_classes: int


class LayerSums(NamedTuple):
    """Sums of one layer over the whole pass, with the squared norms of each class.

    Args:
        scatter: Counts, sums and second moment.
        squares: Sum of the squared norms of each class ``(C,)``.
    """

    scatter: Scatter
    squares: Tensor


def measure_sample(sample: LayerSample, measures: Iterable[Measure]) -> dict[str, float]:
    """Return each measure on the sample; NaN where it is not defined."""
    if not bool(torch.isfinite(sample.features).all()):
        return dict.fromkeys(measures, math.nan)
    return {name: float(_ON_SAMPLE[name](sample)) for name in measures}


def measure_sums(
    sums: LayerSums, sample: LayerSample, measures: Iterable[Measure]
) -> dict[str, float]:
    """Return each measure on the whole pass; what needs the samples themselves, on the sample."""
    if not bool(torch.isfinite(sums.scatter.moment).all()):
        return dict.fromkeys(measures, math.nan)
    return {
        name: float(_ON_SUMS[name](sums.scatter, sample))
        if name in _ON_SUMS
        else float(_ON_SAMPLE[name](sample))
        for name in measures
    }


def pairs_of(source: LayerSample | LayerSums) -> Tensor:
    """Return Fisher's criterion of every pair of classes, ``(C, C)``."""
    if isinstance(source, LayerSample):
        x = source.features.double()
        x = x - x.mean(0)
        counts = torch.bincount(source.labels, minlength=source.num_classes).double()[:, None]
        zeros = x.new_zeros(source.num_classes, x.shape[1])
        means = zeros.index_add(0, source.labels, x) / counts
        residual = (x - means[source.labels]).square().sum(1)
        variances = zeros[:, 0].index_add(0, source.labels, residual) / counts[:, 0]
        return fisher_pairs(variances, means)
    counts = source.scatter.counts[:, None]
    means = source.scatter.sums / counts
    variances = source.squares / counts[:, 0] - means.square().sum(1)
    return fisher_pairs(variances.clamp(min=0), means)


def spread_shares(
    counts: Tensor, sums: Tensor, labels: Tensor, total: float
) -> tuple[float, float]:
    """Return the shares of the variance between the classes, and within them between cells.

    Shape:
        - counts: ``(S,)``
        - sums: ``(S, D)``
        - labels: ``(S,)``

    Args:
        counts: Samples of each cell, a pair of class and nuisance label.
        sums: Sum of the features of each cell.
        labels: Class of each cell.
        total: Sum of the squared distances of all samples from their mean.
    """
    classes = int(labels.max()) + 1
    class_counts = counts.new_zeros(classes).index_add_(0, labels, counts)
    class_sums = sums.new_zeros(classes, sums.shape[1]).index_add_(0, labels, sums)
    class_means = class_sums / class_counts.clamp(min=1)[:, None]
    mean = sums.sum(0) / counts.sum()
    between = (class_counts * (class_means - mean).square().sum(1)).sum()
    cell_means = sums / counts.clamp(min=1)[:, None]
    nested = (counts * (cell_means - class_means[labels]).square().sum(1)).sum()
    return (float(between) / total, float(nested) / total) if total > 0 else (math.nan, math.nan)


def jackknife_separation(sample: LayerSample, num_groups: int = NUM_GROUPS) -> list[float]:
    """Return log D without each group of samples in turn, the groups alike in classes."""
    groups = (sample.places // 2) % num_groups
    logs = []
    for group in range(num_groups):
        rest = groups != group
        value = separation_of_features(
            sample.features[rest], sample.labels[rest], sample.num_classes
        )
        logs.append(math.log(value) if float(value) > 0 else math.nan)
    return logs


def _scatter(sample: LayerSample) -> Scatter:
    centred = sample.features.double() - sample.features.double().mean(0)
    return class_scatter(centred, sample.labels, sample.num_classes)


def _separation(sample: LayerSample) -> Tensor:
    return separation_of_features(sample.features, sample.labels, sample.num_classes)


def _collapse(sample: LayerSample) -> Tensor:
    present = (torch.bincount(sample.labels) > 0).sum()
    value = separation_of_features(sample.features, sample.labels, sample.num_classes, "classes")
    return value / present


def _fisher(sample: LayerSample) -> Tensor:
    x = sample.features.double()
    x = x - x.mean(0)
    counts = torch.bincount(sample.labels, minlength=sample.num_classes).double()
    sums = x.new_zeros(sample.num_classes, x.shape[1]).index_add_(0, sample.labels, x)
    means = sums / counts.clamp(min=1)[:, None]
    within = (x - means[sample.labels]).square().sum()
    if int((counts > 0).sum()) < 2 or not bool((counts > 1).any()) or not bool(x.any()):
        return x.new_tensor(math.nan)
    return (counts[:, None] * means.square()).sum() / within


def _linear_probe(sample: LayerSample) -> Tensor:
    test = sample.places % 2 == 1
    if not bool(test.any()):
        return sample.features.new_tensor(math.nan)
    train = ~test
    readout = fit_ridge_to_features(
        sample.features[train], sample.labels[train], sample.num_classes
    )
    return _accuracy(readout.classify(sample.features[test]), sample.labels[test])


def _linear_probe_on_sums(scatter: Scatter, sample: LayerSample) -> Tensor:
    """Fitted to every sample of the pass but those it is tested on."""
    test = sample.places % 2 == 1
    if not bool(test.any()):
        return sample.features.new_tensor(math.nan)
    held_out = class_scatter(sample.features[test], sample.labels[test], sample.num_classes)
    rest = Scatter(*(all_ - some for all_, some in zip(scatter, held_out, strict=True)))
    return _accuracy(fit_ridge(rest).classify(sample.features[test]), sample.labels[test])


def _knn(sample: LayerSample) -> Tensor:
    found = knn_labels(sample.features, sample.labels, sample.num_classes, NUM_NEIGHBORS)
    return _accuracy(found, sample.labels)


def _accuracy(found: Tensor, labels: Tensor) -> Tensor:
    return (found == labels).double().mean()


def _collapse_on_sums(scatter: Scatter, sample: LayerSample) -> Tensor:
    return data_separation(scatter, "classes") / (scatter.counts > 0).sum()


_ON_SAMPLE: dict[str, Callable[[LayerSample], Tensor]] = {
    "separation": _separation,
    "fisher": _fisher,
    "linear_probe": _linear_probe,
    "collapse": _collapse,
    "knn": _knn,
    "effective_rank": lambda sample: effective_rank(sample.features),
}
_ON_SUMS: dict[str, Callable[[Scatter, LayerSample], Tensor]] = {
    "separation": lambda scatter, sample: data_separation(scatter),
    "fisher": lambda scatter, sample: fisher_ratio(scatter),
    "linear_probe": _linear_probe_on_sums,
    "collapse": _collapse_on_sums,
}
