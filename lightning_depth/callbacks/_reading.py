"""What one measurement of the gradients says of every layer, and of the whole network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_depth.callbacks._norms import HostNorms
from lightning_depth.layers import Layer

__all__ = ["FEWEST", "Column", "LayerGradient", "Reading", "Start", "Watched", "ratio"]

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


@dataclass(frozen=True)
class Start:
    """A parameter that began at zero, or a scale that began near it: tiny by design.

    Args:
        name: The parameter.
        layer: The layer that owns it, by its place; None where it is in no watched layer.
        branch: The module whose signal it may scale: its owner, or what holds that if the owner
            holds nothing else.
        is_weight: Whether it is a weight, and not a gain, a layer scale or a gate.
        rms: What it began with.
        place: Its place among the parameters of the optimizer.
    """

    name: str
    layer: int | None
    branch: str
    is_weight: bool
    rms: float
    place: int


@dataclass(frozen=True)
class Watched:
    """The layers of one optimizer, and what of them stays the same during a run.

    Args:
        layers: In order of execution.
        has_weights: Whether a layer has weights, which set it in the trend over depth; gains,
            scales and biases do not.
        owners: The name of the layer of each parameter that is in one.
    """

    layers: tuple[Layer, ...]
    has_weights: tuple[bool, ...]
    owners: Mapping[str, str]

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
        """Places of the layers in the trend: blocks; where too few, all with weights.

        Tokens, embeddings and scales that belong to no module which runs are no step of depth.
        """
        weighty = [
            place
            for place, has_weights in enumerate(self.has_weights)
            if has_weights and self.layers[place].has_output
        ]
        blocks = [place for place in weighty if self.layers[place].role == "block"]
        return np.array(blocks if len(blocks) >= FEWEST else weighty, dtype=np.intp)

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
    bare: tuple[str, ...]
    """The parameters that want a gradient and got none, also those of no watched layer."""
    frozen: tuple[str, ...]
    """The parameters that want no gradient and got none."""
    idle: frozenset[str]
    """Layers, and parameters of no layer, that want a gradient and got none but zeros."""
    silent: frozenset[int]
    """Places of the layers of which every gradient is exactly zero, norms and gates included."""
    starts: tuple[Start, ...]
    """What is tiny by design and has a gradient now."""
    unborn: frozenset[int]
    """Places of the layers whose weights all began at zero, so that a ratio to them says little."""
    growing: bool
    """Whether a weight that began at zero and moves is still small beside the others."""
    norm: float
    nonfinite: int
    peak_rms: float
    """Largest RMS of any parameter's gradient: the scale at which the loss pulls."""
    loss_scale: float
    """Factor of a GradScaler, 1 without one."""
    earlier: HostNorms
    """What was queued by an earlier step, read in the same copy."""
    is_first: bool = False
    """Whether nothing was read of these parameters before."""

    @cached_property
    def grad_to_weight(self) -> Column:
        """RMS of the gradient over RMS of the weight."""
        return ratio(self.grad_rms, self.weight_rms)

    def is_cut_from_input(self, places: Sequence[int]) -> bool:
        """Whether no layer up to the last of some has a gradient other than zero."""
        sizes = self.grad_rms.tolist()
        return all(
            place in self.silent or math.isnan(sizes[place]) for place in range(places[-1] + 1)
        )

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
        return tuple(LayerGradient(*row) for row in rows)


def ratio(numerator: Column, denominator: Column) -> Column:
    """Return a ratio a layer, not-a-number where the denominator is zero."""
    if denominator.all():
        return numerator / denominator
    blank = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=blank, where=denominator != 0)
    return blank
