"""The linear probe as a metric: ridge weights in closed form, accuracy on samples held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_depth.errors import check_count, check_real
from lightning_depth.functional.labels import class_indices
from lightning_depth.functional.probe import fit_ridge
from lightning_depth.functional.reservoir import rank_in_class
from lightning_depth.functional.scatter import Scatter, class_scatter
from lightning_depth.metrics._reservoir_state import (
    empty_reservoir,
    fill_reservoir,
    merge_reservoirs,
)
from lightning_depth.metrics._scatter_state import empty_scatter, merge_scatters, scatter_about
from lightning_depth.metrics._state import LabelledFeaturesMetric, State

__all__ = ["LinearProbeAccuracy"]


class LinearProbeAccuracy(LabelledFeaturesMetric):
    """Accuracy of a linear classifier on the features, on samples that it is not fitted to.

    Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016,
    arXiv 1610.01644). The weights are a ridge regression onto one-hot labels, solved from the
    moments of the samples. Up to half of each class is held out and tested, ``num_kept`` samples
    in all; which ones is decided by what they hold and by the seed, so that it depends neither on
    the order of the stream nor on how it is cut into batches and processes.

    Shape:
        - features: ``(N, D)``
        - target: ``(N,)``
        - output: scalar, float64

    Args:
        num_classes: Number of classes C.
        ridge: Strength of the penalty in units of the features' mean variance.
        num_features: Number of features D; learnt from the first batch by default.
        max_samples: Samples kept, and at most so many held out; the standard error of an accuracy
            p is the square root of p (1 - p) over the number of those.
        seed: Which samples are held out.
        kwargs: Arguments of every torchmetrics metric.

    Example:
        >>> import torch
        >>> metric = LinearProbeAccuracy(num_classes=2)
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1], [0.2], [0.3], [5.2], [5.3]])
        >>> metric.update(x, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]))
        >>> metric.compute().item(), metric.num_kept
        (1.0, 4)
    """

    higher_is_better: bool = True
    plot_upper_bound: float = 1.0

    if TYPE_CHECKING:  # torch.jit.script cannot read annotations of the class itself
        counts: Tensor
        sums: Tensor
        moment: Tensor
        origin: Tensor
        kept_features: Tensor
        kept_labels: Tensor
        kept_keys: Tensor

    def __init__(
        self,
        num_classes: int,
        ridge: float = 1e-3,
        *,
        num_features: int | None = None,
        max_samples: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.max_samples = check_count("max_samples", max_samples)
        self.seed = seed
        super().__init__(
            check_count("num_classes", num_classes), num_features=num_features, **kwargs
        )
        self.ridge = check_real("ridge", ridge, 0.0)

    @property
    def num_kept(self) -> int:
        """Held-out samples on which the accuracy is measured."""
        return int(self._held_out().sum())

    def compute(self) -> Tensor:
        """Return the accuracy, NaN with one warning where it is not defined."""
        test = self._held_out()
        if not bool(test.any()):
            return self._not_a_number("it needs two samples of a class.")
        if not bool(torch.isfinite(self.kept_features).all() & torch.isfinite(self.moment).all()):
            return self._not_a_number("the features hold values that are not finite.")
        features, labels = self.kept_features[test] - self.origin, self.kept_labels[test]
        tested = class_scatter(features, labels, self._num_labels)
        if not bool(self.moment.any()):
            return self._not_a_number("all samples that it is fitted to have the same features.")
        every = Scatter(self.counts, self.sums, self.moment)
        train = Scatter(*(all_ - some for all_, some in zip(every, tested, strict=True)))
        readout = fit_ridge(train, self.ridge)
        if bool(torch.isnan(readout.weight).any()):
            return self._not_a_number(
                f"the features depend on each other, which needs a `ridge` above {self.ridge}."
            )
        return (readout.classify(features) == labels).double().mean()

    def _held_out(self) -> Tensor:
        """Which of the samples kept are not fitted to: of each class the first, at most half."""
        ranks = rank_in_class(self.kept_keys, self.kept_labels)
        return ranks < self.counts[self.kept_labels] // 2

    def _options(self) -> dict[str, int | None]:
        return {**super()._options(), "max_samples": self.max_samples, "seed": self.seed}

    def _empty(self, num_features: int) -> dict[str, Tensor]:
        scatter = empty_scatter(self._num_labels, num_features)
        labels = {"kept_labels": torch.zeros(0, dtype=torch.long)}
        return {**scatter, **empty_reservoir(num_features), **labels}

    def _observe(self, features: Tensor, target: Tensor) -> State:
        labels = class_indices(target, self._num_labels)
        features, labels = features[labels >= 0], labels[labels >= 0]
        scatter = scatter_about(features, labels, self._state())
        return {
            **scatter,
            **fill_reservoir(features, self.max_samples, self.seed, kept_labels=labels),
        }

    def _merge(self, first: State, second: State) -> State:
        scatter = merge_scatters(first, second)
        return {**scatter, **merge_reservoirs(first, second, self.max_samples)}
