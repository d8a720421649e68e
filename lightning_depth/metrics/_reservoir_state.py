"""A bounded, seeded sample of the stream as a metric's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_depth.errors import check_count
from lightning_depth.functional.reservoir import content_keys, smallest_keys
from lightning_depth.metrics._state import LabelledFeaturesMetric, State

__all__ = ["ReservoirMetric", "empty_reservoir", "fill_reservoir", "merge_reservoirs"]


class ReservoirMetric(LabelledFeaturesMetric):
    """Base of metrics that need the samples themselves."""

    kept_features: Tensor
    kept_keys: Tensor

    def __init__(
        self,
        num_classes: int | None,
        *,
        num_features: int | None = None,
        max_samples: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.max_samples = check_count("max_samples", max_samples, minimum=2)
        self.seed = seed
        super().__init__(num_classes, num_features=num_features, **kwargs)

    @property
    def num_kept(self) -> int:
        """Samples in the reservoir."""
        return len(self.kept_keys)

    def _options(self) -> dict[str, int | None]:
        return {**super()._options(), "max_samples": self.max_samples, "seed": self.seed}

    def _empty(self, num_features: int) -> dict[str, Tensor]:
        return empty_reservoir(num_features)

    def _merge(self, first: State, second: State) -> State:
        return merge_reservoirs(first, second, self.max_samples)


def empty_reservoir(num_features: int) -> dict[str, Tensor]:
    """A reservoir of no samples."""
    return {
        "kept_features": torch.zeros(0, num_features, dtype=torch.float64),
        "kept_keys": torch.zeros(0, dtype=torch.long),
    }


def fill_reservoir(features: Tensor, capacity: int, seed: int, **columns: Tensor) -> State:
    """The reservoir of one batch, in order of its keys, with other columns of the same samples."""
    # the labels belong to what a sample is: of equal features the same ones are then kept
    rows = [features.double(), *(column.double()[:, None] for column in columns.values())]
    keys = content_keys(torch.cat(rows, 1), seed)
    chosen = smallest_keys(keys, capacity)
    found = {"kept_features": features[chosen].double(), "kept_keys": keys[chosen]}
    return {**found, **{name: column[chosen] for name, column in columns.items()}}


def merge_reservoirs(first: State, second: State, capacity: int) -> State:
    """The reservoir of both streams together, in order of its keys."""
    names = [name for name in first if name.startswith("kept_")]
    both = {name: torch.cat([first[name], second[name]]) for name in names}
    chosen = smallest_keys(both["kept_keys"], capacity)
    return {name: value[chosen] for name, value in both.items()}
