"""Which blocks add no separability at the end of training, and how sure that is.

A block is idle where neither the logarithm of the separation falls nor that of the Fisher ratio
rises by as much as counts, each with 95 % confidence from a jackknife over the samples, and where
the linear probe does not rise either. Stem and head are never judged, nor a network that has not
come to separate the classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.functional.law import Gain, separation_gain

__all__ = ["CONFIDENCE", "MINIMUM_GAIN", "Evidence", "find_idle"]

MINIMUM_GAIN = 0.05
"""Fall of the log separation, or rise of the log Fisher ratio, that counts: five per cent."""

PROBE_GAIN = 0.01
"""Rise of the linear probe's accuracy that counts as one."""

CONFIDENCE = 0.95
"""How sure it must be that a layer gains less."""

TRAINED = math.log(1.5)
"""A network whose best layer has less than this log Fisher ratio more than its first has not
come to separate the classes."""

MOST_CHANGE = math.log(2)
"""A block that makes separation or Fisher ratio worse by more than this is not idle: it does
something, or it does not follow the layer that ran before it, as branches side by side."""

MINIMUM_BLOCKS = 4
"""With fewer blocks none is called idle: each is a large share of the network."""


class Evidence(NamedTuple):
    """What a pass says about one layer.

    Args:
        logs: log separation and log Fisher ratio of all samples, then without each group in turn.
        probe: Accuracy of the linear probe, NaN where it was not measured.
    """

    logs: Mapping[str, Sequence[float]]
    probe: float


class _Change(NamedTuple):
    separation: Gain
    fisher: Gain
    probe: float

    @property
    def is_none(self) -> bool:
        sure = min(self.separation.probability, self.fisher.probability)
        worst = min(self.separation.gain, self.fisher.gain)
        return sure >= CONFIDENCE and not self.probe >= PROBE_GAIN and worst >= -MOST_CHANGE


def find_idle(
    evidence: Mapping[str, Evidence], names: Sequence[str], blocks: Collection[str]
) -> list[Finding]:
    """Return one finding for a plateau at the end, or for blocks on the way that add nothing.

    Args:
        evidence: What the last pass says about each layer.
        names: Layers in order of execution.
        blocks: Those that may be idle.
    """
    names = [name for name in names if math.isfinite(_fisher(evidence, name))]
    judged = [name for name in names if name in blocks]
    if len(judged) < MINIMUM_BLOCKS or not _separates(evidence, names):
        return []
    start = _plateau(evidence, judged)
    if start is not None:
        return [_plateau_finding(evidence, judged, start)]
    idle = [
        (after, change)
        for before, after in pairwise(names)
        if after in blocks and (change := _change(evidence, before, after)).is_none
    ]
    return [_idle_finding(idle)] if idle else []


def _fisher(evidence: Mapping[str, Evidence], name: str) -> float:
    return evidence[name].logs["fisher"][0] if name in evidence else math.nan


def _separates(evidence: Mapping[str, Evidence], names: Sequence[str]) -> bool:
    best = max(_fisher(evidence, name) for name in names)
    return best - _fisher(evidence, names[0]) >= TRAINED


def _change(evidence: Mapping[str, Evidence], before: str, after: str) -> _Change:
    first, second = evidence[before], evidence[after]
    d = first.logs["separation"], second.logs["separation"]
    f = second.logs["fisher"], first.logs["fisher"]  # a rise is a gain
    return _Change(
        separation_gain(d[0][1:], d[1][1:], MINIMUM_GAIN, (d[0][0], d[1][0])),
        separation_gain(f[0][1:], f[1][1:], MINIMUM_GAIN, (f[0][0], f[1][0])),
        second.probe - first.probe,
    )


def _plateau(evidence: Mapping[str, Evidence], blocks: Sequence[str]) -> int | None:
    """The first block after which no later one is better, where at least two follow."""
    for start in range(len(blocks) - 2):
        later = [_change(evidence, blocks[start], name) for name in blocks[start + 1 :]]
        if all(change.is_none for change in later):
            return start
    return None


def _plateau_finding(
    evidence: Mapping[str, Evidence], blocks: Sequence[str], start: int
) -> Finding:
    first, later = blocks[start], blocks[start + 1 :]
    change = _change(evidence, first, later[-1])
    sure = min(
        min(found.separation.probability, found.fisher.probability)
        for found in (_change(evidence, first, name) for name in later)
    )
    return Finding(
        FindingKind.IDLE,
        Severity.INFO,
        tuple(later),
        change.separation.gain,
        MINIMUM_GAIN,
        f"From {first} on nothing separates the classes further: over the {len(later)} blocks "
        f"that follow, the separation changes by {_interval(change.separation)} and the Fisher "
        f"ratio by {_interval(change.fisher, -1)}; {_sure(sure)} that none of them gains "
        f"{100 * MINIMUM_GAIN:.0f} %. Depth beyond {first} bought nothing.",
        f"Try a network that ends after {first}, or spend its parameters on width.",
    )


def _idle_finding(idle: Sequence[tuple[str, _Change]]) -> Finding:
    name, change = max(idle, key=lambda item: item[1].separation.gain)
    sure = min(min(found.separation.probability, found.fisher.probability) for _, found in idle)
    if len(idle) == 1:
        lead = f"Block {name} does not separate the classes further"
    else:
        lead = f"{len(idle)} blocks do not separate the classes further; of them {name} does most"
    return Finding(
        FindingKind.IDLE,
        Severity.INFO,
        tuple(layer for layer, _ in idle),
        change.separation.gain,
        MINIMUM_GAIN,
        f"{lead}: it changes the separation (smaller is better) by "
        f"{_interval(change.separation)} and the Fisher ratio (larger is better) by "
        f"{_interval(change.fisher, -1)}; {_sure(sure)} that it gains less than "
        f"{100 * MINIMUM_GAIN:.0f} %.",
        "Try the network without it; if the accuracy stays, it was not needed."
        if len(idle) == 1
        else "Try the network without them; if the accuracy stays, they were not needed.",
    )


def _sure(probability: float) -> str:
    return "it is more than 99 % sure" if probability > 0.99 else f"{100 * probability:.0f} % sure"


def _interval(gain: Gain, sign: int = 1) -> str:
    """Change of a measure in per cent; a gain in separation is a fall."""
    low, high = sorted(-sign * (gain.gain + side * 1.96 * gain.error) for side in (-1, 1))
    return (
        f"{100 * math.expm1(-sign * gain.gain):+.0f} % "
        f"(95 % interval {100 * math.expm1(low):.0f} to {100 * math.expm1(high):.0f} %)"
    )
