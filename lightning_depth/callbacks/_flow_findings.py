"""What is found in one reading of the gradients, as if it were to last.

A finding says the number that was measured and held against the threshold, and names the layers of
which that number is. What is tiny by design (a head, gate or layer scale that begins at zero) is
worth knowing, and no fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_depth.callbacks._flow import Flow, middle_of
from lightning_depth.callbacks._presence import Presence
from lightning_depth.callbacks._reading import Column, Reading, Start
from lightning_depth.findings import Finding, FindingKind, Severity

__all__ = ["judge", "listing"]

VANISHING_DECADES = 2.5
"""The trend toward the input falls by so many powers of ten."""
EXPLODING_DECADES = 1.7
"""The trend toward the input rises by so many powers of ten."""
LOWEST_LEVEL = 1e-7
"""Median gradient of the blocks over the largest gradient of any parameter."""
HIGHEST_RATIO = 100.0
"""Median of gradient over weight."""
HIGHEST_UPDATE = 0.2
"""Median share of its own size by which one step changes a block."""
LOWEST_LOSS_SCALE = 1.0
"""A GradScaler that went below it found no scale at which half precision holds."""


def judge(
    flow: Flow,
    update_to_weight: Column | None,
    *,
    scaled: bool,
    presence: Presence | None = None,
) -> list[Finding]:
    """Return what one reading says, as if it were to last.

    Args:
        flow: The reading with its trend.
        update_to_weight: For each watched layer, how much of itself a step changed; None where
            it was not measured.
        scaled: Whether a GradScaler skips steps with a non-finite gradient.
        presence: At which steps layers had a gradient, this one included.

    Returns:
        Findings without a step; the caller waits until they have lasted.
    """
    reading = flow.reading
    if reading.nonfinite or not math.isfinite(reading.norm):
        if not scaled or reading.loss_scale < LOWEST_LOSS_SCALE:
            return [_nonfinite(reading, scaled=scaled)]
        return []
    # what explodes leaves dead layers and tiny gradients behind: the cause is told, not these
    return _judge_rise(flow) or _judge_size(flow, update_to_weight) or _judge_loss(flow, presence)


def listing(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of some names, and how many more there are.

    Example:
        >>> listing(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _nonfinite(reading: Reading, *, scaled: bool) -> Finding:
    bad = [layer.layer.name for layer in reading.layers if layer.nonfinite]
    total = len(reading.layers)
    where = (
        f"it comes from {bad[-1]} and goes on toward the input"
        if 0 < len(bad) < total
        else "in every layer, so the loss itself is not finite"
    )
    scale = f", and the loss scale fell to {reading.loss_scale:g}" if scaled else ""
    return Finding(
        FindingKind.NON_FINITE,
        Severity.CRITICAL,
        tuple(bad),
        float(reading.nonfinite),
        0.0,
        f"{reading.nonfinite} elements of the gradient are NaN or infinite: {where}{scale}.",
        "Lower the learning rate, clip the gradient, or keep the operation that overflows "
        "(division, log, exp, a large sum) in float32.",
    )


def _judge_loss(flow: Flow, presence: Presence | None) -> list[Finding]:
    """What gets too little gradient: a cut, a fall over depth, or a level."""
    if places := _cut_places(flow, presence):
        starts = _starts_behind(flow, places)
        return [_by_design(flow, starts) if starts else _cut_off(flow, places)]
    falls = flow.ends >= VANISHING_DECADES and flow.fall >= VANISHING_DECADES
    if not falls and not flow.level < LOWEST_LEVEL:
        return []
    if starts := _starts_of(flow):
        return [_by_design(flow, starts)]
    return [_vanishing(flow) if falls else _lost(flow)]


def _cut_places(flow: Flow, presence: Presence | None) -> list[int]:
    """Layers whose gradient is exactly zero while others have one.

    A branch that is scaled by zero at its start has weights without a gradient, and a scale with
    one: it is not cut off. Nor is one that waits for its turn.
    """
    reading = flow.reading
    if not reading.norm:
        return []
    cut = [place for place in reading.watched.trend.tolist() if place in reading.silent]
    if presence is None or not cut:
        return cut
    names, turning, never = reading.watched.names, presence.turning(), presence.never_moved()
    cut = [place for place in cut if names[place] not in turning - never]
    if cut and reading.is_cut_from_input(cut):
        return cut
    return [place for place in cut if names[place] not in turning]


def _starts_behind(flow: Flow, cut: Sequence[int]) -> tuple[Start, ...]:
    """What began at zero nearer the loss than all that is cut off, or in the midst of it."""
    reading = flow.reading
    if not reading.is_first and not reading.growing:
        return ()
    zero = [start for start in reading.starts if not start.rms]
    return tuple(start for start in zero if start.layer is None or start.layer >= cut[0])


def _starts_of(flow: Flow) -> tuple[Start, ...]:
    """What is tiny by design and makes the gradient of the trend's layers as small as it is.

    Branches whose scales began near zero lie beside a path that hands the gradient on; how much of
    it each branch gets is a matter of its scale, and says nothing of depth.
    """
    reading = flow.reading
    if reading.growing:
        return tuple(start for start in reading.starts if start.is_weight)
    scales = [start for start in reading.starts if not start.is_weight]
    branches = tuple(f"{start.branch}." for start in scales if start.branch)
    scaled = [layer for layer in flow.layers if f"{layer.layer.name}.".startswith(branches)]
    return tuple(scales) if 2 * len(scaled) >= len(flow.layers) else ()


def _by_design(flow: Flow, starts: Sequence[Start]) -> Finding:
    names = [start.name for start in starts]
    owners = flow.reading.watched.owners
    largest = max(start.rms for start in starts)
    size = f"{largest:.0e} or less" if largest else "zero"
    many = len(names) > 1
    return Finding(
        FindingKind.VANISHING,
        Severity.INFO,
        tuple(dict.fromkeys(owners.get(name, name) for name in names)),
        float(len(names)),
        0.0,
        f"{len(names)} parameter{'s begin' if many else ' begins'} at {size} by design, so that "
        f"little or no gradient passes until {'they have' if many else 'it has'} grown: "
        f"{listing(names)}.",
        "Leave it as it is, and look at the gradient again after some steps.",
    )


def _cut_off(flow: Flow, cut: Sequence[int]) -> Finding:
    reading = flow.reading
    names = tuple(reading.layers[place].layer.name for place in cut)
    toward_input = reading.is_cut_from_input(cut)
    return Finding(
        FindingKind.VANISHING if toward_input else FindingKind.NO_GRADIENT,
        Severity.WARNING,  # the layer that is dead or collapsed is the cause, and critical
        names,
        float(len(names)),
        0.0,
        f"The gradient of {len(names)} layer{'s' if len(names) > 1 else ''} is exactly zero"
        + (
            f": it is lost in {names[-1]}, and does not come further toward the input."
            if toward_input
            else f", although layers before have one: {listing(names)}."
        ),
        "Look there for units that are dead or saturated for every sample: use another "
        "initialisation, normalise before the activation, or add residual connections.",
    )


def _vanishing(flow: Flow) -> Finding:
    return Finding(
        FindingKind.VANISHING,
        Severity.CRITICAL,
        flow.beyond(VANISHING_DECADES),
        flow.fall,
        VANISHING_DECADES,
        f"The gradient, {flow.subject}, falls by {flow.fall:.1f} powers of ten from the last "
        f"layer to the first{_by_layer(flow, rising=False)}.",
        "Add residual connections or normalisation, use ReLU-like activations with He "
        "initialisation, or take fewer layers.",
    )


def _judge_rise(flow: Flow) -> list[Finding]:
    """The ends are looked at first: where they agree, no line need be fitted."""
    if not (flow.ends <= -EXPLODING_DECADES and flow.fall <= -EXPLODING_DECADES):
        return []
    return [
        Finding(
            FindingKind.EXPLODING,
            Severity.CRITICAL,
            flow.beyond(-EXPLODING_DECADES),
            -flow.fall,
            EXPLODING_DECADES,
            f"The gradient, {flow.subject}, grows by {-flow.fall:.1f} powers of ten from the last "
            f"layer to the first{_by_layer(flow, rising=True)}.",
            "Add residual connections, lower the gain of the initialisation, or take fewer "
            "layers; clipping only hides it.",
        )
    ]


def _by_layer(flow: Flow, *, rising: bool) -> str:
    if flow.is_of_few:
        return ", and with every layer between"
    trend = flow.trend
    factors = [trend.shrink_per_layer, trend.low, trend.high]
    if rising:
        factors = [1 / trend.shrink_per_layer, 1 / trend.high, 1 / trend.low]
    each, low, high = map(_number, factors)
    return f", {each}-fold with every layer (95 % interval {low} to {high})"


def _number(value: float) -> str:
    """A number that can be imagined; beyond, only that it is large."""
    return f"{value:.3g}" if value < 1e6 else "more than a million"


def _judge_size(flow: Flow, update_to_weight: Column | None) -> list[Finding]:
    """What began at zero, and what has no weights, is no measure of a step or of a gradient."""
    reading = flow.reading
    if update_to_weight is not None:
        places = np.setdiff1d(np.flatnonzero(reading.watched.has_weights), list(reading.unborn))
        update = middle_of(update_to_weight[places])
        if update > HIGHEST_UPDATE:
            return [_too_large(flow, update_to_weight, places, HIGHEST_UPDATE, *_STEPS)]
    places = np.setdiff1d(reading.watched.trend, list(reading.unborn))
    if middle_of(reading.grad_to_weight[places]) > HIGHEST_RATIO:
        return [_too_large(flow, reading.grad_to_weight, places, HIGHEST_RATIO, *_GRADIENTS)]
    return []


_STEPS = (
    "One step changes the weights of half of the layers by {value} times their own size or more; "
    "about 0.001 is usual.",
    "Lower the learning rate tenfold, or warm it up.",
)
_GRADIENTS = (
    "The gradient of half of the layers is {value} times their weights or more.",
    "Lower the gain of the initialisation, normalise activations and inputs, or scale the "
    "loss down.",
)


def _too_large(
    flow: Flow,
    sizes: Column,
    places: NDArray[np.intp],
    threshold: float,
    message: str,
    suggestion: str,
) -> Finding:
    value = middle_of(sizes[places])
    return Finding(
        FindingKind.EXPLODING,
        Severity.CRITICAL,
        tuple(flow.reading.watched.names[place] for place in places if sizes[place] >= value),
        value,
        threshold,
        message.format(value=_number(value)),
        suggestion,
    )


def _lost(flow: Flow) -> Finding:
    limit = flow.level * flow.reading.peak_rms * (1 + 1e-9)
    return Finding(
        FindingKind.VANISHING,
        Severity.CRITICAL,
        tuple(row.layer.name for row in flow.layers if row.grad_rms <= limit),
        flow.level,
        LOWEST_LEVEL,
        f"Half of the layers get a gradient of {flow.level:.2g} or less of what the loss "
        "sends into the network.",
        "The signal dies on its way forward: use He initialisation for ReLU-like "
        "activations, or normalise, or add residual connections.",
    )
