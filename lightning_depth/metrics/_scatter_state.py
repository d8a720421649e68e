"""The scatter state that several metrics share, so that a collection sums it only once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_depth.functional.labels import class_indices
from lightning_depth.functional.scatter import Scatter, class_scatter
from lightning_depth.metrics._state import LabelledFeaturesMetric, State

__all__ = ["ScatterMetric", "explain_unmeasurable"]


class ScatterMetric(LabelledFeaturesMetric):
    """Base of metrics that follow from class counts, class sums and second moments."""

    counts: Tensor
    sums: Tensor
    moment: Tensor

    def _empty(self, num_features: int) -> dict[str, Tensor]:
        return empty_scatter(self._num_labels, num_features)

    def _observe(self, features: Tensor, target: Tensor) -> State:
        labels = class_indices(target, self._num_labels)
        return class_scatter(features, labels, self._num_labels)._asdict()

    def _merge(self, first: State, second: State) -> State:
        return {name: first[name] + second[name] for name in first}

    def _scatter(self) -> Scatter:
        return Scatter(self.counts, self.sums, self.moment)

    def _or_warn(self, value: Tensor) -> Tensor:
        if bool(torch.isnan(value)):
            return self._not_a_number(explain_unmeasurable(self._scatter()))
        return value


def empty_scatter(num_classes: int, num_features: int) -> dict[str, Any]:
    """Scatter of no samples."""
    zeros = {"counts": (num_classes,), "sums": (num_classes, num_features)}
    zeros["moment"] = (num_features, num_features)
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in zeros.items()}


def explain_unmeasurable(scatter: Scatter) -> str:
    """Why no separation can be computed from these sums, as a sentence."""
    if not bool(torch.isfinite(scatter.moment).all()):
        return "the features hold values that are not finite."
    if (present := int((scatter.counts > 0).sum())) < 2:
        return f"it needs samples of at least two classes, but got {present}."
    if not bool((scatter.counts > 1).any()):
        return "no class has two samples, so the spread within a class is not known."
    return "the means of all classes coincide."
