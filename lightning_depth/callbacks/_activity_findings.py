"""What the activations of a network mean: numbers a layer, and what is found in them.

Thresholds were measured on healthy networks and on planted faults (docs/calibration.md).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import zip_longest
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_depth.callbacks._activity import UNSURE
from lightning_depth.callbacks._activity_host import ENOUGH_RANK, HostActivity
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
_FEWEST_UNITS = 8
"""Units that a layer must have before few directions mean anything."""
_MOST_TAKEN = 100.0
"""Factor of variety that an activation between two layers takes at most."""
_ALIKE = 1.5
"""Factor within which a layer's input has the rank of the output before it, if it is that one."""
DEFAULT_TAU = 0.025
"""Share of the average below which a unit is dormant, as in the paper."""
_MARGIN = 0.05
_MOST_BATCHES = 512
"""Batches that a window holds, where every one ran other layers."""
_KEPT = ("samples", "units", "maxima", "means")
_NOTHING: dict[str, Any] = {
    field.name: {} for field in fields(HostActivity) if field.name not in _KEPT
}
"""What is not kept of the batches of a window."""


class LayerActivity(NamedTuple):
    """What was seen of one layer; not-a-number where it has nothing of the kind."""

    layer: Layer
    rms: float
    dead: float
    """Share of its units with an activation that were dead over the window."""
    silent: float
    """The same, however few samples the window holds yet."""
    dormant: float
    """Share of its units with an activation that were dormant over the window."""
    saturated: float
    """Share of its bounded outputs near a bound."""
    rank: float
    """Centered effective rank of its output."""
    variety: float
    """Share of the mean square of its output that differs between samples."""

    fed_rank: float
    """Rank that its input had, or an earlier one that came down to it through several layers."""
    fed_variety: float
    """Share of the mean square of its input that differs between samples."""
    width: int
    """Units of its output."""
    last: bool
    """Whether it is the last layer, of which the task says how much its output may differ."""

    @property
    def is_fed_well(self) -> bool:
        """Whether what it was given, and so what goes around the layer before it, has variety.

        A gate or the end of a residual branch may start constant by design.
        """
        known = self.variety if math.isnan(self.fed_variety) else self.fed_variety
        return self.fed_rank >= ENOUGH_RANK and known >= LOWEST_VARIETY

    @property
    def is_settled(self) -> bool:
        """Whether what it is given does not matter, unless much changes until the next reading."""
        return self.rank >= 2 * ENOUGH_RANK and self.variety >= 1e3 * LOWEST_VARIETY

    @property
    def can_vary(self) -> bool:
        """Whether its input and its width allow outputs of more than one direction."""
        wide = self.width > 1 and not self.last
        return wide and self.rms != 0 and self.fed_rank >= ENOUGH_RANK

    @property
    def collapsed(self) -> bool:
        """Whether it tells its samples apart along one direction or none, and its input does not.

        An output of zeros is a scale or a layer that starts at zero by design.
        """
        if self.layer.role == "head" or self.last or self.width < _FEWEST_UNITS or not self.rms:
            return False
        if not self.fed_variety >= LOWEST_VARIETY or _is_narrow(self.fed_rank, self.fed_variety):
            return False
        lost = _is_narrow(self.rank, self.variety) and self.fed_rank >= ENOUGH_RANK
        return lost or self.variety < LOWEST_VARIETY

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


def _is_narrow(rank: float, variety: float) -> bool:
    return rank < LOWEST_RANK and variety < HIGHEST_VARIETY


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

    @property
    def is_full(self) -> bool:
        """Whether it holds enough samples to say of a unit that it is dead."""
        return sum(batch.samples for batch in self._alike()) >= self._min_samples

    def shares(self, tau: float) -> tuple[dict[str, float], dict[str, float]]:
        """Return the shares of dead and of dormant units by layer, however few samples there are.

        Args:
            tau: Share of the average below which a unit is dormant.
        """
        places = self._batches[-1].units
        if not places:
            return {}, {}
        alike = self._alike()
        sizes = list(places.values())
        dead = dead_units(torch.stack([batch.maxima for batch in alike]).amax(0))
        means = torch.stack([batch.means for batch in alike]).mean(0)
        dead_counts = _counts(dead, sizes)
        dormant_counts = _counts(dormant_units(means, tau, sizes), sizes)
        rows = zip(places.items(), dead_counts, dormant_counts, strict=True)
        judged = [
            (place.rpartition("#")[0], size, dead, dormant)
            for (place, size), dead, dormant in rows
            if dead or not place.endswith(UNSURE)
        ]
        return (
            _by_layer((layer, size, dead) for layer, size, dead, _ in judged),
            _by_layer((layer, size, dormant) for layer, size, _, dormant in judged),
        )

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


def _counts(flags: Tensor, sizes: Sequence[int]) -> list[int]:
    """How many units of each place have a flag set."""
    starts = np.cumsum([0, *sizes[:-1]])
    counts: list[int] = np.add.reduceat(flags.numpy().astype(np.int64), starts).tolist()
    return counts


def _by_layer(places: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """The share of units of each layer for which a flag is set, over all its places."""
    units: dict[str, int] = {}
    raised: dict[str, int] = {}
    for layer, size, count in places:
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
    silent, dormant = window.shares(tau)
    dead = silent if window.is_full else {}
    saturated: dict[str, list[float]] = {}
    for place, share in activity.saturated.items():
        saturated.setdefault(place.rpartition("#")[0], []).append(share)
    ran = [layer for layer in layers if layer.name in activity.rms]
    sources = _source_ranks([layer.name for layer in ran], activity)
    varieties = _source_varieties([layer.name for layer in ran], activity)
    return [
        LayerActivity(
            layer=layer,
            rms=activity.rms[layer.name],
            dead=dead.get(layer.name, math.nan),
            silent=silent.get(layer.name, math.nan),
            dormant=dormant.get(layer.name, math.nan) if window.is_full else math.nan,
            saturated=fmean(saturated.get(layer.name, [math.nan])),
            rank=activity.rank.get(layer.name, math.nan),
            variety=activity.variety.get(layer.name, math.nan),
            fed_rank=sources[layer.name],
            fed_variety=varieties[layer.name],
            width=activity.widths.get(layer.name, 0),
            last=len(ran) > 1 and layer is ran[-1],
        )
        for layer in ran
    ]


def _source_ranks(names: Sequence[str], activity: HostActivity) -> dict[str, float]:
    """The rank that each layer's input had; infinite where its output has enough of its own.

    A rank may come down through many layers, none of which takes much of it. So it is followed
    back as long as the layer before hands on about what the next one gets, up to the first layer
    that is narrow already: what lies behind that one lost nothing.
    """
    found: dict[str, float] = {}
    before, previous = math.nan, ""
    for name in names:
        output = activity.rank.get(name, math.nan)
        fed = math.inf if output >= ENOUGH_RANK else activity.fed_rank.get(name, math.nan)
        alike = fed >= LOWEST_RANK <= before and fed / _ALIKE <= before <= fed * _ALIKE
        if alike and fed < ENOUGH_RANK:
            fed = max(fed, before, found[previous])
        found[name] = fed
        before, previous = output, name
    return found


def _source_varieties(names: Sequence[str], activity: HostActivity) -> dict[str, float]:
    """The variety that each layer's input had before the activation in front took its share."""
    found: dict[str, float] = {}
    before = math.nan
    for name in names:
        fed = activity.fed_variety.get(name, math.nan)
        found[name] = before if fed <= before <= fed * _MOST_TAKEN else fed
        before = activity.variety.get(name, math.nan)
    return found


def judge_activity(layers: Sequence[LayerActivity]) -> list[Finding]:
    """Return what one reading says, as if it were to last.

    Args:
        layers: What was seen, in order of depth.

    Returns:
        Findings without a step; the caller waits until they have lasted.
    """
    dying = next((i for i, layer in enumerate(layers) if layer.silent >= HIGHEST_DEAD), len(layers))
    # behind a layer that dies the signal is poor: the layer that died is the cause
    found = [_dead(layers), _saturated(layers), _collapsed(layers[:dying])]
    return [finding for finding in found if finding is not None]


def _dead(layers: Sequence[LayerActivity]) -> Finding | None:
    # what is given the same for every sample cannot but return the same
    bad = [
        layer
        for layer in layers
        if layer.dead >= HIGHEST_DEAD and not layer.fed_variety < LOWEST_VARIETY
    ]
    if not bad:
        return None
    worst = max(bad, key=lambda layer: layer.dead)
    return Finding(
        FindingKind.DEAD,
        Severity.CRITICAL if worst.dead == 1.0 else Severity.WARNING,
        tuple(layer.layer.name for layer in bad),
        worst.dead,
        HIGHEST_DEAD,
        f"{worst.dead:.0%} of the units of {worst.layer.name} gave one and the same output for "
        "every sample.",
        "Lower the learning rate or warm it up, look at the biases' initialization, normalize "
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
        "Scale the inputs and the initialization down (Glorot), normalize before the activation, "
        "or lower the learning rate.",
    )


def _collapsed(layers: Sequence[LayerActivity]) -> Finding | None:
    bad = [
        layer
        for layer, after in zip_longest(layers, layers[1:])
        if layer.collapsed and (after is None or not after.is_fed_well)
    ]
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
        "Look at the initialization of that layer, normalize activations, or add a residual "
        "connection around it.",
    )
