"""Metrics over a bounded sample of the features: nearest neighbours and effective rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_depth.errors import check_count
from lightning_depth.functional.labels import class_indices
from lightning_depth.functional.probe import knn_labels
from lightning_depth.functional.rank import effective_rank
from lightning_depth.metrics._reservoir_state import (
    ReservoirMetric,
    empty_reservoir,
    fill_reservoir,
)
from lightning_depth.metrics._state import State

__all__ = ["EffectiveRank", "KNNAccuracy"]


class KNNAccuracy(ReservoirMetric):
    """Share of samples whose nearest neighbours are mostly of their own class.

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination" (2018,
    arXiv 1805.01978), with equal votes and each sample left out of its own neighbours, on a seeded
    sample of the stream that does not depend on its order or on the number of processes.

    Shape:
        - features: ``(N, D)``
        - target: ``(N,)``
        - output: scalar, float64

    Args:
        num_classes: Number of classes C.
        num_neighbors: Votes a sample gets.
        num_features: Number of features D; learnt from the first batch by default.
        max_samples: Samples kept; memory and time are bounded by it. The measure rises a little
            with it, as neighbours come nearer.
        seed: Which samples are kept.
        kwargs: Arguments of every torchmetrics metric.

    Example:
        >>> import torch
        >>> metric = KNNAccuracy(num_classes=2, num_neighbors=1)
        >>> metric.update(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().item()
        1.0
    """

    higher_is_better: bool = True
    plot_upper_bound: float = 1.0

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations of the class itself
        kept_labels: Tensor

    def __init__(
        self,
        num_classes: int,
        num_neighbors: int = 20,
        *,
        num_features: int | None = None,
        max_samples: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            check_count("num_classes", num_classes),
            num_features=num_features,
            max_samples=max_samples,
            seed=seed,
            **kwargs,
        )
        self.num_neighbors = check_count("num_neighbors", num_neighbors)

    def compute(self) -> Tensor:
        """Return the accuracy, NaN with one warning where it is not defined."""
        if reason := _why_no_neighbors(self.kept_features):
            return self._not_a_number(reason)
        labels = self.kept_labels
        found = knn_labels(self.kept_features, labels, self._num_labels, self.num_neighbors)
        return (found == labels).double().mean()

    def _empty(self, num_features: int) -> dict[str, Tensor]:
        return {**empty_reservoir(num_features), "kept_labels": torch.zeros(0, dtype=torch.long)}

    def _observe(self, features: Tensor, target: Tensor) -> State:
        labels = class_indices(target, self._num_labels)
        features, labels = features[labels >= 0], labels[labels >= 0]
        return fill_reservoir(features, self.max_samples, self.seed, kept_labels=labels)


class EffectiveRank(ReservoirMetric):
    """Number of directions that the features use, as the exponential of an entropy.

    Roy and Vetterli, "The effective rank" (2007), after taking out the mean, on a seeded sample of
    the stream. RankMe (Garrido et al. 2023, arXiv 2210.02885) is ``centered=False``, where a common
    offset hides every other direction. It cannot exceed the smaller of D and the samples kept less
    one, so compare it at equal ``max_samples``.

    Shape:
        - features: ``(N, D)``
        - target: ``(N,)``, not used, may be left out
        - output: scalar, float64

    Args:
        num_classes: Number of classes C; where it is given, labels must be of these classes.
        centered: Whether the mean is taken out.
        num_features: Number of features D; learnt from the first batch by default.
        max_samples: Samples kept; memory and time are bounded by it.
        seed: Which samples are kept.
        kwargs: Arguments of every torchmetrics metric.

    Example:
        >>> import torch
        >>> metric = EffectiveRank()
        >>> metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 1.0

    def __init__(
        self,
        num_classes: int | None = None,
        centered: bool = True,
        *,
        num_features: int | None = None,
        max_samples: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes, num_features=num_features, max_samples=max_samples, seed=seed, **kwargs
        )
        self.centered = centered

    def update(self, features: Tensor, target: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: ``(N, D)``, or ``(N, ...)``, which is flattened; any floating type.
            target: Labels, one a sample; they do not change the answer, and samples without a
                class count as all others do.

        Raises:
            ConfigurationError: Features and labels differ in number, the labels are not of
                ``num_classes``, or the width is zero or not the one that was given or learnt.
        """
        if target is None:
            target = torch.full((len(features),), -1, device=features.device)
        super().update(features, target)

    def compute(self) -> Tensor:
        """Return the rank, NaN with one warning where it is not defined."""
        value = effective_rank(self.kept_features, self.centered)
        if bool(torch.isnan(value)):
            reason = _why_no_neighbors(self.kept_features)
            return self._not_a_number(reason or "all features are zero.")
        return value

    def _observe(self, features: Tensor, target: Tensor) -> State:
        if self.num_classes is not None:
            class_indices(target, self.num_classes)  # which refuses those of other classes
        return fill_reservoir(features, self.max_samples, self.seed)


def _why_no_neighbors(features: Tensor) -> str | None:
    if len(features) < 2:
        return f"it needs at least two samples, but got {len(features)}."
    if not bool(torch.isfinite(features).all()):
        return "the features hold values that are not finite."
    if bool((features == features[0]).all()):
        return "all samples have the same features."
    return None
