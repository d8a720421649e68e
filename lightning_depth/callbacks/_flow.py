"""What a reading of the gradients means: the trend over depth, and what is found in it.

The decision is taken on ratios of gradient to weight, whose level and spread were measured on
healthy networks and on planted faults (docs/calibration.md). A trend counts only if both the
fitted line and the difference between the two ends of the network say so: one odd layer, gated
side branches or a head of another kind do not make a trend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from lightning_depth.callbacks._reading import FEWEST, Column, LayerGradient, Reading
from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.functional.gradients import GradientFlow, gradient_flow

__all__ = ["Flow", "judge", "read_flow"]

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


@dataclass(frozen=True)
class Flow:
    """One reading with its trend over depth."""

    reading: Reading
    ratios: Column
    """What the trend is fitted to, for each layer in it."""
    subject: str
    """What the trend is of, in words."""

    @cached_property
    def trend(self) -> GradientFlow:
        """The fitted line over depth."""
        return gradient_flow(self.reading.watched.trend_depths, self.ratios)

    @cached_property
    def ends(self) -> float:
        """Powers of ten between the median of the last third of the layers and of the first."""
        logs = [math.log10(ratio) for ratio in self.ratios.tolist() if 0 < ratio < math.inf]
        third = len(logs) // 3
        return median(logs[-third:]) - median(logs[:third]) if third else math.nan

    @property
    def level(self) -> float:
        """Median gradient of the blocks that have one over the largest of any parameter."""
        grads = self.reading.grad_rms[self.reading.watched.trend]
        return _median(grads[grads != 0.0]) / (self.reading.peak_rms or math.nan)

    @cached_property
    def layers(self) -> tuple[LayerGradient, ...]:
        """The layers in the trend."""
        return tuple(self.reading.layers[place] for place in self.reading.watched.trend)

    @property
    def decades(self) -> float:
        """Fall toward the input on which line and ends agree, in powers of ten; 0 where not."""
        line = self.trend.decades
        if not math.isfinite(line) or not math.isfinite(self.ends) or line * self.ends <= 0:
            return 0.0
        if self.trend.low <= 1.0 <= self.trend.high:
            return 0.0
        return math.copysign(min(abs(line), abs(self.ends)), line)


def read_flow(reading: Reading) -> Flow:
    """Return the trend of a reading over the depth of the network.

    It is that of the gradients of the outputs where they were measured, and of the ratio of
    gradient to weight otherwise.
    """
    places = reading.watched.trend
    outputs = None if reading.output_rms is None else reading.output_rms[places]
    if outputs is not None and np.isfinite(outputs).sum() >= FEWEST:
        return Flow(reading, outputs, "taken at the layers' outputs")
    return Flow(reading, reading.grad_to_weight[places], "held against the weights")


def _median(values: Column) -> float:
    kept = [value for value in values.tolist() if math.isfinite(value)]
    return median(kept) if kept else math.nan


def judge(flow: Flow, update_to_weight: Column | None, *, scaled: bool) -> list[Finding]:
    """Return what one reading says, as if it were to last.

    Args:
        flow: The reading with its trend.
        update_to_weight: For each watched layer, how much of itself a step changed; None where
            it was not measured.
        scaled: Whether a GradScaler skips steps with a non-finite gradient.

    Returns:
        Findings without a step; the caller waits until they have lasted.
    """
    reading = flow.reading
    found = _judge_bare(reading)
    if reading.nonfinite or not math.isfinite(reading.norm):
        if not scaled or reading.loss_scale < LOWEST_LOSS_SCALE:
            found.append(_nonfinite(reading, scaled=scaled))
        return found
    # what explodes leaves dead layers and tiny gradients behind: the cause is told, not these
    size = _judge_trend(flow, rising=True) or _judge_size(flow, update_to_weight)
    return [*found, *(size or _judge_trend(flow, rising=False) or _judge_level(flow))]


def _judge_bare(reading: Reading) -> list[Finding]:
    if not reading.bare:
        return []
    bare = [layer for layer in reading.layers if layer.bare]
    names = [name for layer in bare for name in layer.bare]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    whole = any(math.isnan(layer.grad_rms) for layer in bare)
    return [
        Finding(
            FindingKind.NO_GRADIENT,
            Severity.CRITICAL if whole else Severity.WARNING,
            tuple(layer.layer.name for layer in bare),
            float(len(names)),
            0.0,
            f"{len(names)} parameters get no gradient at all: {shown}.",
            "Look for `detach`, `no_grad` or an unused output on their way to the loss, or set "
            "`requires_grad=False` if they are to stay as they are.",
        )
    ]


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


def _judge_trend(flow: Flow, *, rising: bool) -> list[Finding]:
    """The ends are looked at first: where they agree, no line need be fitted."""
    if rising:
        steep = flow.ends <= -EXPLODING_DECADES and flow.decades <= -EXPLODING_DECADES
        return [_exploding_toward_input(flow)] if steep else []
    if cut := _cut_layers(flow):
        return [_cut_off(flow, cut)]
    steep = flow.ends >= VANISHING_DECADES and flow.decades >= VANISHING_DECADES
    return [_vanishing(flow)] if steep else []


def _cut_layers(flow: Flow) -> list[LayerGradient]:
    """Layers whose gradient is exactly zero while others have one.

    A branch that is scaled by zero at its start has weights without a gradient, and a scale with
    one: it is not cut off.
    """
    reading = flow.reading
    cut = [place for place in reading.watched.trend.tolist() if place in reading.silent]
    if len(cut) == len(reading.watched.trend) and not reading.norm:
        return []
    return [reading.layers[place] for place in cut]


def _cut_off(flow: Flow, cut: Sequence[LayerGradient]) -> Finding:
    names = tuple(layer.layer.name for layer in cut)
    first = [layer.layer.name for layer in flow.layers[: len(cut)]]
    toward_input = list(names) == first
    return Finding(
        FindingKind.VANISHING if toward_input else FindingKind.NO_GRADIENT,
        Severity.WARNING,  # the layer that is dead or collapsed is the cause, and critical
        names,
        0.0,
        0.0,
        f"The gradient of {names[-1]} is exactly zero"
        + (", and so is that of every layer before it." if len(cut) > 1 and toward_input else "."),
        "Look there for units that are dead or saturated for every sample: use another "
        "initialisation, normalise before the activation, or add residual connections.",
    )


def _vanishing(flow: Flow) -> Finding:
    last = flow.layers[-1].grad_to_weight
    weak = [layer for layer in flow.layers if layer.grad_to_weight < last / 10**VANISHING_DECADES]
    return Finding(
        FindingKind.VANISHING,
        Severity.CRITICAL,
        tuple(layer.layer.name for layer in weak or flow.layers[:1]),
        flow.decades,
        VANISHING_DECADES,
        f"The gradient, {flow.subject}, falls {_fold(10**flow.decades)} from the last "
        f"layer to the first, {flow.trend.shrink_per_layer:.3g}-fold with every layer (95 % "
        f"interval {flow.trend.low:.3g} to {flow.trend.high:.3g}).",
        "Add residual connections or normalisation, use ReLU-like activations with He "
        "initialisation, or take fewer layers.",
    )


def _exploding_toward_input(flow: Flow) -> Finding:
    last = flow.layers[-1].grad_to_weight
    strong = [layer for layer in flow.layers if layer.grad_to_weight > last * 10**EXPLODING_DECADES]
    growth = 1 / flow.trend.shrink_per_layer
    return Finding(
        FindingKind.EXPLODING,
        Severity.CRITICAL,
        tuple(layer.layer.name for layer in strong or flow.layers[:1]),
        -flow.decades,
        EXPLODING_DECADES,
        f"The gradient, {flow.subject}, grows {_fold(10**-flow.decades)} from the last "
        f"layer to the first, {growth:.3g}-fold with every layer (95 % interval "
        f"{1 / flow.trend.high:.3g} to {1 / flow.trend.low:.3g}).",
        "Add residual connections, lower the gain of the initialisation, or take fewer layers; "
        "clipping only hides it.",
    )


def _fold(factor: float) -> str:
    return f"{factor:.0f}-fold" if factor < 1e4 else f"by a factor of {factor:.0e}"


def _judge_size(flow: Flow, update_to_weight: Column | None) -> list[Finding]:
    update = _median(update_to_weight) if update_to_weight is not None else math.nan
    if update > HIGHEST_UPDATE:
        return [_too_large_steps(flow, update)]
    ratio = _median(flow.reading.grad_to_weight[flow.reading.watched.trend])
    if ratio > HIGHEST_RATIO:
        return [_too_large_gradients(flow, ratio)]
    return []


def _too_large_steps(flow: Flow, update: float) -> Finding:
    return Finding(
        FindingKind.EXPLODING,
        Severity.CRITICAL,
        tuple(layer.layer.name for layer in flow.layers),
        update,
        HIGHEST_UPDATE,
        f"One step changes the weights of half of the layers by {update:.2g} times their own size "
        "or more; about 0.001 is usual.",
        "Lower the learning rate tenfold, or warm it up.",
    )


def _too_large_gradients(flow: Flow, ratio: float) -> Finding:
    return Finding(
        FindingKind.EXPLODING,
        Severity.CRITICAL,
        tuple(layer.layer.name for layer in flow.layers),
        ratio,
        HIGHEST_RATIO,
        f"The gradient of half of the layers is {ratio:.2g} times their weights or more.",
        "Lower the gain of the initialisation, normalise activations and inputs, or scale the "
        "loss down.",
    )


def _judge_level(flow: Flow) -> list[Finding]:
    if not flow.level < LOWEST_LEVEL:
        return []
    return [
        Finding(
            FindingKind.VANISHING,
            Severity.CRITICAL,
            tuple(layer.layer.name for layer in flow.layers),
            flow.level,
            LOWEST_LEVEL,
            f"Half of the layers get a gradient of {flow.level:.1g} or less of what the loss "
            "sends into the network.",
            "The signal dies on its way forward: use He initialisation for ReLU-like "
            "activations, or normalise, or add residual connections.",
        )
    ]
