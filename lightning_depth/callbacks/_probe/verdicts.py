"""Which blocks add no separability at the end of training, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from lightning_depth.callbacks._probe.collector import INPUT
from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.functional.law import Gain, separation_gain

__all__ = ["CONFIDENCE", "MINIMUM_GAIN", "find_idle"]

MINIMUM_GAIN = 0.05
"""Fall of log D that counts as one: five per cent."""

CONFIDENCE = 0.95
"""How sure it must be that a layer gains less."""


def find_idle(logs: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[Finding]:
    """Return one finding for a plateau at the end, or for blocks on the way that add nothing.

    Args:
        logs: Of each layer log D on all samples, then without each group of samples in turn.
        names: Layers in order of execution.
    """
    names = [name for name in names if len(logs.get(name, ())) > 1]
    if len(names) < 3:
        return []
    start = _plateau(logs, names)
    if start is not None:
        return [_plateau_finding(logs, names, start)]
    idle = [
        (after, gain)
        for before, after in pairwise(names)
        if before != INPUT and (gain := _gain(logs, before, after)).probability >= CONFIDENCE
    ]
    return [_idle_finding(idle)] if idle else []


def _gain(logs: Mapping[str, Sequence[float]], before: str, after: str) -> Gain:
    first, second = logs[before], logs[after]
    return separation_gain(first[1:], second[1:], MINIMUM_GAIN, (first[0], second[0]))


def _plateau(logs: Mapping[str, Sequence[float]], names: Sequence[str]) -> int | None:
    """The first layer after which no later one is better, where at least two layers follow."""
    for start in range(1, len(names) - 2):
        later = [_gain(logs, names[start], name) for name in names[start + 1 :]]
        if all(gain.probability >= CONFIDENCE for gain in later):
            return start
    return None


def _plateau_finding(
    logs: Mapping[str, Sequence[float]], names: Sequence[str], start: int
) -> Finding:
    later = names[start + 1 :]
    gains = [_gain(logs, names[start], name) for name in later]
    best = max(gains, key=lambda gain: gain.gain)
    sure = min(gain.probability for gain in gains)
    return Finding(
        FindingKind.IDLE,
        Severity.INFO,
        tuple(later),
        best.gain,
        MINIMUM_GAIN,
        f"The {len(later)} layers after {names[start]} lower the separation D of the classes by "
        f"{_percent(best.gain)} at best ({100 * sure:.0f} % sure that it is under "
        f"{_percent(MINIMUM_GAIN)}): depth beyond {names[start]} bought nothing.",
        f"Try a network that ends after {names[start]}, or spend its parameters on width.",
    )


def _idle_finding(idle: Sequence[tuple[str, Gain]]) -> Finding:
    gain = max((gain for _, gain in idle), key=lambda gain: gain.gain)
    sure = min(gain.probability for _, gain in idle)
    many = "layer adds" if len(idle) == 1 else "layers add"
    return Finding(
        FindingKind.IDLE,
        Severity.INFO,
        tuple(name for name, _ in idle),
        gain.gain,
        MINIMUM_GAIN,
        f"{len(idle)} {many} no separability: D falls by {_percent(gain.gain)} at best "
        f"({100 * sure:.0f} % sure that it is under {_percent(MINIMUM_GAIN)}).",
        "Try the network without them; if the accuracy stays, they were not needed.",
    )


def _percent(gain: float) -> str:
    """A fall of log D as a percentage of D."""
    return f"{100 * -math.expm1(-gain):.0f} %"
