"""What is measured at one layer, from the features of a sample or from sums over the whole pass.

Letters: N samples, C classes, D features, G groups of the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional.centred import (
    CentredFeatures,
    centre,
    fisher_of_features,
    separation_of_features,
)
from lightning_depth.functional.probe import fit_ridge, knn_labels, ridge_labels
from lightning_depth.functional.rank import effective_rank
from lightning_depth.functional.scatter import (
    Scatter,
    class_scatter,
    data_separation,
    fisher_pairs,
    fisher_ratio,
)

__all__ = [
    "MEASURES",
    "LayerSample",
    "LayerSums",
    "Measure",
    "chance_of",
    "is_lower_than_by_chance",
    "jackknife",
    "measure_sample",
    "measure_sums",
    "pairs_of",
    "probe_hits",
    "spread_shares",
]

Measure = Literal["separation", "fisher", "linear_probe", "collapse", "knn", "effective_rank"]
MEASURES: tuple[Measure, ...] = (
    "separation", "fisher", "linear_probe", "collapse", "knn", "effective_rank",
)  # fmt: skip
NUM_GROUPS = 10
NUM_NEIGHBORS = 20
NUM_SHUFFLES = 20  # of the labels: lower than by each of them is chance in one of 21
SHUFFLED_CLASSES, SHUFFLED_SAMPLES = 100, 500  # at most: a shuffle costs as much as a measure
DEGENERATE = 1e12  # a Fisher ratio of this is of the rounding of the features


@dataclass(frozen=True)
class LayerSample:
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

    @cached_property
    def centred(self) -> CentredFeatures:
        """The features about their mean, with their class means."""
        return centre(self.features, self.labels, self.num_classes)

    def without(self, left_out: Tensor) -> LayerSample:
        """The sample without some of its rows."""
        kept = ~left_out
        return LayerSample(
            self.features[kept], self.labels[kept], self.places[kept], self.num_classes
        )


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
    if not bool(torch.isfinite(sample.centred.means).all()):
        return dict.fromkeys(measures, math.nan)
    return {name: _honest(name, float(_ON_SAMPLE[name](sample))) for name in measures}


def _honest(name: str, value: float) -> float:
    """What classes without any spread have, where a number is of their rounding."""
    if name == "fisher" and value > DEGENERATE:
        return math.inf
    return 0.0 if name in ("separation", "collapse") and value < 1 / DEGENERATE else value


def measure_sums(
    sums: LayerSums, sample: LayerSample, measures: Iterable[Measure]
) -> dict[str, float]:
    """Return each measure on the whole pass; what needs the samples themselves, on the sample."""
    if not bool(torch.isfinite(sums.scatter.moment).all()):
        return dict.fromkeys(measures, math.nan)
    values = {
        name: _ON_SUMS[name](sums.scatter, sample) if name in _ON_SUMS else _ON_SAMPLE[name](sample)
        for name in measures
    }
    return {name: _honest(name, float(value)) for name, value in values.items()}


def pairs_of(source: LayerSample | LayerSums, classes: Sequence[int]) -> Tensor:
    """Return Fisher's criterion of every pair among some classes, ``(S, S)``."""
    wanted = torch.tensor(classes, dtype=torch.long)
    if isinstance(source, LayerSample):
        absent = source.centred.counts == 0
        variances = source.centred.variances.masked_fill(absent, math.nan)
        return fisher_pairs(variances[wanted], source.centred.means[wanted])
    counts = source.scatter.counts[:, None]
    means = source.scatter.sums / counts
    variances = source.squares / counts[:, 0] - means.square().sum(1)
    return fisher_pairs(variances.clamp(min=0)[wanted], means[wanted])


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


def jackknife(sample: LayerSample, num_groups: int = NUM_GROUPS) -> dict[str, list[float]]:
    """Return logarithms of separation and Fisher ratio, of all samples and without each group.

    The groups are alike in classes and the same at every layer. There are fewer of them, or none,
    where no class has samples for so many.
    """
    pairs = sample.places // 2
    num_groups = min(num_groups, int(pairs.max()) + 1)
    groups = range(num_groups if num_groups > 1 else 0)
    parts = [sample, *(sample.without(pairs % num_groups == group) for group in groups)]
    return {
        "separation": [_log(separation_of_features(part.centred)) for part in parts],
        "fisher": [_log(fisher_of_features(part.centred)) for part in parts],
    }


def chance_of(sample: LayerSample) -> tuple[float, int]:
    """Return the accuracy of always naming the commonest class, and on how many it is tested."""
    tested = sample.labels[sample.places % 2 == 1]
    if not len(tested):
        return math.nan, 0
    return float(torch.bincount(tested).max() / len(tested)), len(tested)


def is_lower_than_by_chance(sample: LayerSample, seed: int = 0) -> bool:
    """Whether the separation is lower than with the same labels shuffled, each time of twenty.

    No value of it stands for chance: that depends on the features, their number and that
    of the samples.
    """
    classes = min(sample.num_classes, SHUFFLED_CLASSES)
    of_each = max(2, SHUFFLED_SAMPLES // classes)
    few = (sample.labels < classes) & (sample.places < of_each)
    features, labels = sample.features[few], sample.labels[few]
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(labels), generator=generator) for _ in range(NUM_SHUFFLES))
    found = _separation(features, labels)
    return all(found < _separation(features, labels[order]) for order in orders)


def _separation(features: Tensor, labels: Tensor) -> float:
    return float(separation_of_features(centre(features, labels, int(labels.max()) + 1)))


def _log(value: Tensor) -> float:
    return math.log(value) if 0 < float(value) < math.inf else math.nan


def _collapse(sample: LayerSample) -> Tensor:
    present = (sample.centred.counts > 0).sum()
    return separation_of_features(sample.centred, "classes") / present


def probe_hits(sample: LayerSample, scatter: Scatter | None = None) -> Tensor:
    """Return for each sample that the linear probe is tested on whether it is right.

    Args:
        sample: The sample; half of each class is tested.
        scatter: Sums over the whole pass, if the probe is fitted to every sample of it but those
            that it is tested on, else to the other half of the sample.
    """
    test = sample.places % 2 == 1
    if scatter is None:
        found = ridge_labels(
            sample.features[~test], sample.labels[~test], sample.features[test], sample.num_classes
        )
    else:
        held_out = class_scatter(sample.features[test], sample.labels[test], sample.num_classes)
        rest = Scatter(*(all_ - some for all_, some in zip(scatter, held_out, strict=True)))
        found = fit_ridge(rest).classify(sample.features[test])
    return found == sample.labels[test]


def _linear_probe(sample: LayerSample, scatter: Scatter | None = None) -> Tensor:
    if not bool((sample.places % 2 == 1).any()):
        return sample.features.new_tensor(math.nan)
    return probe_hits(sample, scatter).double().mean()


def _knn(sample: LayerSample) -> Tensor:
    found = knn_labels(sample.features, sample.labels, sample.num_classes, NUM_NEIGHBORS)
    return (found == sample.labels).double().mean()


def _collapse_on_sums(scatter: Scatter, sample: LayerSample) -> Tensor:
    return data_separation(scatter, "classes") / (scatter.counts > 0).sum()


_ON_SAMPLE: dict[str, Callable[[LayerSample], Tensor]] = {
    "separation": lambda sample: separation_of_features(sample.centred),
    "fisher": lambda sample: fisher_of_features(sample.centred),
    "linear_probe": _linear_probe,
    "collapse": _collapse,
    "knn": _knn,
    "effective_rank": lambda sample: effective_rank(sample.features),
}
_ON_SUMS: dict[str, Callable[[Scatter, LayerSample], Tensor]] = {
    "separation": lambda scatter, sample: data_separation(scatter),
    "fisher": lambda scatter, sample: fisher_ratio(scatter),
    "linear_probe": lambda scatter, sample: _linear_probe(sample, scatter),
    "collapse": _collapse_on_sums,
}
