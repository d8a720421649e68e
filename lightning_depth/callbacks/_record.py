"""One measured step of one optimizer, and how many were measured before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lightning_depth.callbacks._flow import Flow
from lightning_depth.callbacks._presence import Presence
from lightning_depth.callbacks._reading import Column

__all__ = ["LAYER_COLUMNS", "TOTAL_COLUMNS", "Counts", "Record"]

LAYER_COLUMNS = (
    "grad_rms",
    "weight_rms",
    "grad_to_weight",
    "update_to_weight",
    "output_grad_rms",
)
"""Columns of floats in ``history``."""
TOTAL_COLUMNS = (
    "norm",
    "clipped_norm",
    "clipped_fraction",
    "shrink_per_layer",
    "shrink_low",
    "shrink_high",
    "first_to_last",
    "update_to_weight",
)
"""Columns of floats in ``totals``."""


def middle(values: list[float]) -> float:
    """Return the median of what is finite, not-a-number where nothing is."""
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else math.nan


@dataclass
class Counts:
    """How many steps of an optimizer were measured, and what became of them."""

    measured: int = 0
    skipped: int = 0
    taken: int = 0
    """Steps that were not skipped and whose record is complete."""
    clipped: int = 0
    due: int = 0
    """Step from which on the next measurement is taken."""
    updates: list[float] | None = None
    """What the last complete record changed, layer by layer."""
    clipped_norm: float = math.nan
    """Of the last complete record."""
    weights: list[float] | None = None
    """Norms of the weights when they were last read, parameter by parameter."""
    lost_in_time: float = 0.0
    """Largest fall of the gradient through time, in powers of ten."""
    presence: Presence = field(default_factory=Presence)

    def __post_init__(self) -> None:
        """Take plain containers, as a checkpoint has them."""
        if isinstance(self.presence, dict):
            self.presence = Presence(**self.presence)

    def forget_weights(self) -> None:
        """Drop what belongs to weights that are gone, or that now have another place."""
        self.updates = self.weights = None

    @property
    def update_to_weight(self) -> float:
        """Median over the layers of what the last complete record changed."""
        return middle(self.updates or [])

    @property
    def clipped_fraction(self) -> float:
        """Share of the measured steps at which clipping made the gradient smaller."""
        return self.clipped / self.taken if self.taken else 0.0


@dataclass
class Record:
    """One measured step; what the step changed is known later and filled in."""

    optimizer: str
    step: int
    epoch: int
    flow: Flow
    skipped: bool
    clipped_norm: float
    clipped_fraction: float
    updates: Column
    """For each layer the RMS of its change over the RMS of its weight."""

    @property
    def update_to_weight(self) -> float:
        """Median over the layers of what the step changed."""
        return middle(self.updates.tolist())

    def layer_columns(self) -> dict[str, Any]:
        """Return the columns of ``history``."""
        reading = self.flow.reading
        return {
            "step": self.step,
            "epoch": self.epoch,
            "optimizer": self.optimizer,
            "layer": reading.watched.names,
            "depth": reading.watched.depths,
            "grad_rms": reading.grad_rms,
            "weight_rms": reading.weight_rms,
            "grad_to_weight": reading.grad_to_weight,
            "update_to_weight": self.updates,
            "output_grad_rms": math.nan if reading.output_rms is None else reading.output_rms,
            "nonfinite": reading.bad_counts,
        }

    def total_columns(self) -> dict[str, Any]:
        """Return the columns of ``totals``."""
        trend = self.flow.trend
        return {
            "step": self.step,
            "epoch": self.epoch,
            "optimizer": self.optimizer,
            "norm": self.flow.reading.norm,
            "clipped_norm": self.clipped_norm,
            "clipped_fraction": self.clipped_fraction,
            "shrink_per_layer": trend.shrink_per_layer,
            "shrink_low": trend.low,
            "shrink_high": trend.high,
            "first_to_last": trend.first_to_last,
            "update_to_weight": self.update_to_weight,
            "nonfinite": self.flow.reading.nonfinite,
            "skipped": self.skipped,
        }
