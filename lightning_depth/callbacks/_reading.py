"""What one measurement of the gradients says of every layer, and of the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_depth.callbacks._norms import HostNorms
from lightning_depth.layers import Layer

__all__ = ["FEWEST", "Column", "LayerGradient", "Reading", "Watched", "ratio"]

Column = NDArray[np.float64]
"""One number a layer."""
FEWEST = 3
"""Layers that a trend over depth needs."""


@dataclass(frozen=True)
class LayerGradient:
    """What was read of one layer; not-a-number where there was nothing to read."""

    layer: Layer
    grad_rms: float
    weight_rms: float
    grad_to_weight: float
    nonfinite: int
    bare: tuple[str, ...]
    """Names of the parameters that want a gradient and got none."""


@dataclass(frozen=True)
class Watched:
    """The layers of one optimizer, and what of them stays the same during a run.

    Args:
        layers: In order of execution.
        is_matrix: Whether a layer has weights of two dimensions or more, which set it in the
            trend over depth.
    """

    layers: tuple[Layer, ...]
    is_matrix: tuple[bool, ...]

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each layer."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The depth of each layer."""
        return tuple(layer.depth for layer in self.layers)

    @cached_property
    def trend(self) -> NDArray[np.intp]:
        """Places of the layers in the trend: blocks, or every matrix where these are too few.

        Tokens, embeddings and scales that belong to no module which runs are no step of depth.
        """
        matrices = [
            place
            for place, is_matrix in enumerate(self.is_matrix)
            if is_matrix and self.layers[place].has_output
        ]
        blocks = [place for place in matrices if self.layers[place].role == "block"]
        return np.array(blocks if len(blocks) >= FEWEST else matrices, dtype=np.intp)

    @cached_property
    def trend_depths(self) -> Column:
        """The depth of each layer in the trend."""
        return np.array(self.depths, dtype=np.float64)[self.trend]


@dataclass(frozen=True)
class Reading:
    """What was read of one optimizer's parameters at one step, as columns over its layers."""

    watched: Watched
    grad_rms: Column
    weight_rms: Column
    output_rms: Column | None
    """RMS of the gradient with respect to the layer's output; None where it is not measured."""
    bad_by_layer: Mapping[int, int]
    """By the place of a layer, how many elements of its gradient are not finite."""
    bare: Mapping[int, tuple[str, ...]]
    """By the place of a layer, the parameters that want a gradient and got none."""
    silent: frozenset[int]
    """Places of the layers of which every gradient is exactly zero, norms and gates included."""
    norm: float
    nonfinite: int
    peak_rms: float
    """Largest RMS of any parameter's gradient: the scale at which the loss pulls."""
    loss_scale: float
    """Factor of a GradScaler, 1 without one."""
    earlier: HostNorms
    """What was queued by an earlier step, read in the same copy."""

    @cached_property
    def grad_to_weight(self) -> Column:
        """RMS of the gradient over RMS of the weight."""
        return ratio(self.grad_rms, self.weight_rms)

    @property
    def bad_counts(self) -> tuple[int, ...]:
        """For each layer how many elements of its gradient are not finite."""
        if not self.bad_by_layer:
            return (0,) * len(self.watched)
        return tuple(self.bad_by_layer.get(place, 0) for place in range(len(self.watched)))

    @cached_property
    def layers(self) -> tuple[LayerGradient, ...]:
        """One row a layer."""
        rows = zip(
            self.watched.layers,
            self.grad_rms.tolist(),
            self.weight_rms.tolist(),
            self.grad_to_weight.tolist(),
            self.bad_counts,
            strict=True,
        )
        return tuple(
            LayerGradient(*row, bare=self.bare.get(place, ())) for place, row in enumerate(rows)
        )


def ratio(numerator: Column, denominator: Column) -> Column:
    """Return a ratio a layer, not-a-number where the denominator is zero."""
    if denominator.all():
        return numerator / denominator
    blank = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=blank, where=denominator != 0)
    return blank
