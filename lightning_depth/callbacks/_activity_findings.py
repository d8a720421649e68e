"""What the activations of a network mean: numbers a layer, and what is found in them.

Thresholds were measured on healthy networks and on planted faults (docs/calibration.md).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_depth.callbacks._activity_host import HostActivity
from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.functional.activations import dead_units, dormant_units
from lightning_depth.layers import Layer

__all__ = ["DEFAULT_TAU", "LayerActivity", "Window", "judge_activity", "read_layers"]

HIGHEST_DEAD = 0.48
"""Share of a layer's rectified units that are dead."""
HIGHEST_SATURATED = 0.6
"""Share of a layer's bounded outputs near a bound."""
LOWEST_RANK = 1.1
"""Centered effective rank of a layer's output."""
HIGHEST_VARIETY = 0.25
"""Share of a layer's output that differs between samples, above which one direction is enough.

The features of two well separated classes lie along one direction and differ by half and more.
"""
LOWEST_VARIETY = 1e-9
"""Share of a layer's output that differs between samples, below which it is constant."""
_FEWEST_FEATURES = 8
"""Outputs that a layer must have before few directions mean anything."""
DEFAULT_TAU = 0.025
"""Share of the average below which a unit is dormant, as in the paper."""
_MARGIN = 0.05
_MOST_BATCHES = 512
"""Batches that a window holds, where every one ran other layers."""
_NOTHING: dict[str, Any] = {key: {} for key in ("saturated", "rms", "rank", "variety", "features")}
"""What is not kept of the batches of a window."""


class LayerActivity(NamedTuple):
    """What was seen of one layer; not-a-number where it has nothing of the kind."""

    layer: Layer
    rms: float
    dead: float
    """Share of its rectified units that were dead over the window."""
    dormant: float
    """Share of its rectified units that were dormant over the window."""
    saturated: float
    """Share of its bounded outputs near a bound."""
    rank: float
    """Centered effective rank of its output."""
    variety: float
    """Share of the mean square of its output that differs between samples."""

    features: int
    """Outputs of the layer for one sample."""

    @property
    def collapsed(self) -> bool:
        """Whether a layer of many outputs tells its samples apart along one direction or none."""
        if self.layer.role == "head" or self.features < _FEWEST_FEATURES:
            return False
        narrow = self.rank < LOWEST_RANK and self.variety < HIGHEST_VARIETY
        return narrow or self.variety < LOWEST_VARIETY

    def row(self) -> dict[str, Any]:
        """Return the columns of a record."""
        return {
            "layer": self.layer.name,
            "depth": self.layer.depth,
            "rms": self.rms,
            "dead": self.dead,
            "dormant": self.dormant,
            "saturated": self.saturated,
            "effective_rank": self.rank,
            "variety": self.variety,
        }


class Window:
    """The last batches, as many as hold a number of samples.

    Args:
        min_samples: Samples below which nothing is said of a unit.
    """

    def __init__(self, min_samples: int) -> None:
        self._min_samples = min_samples
        self._batches: deque[HostActivity] = deque()

    def add(self, activity: HostActivity) -> None:
        """Take a batch in, and drop those that are no longer needed."""
        self._batches.append(activity)
        alike = self._alike()
        if sum(batch.samples for batch in alike[1:]) >= self._min_samples:
            self._batches = deque(batch for batch in self._batches if batch is not alike[0])
        if len(self._batches) > _MOST_BATCHES:
            self._batches.popleft()

    def _alike(self) -> list[HostActivity]:
        """The batches in which the same units ran as in the last one, the oldest first."""
        units = self._batches[-1].units
        return [batch for batch in self._batches if batch.units == units]

    def shares(self, tau: float) -> tuple[dict[str, float], dict[str, float]]:
        """Return the shares of dead and of dormant units by layer.

        Args:
            tau: Share of the average below which a unit is dormant.

        Returns:
            Both empty while there are too few samples.
        """
        last = self._batches[-1]
        alike = self._alike()
        if sum(batch.samples for batch in alike) < self._min_samples or not last.units:
            return {}, {}
        dead = dead_units(torch.stack([batch.maxima for batch in alike]).amax(0))
        means = torch.stack([batch.means for batch in alike]).mean(0)
        layers = [place.rpartition("#")[0] for place in last.units]
        sizes = list(last.units.values())
        dormant = dormant_units(means, tau, sizes)
        return _by_layer(layers, dead, sizes), _by_layer(layers, dormant, sizes)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return plain containers and tensors."""
        return [
            {"samples": b.samples, "units": dict(b.units), "maxima": b.maxima, "means": b.means}
            for b in self._batches
        ]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Take over what ``state_dict`` returned.

        Args:
            state: State of the same kind of object.
        """
        self._batches = deque(HostActivity(**batch, **_NOTHING) for batch in state)


def _by_layer(layers: Sequence[str], flags: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """The share of units of each layer for which a flag is set, over all its places."""
    units: dict[str, int] = {}
    raised: dict[str, int] = {}
    starts = np.cumsum([0, *sizes[:-1]])
    counts = np.add.reduceat(flags.numpy().astype(np.int64), starts).tolist()
    for layer, size, count in zip(layers, sizes, counts, strict=True):
        units[layer] = units.get(layer, 0) + size
        raised[layer] = raised.get(layer, 0) + count
    return {layer: raised[layer] / units[layer] for layer in units}


def read_layers(
    layers: Sequence[Layer], activity: HostActivity, window: Window, tau: float
) -> list[LayerActivity]:
    """Return what was seen of every layer that ran.

    Args:
        layers: In order of depth.
        activity: The last batch.
        window: The batches over which a unit is judged, the last one included.
        tau: Share of the average below which a unit is dormant.
    """
    dead, dormant = window.shares(tau)
    saturated: dict[str, list[float]] = {}
    for place, share in activity.saturated.items():
        saturated.setdefault(place.rpartition("#")[0], []).append(share)
    return [
        LayerActivity(
            layer=layer,
            rms=activity.rms.get(layer.name, math.nan),
            dead=dead.get(layer.name, math.nan),
            dormant=dormant.get(layer.name, math.nan),
            saturated=fmean(saturated.get(layer.name, [math.nan])),
            rank=activity.rank.get(layer.name, math.nan),
            variety=activity.variety.get(layer.name, math.nan),
            features=activity.features.get(layer.name, 0),
        )
        for layer in layers
        if layer.name in activity.rms
    ]


def judge_activity(layers: Sequence[LayerActivity]) -> list[Finding]:
    """Return what one reading says, as if it were to last.

    Args:
        layers: What was seen, in order of depth.

    Returns:
        Findings without a step; the caller waits until they have lasted.
    """
    dying = next((i for i, layer in enumerate(layers) if layer.dead >= HIGHEST_DEAD), len(layers))
    # behind a layer that dies the signal is poor: the layer that died is the cause
    found = [_dead(layers), _saturated(layers), _collapsed(layers[:dying])]
    return [finding for finding in found if finding is not None]


def _dead(layers: Sequence[LayerActivity]) -> Finding | None:
    bad = [layer for layer in layers if layer.dead >= HIGHEST_DEAD]
    if not bad:
        return None
    worst = max(bad, key=lambda layer: layer.dead)
    return Finding(
        FindingKind.DEAD,
        Severity.CRITICAL if worst.dead == 1.0 else Severity.WARNING,
        tuple(layer.layer.name for layer in bad),
        worst.dead,
        HIGHEST_DEAD,
        f"{worst.dead:.0%} of the units of {worst.layer.name} were above zero for no sample.",
        "Lower the learning rate or warm it up, look at the biases' initialisation, normalise "
        "before the activation, or use a leaky one.",
    )


def _saturated(layers: Sequence[LayerActivity]) -> Finding | None:
    bad = [layer for layer in layers if layer.saturated >= HIGHEST_SATURATED]
    if not bad:
        return None
    worst = max(bad, key=lambda layer: layer.saturated)
    return Finding(
        FindingKind.SATURATED,
        Severity.WARNING,
        tuple(layer.layer.name for layer in bad),
        worst.saturated,
        HIGHEST_SATURATED,
        f"{worst.saturated:.0%} of the bounded activations of {worst.layer.name} lie within "
        f"{_MARGIN:.0%} of a bound.",
        "Scale the inputs and the initialisation down (Glorot), normalise before the activation, "
        "or lower the learning rate.",
    )


def _collapsed(layers: Sequence[LayerActivity]) -> Finding | None:
    bad = [layer for layer in layers if layer.collapsed]
    if not bad:
        return None
    first = bad[0]
    if first.variety < LOWEST_VARIETY:
        value, threshold = first.variety, LOWEST_VARIETY
        what = f"differs between samples by {value:.1g} of its mean square only."
    else:
        value, threshold = first.rank, LOWEST_RANK
        what = (
            f"differs between samples along {value:.2g} directions only, and by "
            f"{first.variety:.1g} of its mean square."
        )
    return Finding(
        FindingKind.COLLAPSED,
        Severity.CRITICAL,
        tuple(layer.layer.name for layer in bad),
        value,
        threshold,
        f"The output of {first.layer.name} {what}",
        "Look at the initialisation of that layer, normalise activations, or add a residual "
        "connection around it.",
    )
