"""The scatter state that several metrics share, so that a collection sums it only once.

The sums are those of the features less an origin, the mean of the first batch. Neither a common
offset nor the number of batches then costs digits, and the sums of constant features are exactly
zero. Separation does not depend on the origin; sums about another one are moved before they add.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_depth.functional.labels import class_indices
from lightning_depth.functional.scatter import Scatter, class_scatter
from lightning_depth.metrics._state import LabelledFeaturesMetric, State

__all__ = ["ScatterMetric", "empty_scatter", "merge_scatters", "scatter_about"]


class ScatterMetric(LabelledFeaturesMetric):
    """Base of metrics that follow from class counts, class sums and second moments."""

    counts: Tensor
    sums: Tensor
    moment: Tensor
    origin: Tensor

    def _empty(self, num_features: int) -> dict[str, Tensor]:
        return empty_scatter(self._num_labels, num_features)

    def _observe(self, features: Tensor, target: Tensor) -> State:
        labels = class_indices(target, self._num_labels)
        return scatter_about(features, labels, self._state())

    def _merge(self, first: State, second: State) -> State:
        return merge_scatters(first, second)

    def _scatter(self) -> Scatter:
        return Scatter(self.counts, self.sums, self.moment)

    def _or_warn(self, value: Tensor) -> Tensor:
        if bool(torch.isnan(value)):
            return self._not_a_number(explain_unmeasurable(self._scatter()))
        return value


def empty_scatter(num_classes: int, num_features: int) -> dict[str, Tensor]:
    """Scatter of no samples."""
    shapes = {"counts": (num_classes,), "sums": (num_classes, num_features)}
    shapes |= {"moment": (num_features, num_features), "origin": (num_features,)}
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


def scatter_about(features: Tensor, labels: Tensor, known: State) -> State:
    """Scatter of a batch about the origin of a known state, its own where that has no samples.

    Args:
        features: ``(N, D)``.
        labels: Class of each sample ``(N,)``; those with a negative label are left out.
        known: The state to which this is going to be added.
    """
    x, y = features[labels >= 0].double(), labels[labels >= 0]
    origin = known["origin"] if bool(known["counts"].any()) else _centre(x)
    return {**class_scatter(x - origin, y, len(known["counts"]))._asdict(), "origin": origin}


def merge_scatters(first: State, second: State) -> State:
    """Scatter of both, about the origin of the first that has samples."""
    if not bool(first["counts"].any()):
        return {name: second[name] for name in empty_scatter(0, 0)}
    second = _move(second, first["origin"])
    summed = {name: first[name] + second[name] for name in Scatter._fields}
    return {**summed, "origin": first["origin"]}


def _centre(x: Tensor) -> Tensor:
    """Mean of the rows ``(N, D)``, to the last digit where they are constant; zero without rows."""
    if not len(x):
        return x.new_zeros(x.shape[1])
    return x[0] + (x - x[0]).mean(0)


def _move(state: State, origin: Tensor) -> State:
    """The same scatter about another origin."""
    if torch.equal(state["origin"], origin):
        return state
    step = state["origin"] - origin
    counts, total = state["counts"], state["sums"].sum(0)
    return {
        "counts": counts,
        "sums": state["sums"] + torch.outer(counts, step),
        "moment": state["moment"]
        + torch.outer(total, step)
        + torch.outer(step, total + counts.sum() * step),
    }


def explain_unmeasurable(scatter: Scatter) -> str:
    """Why no separation can be computed from these sums, as a sentence."""
    if not bool(torch.isfinite(scatter.moment).all()):
        return "the features hold values that are not finite."
    if (present := int((scatter.counts > 0).sum())) < 2:
        return f"it needs samples of at least two classes, but got {present}."
    if not bool((scatter.counts > 1).any()):
        return "no class has two samples, so the spread within a class is not known."
    return "the means of all classes coincide."
