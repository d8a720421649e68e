"""The trend of the gradient over the depth of the network, at one reading.

The decision is taken on ratios of gradient to weight, whose level and spread were measured on
healthy networks and on planted faults (docs/calibration.md). A trend counts only if both the
fitted line and the difference between the two ends of the network say so: one odd layer, gated
side branches or a head of another kind do not make a trend.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median, median_high, median_low

import numpy as np

from lightning_depth.callbacks._reading import FEWEST, Column, LayerGradient, Reading
from lightning_depth.functional.gradients import GradientFlow, gradient_flow

__all__ = ["Flow", "middle_of", "read_flow"]

_FEW = 4
"""Up to so many layers leave a line too little freedom to be told from noise."""
_SINGLE = 5
"""Of up to so many layers a third is one layer, and one layer makes no trend."""
_FAIR = 0.25
"""Of few layers each must take at least this part of its fair share of the trend."""


@dataclass(frozen=True)
class Flow:
    """One reading with its trend over depth."""

    reading: Reading
    ratios: Column
    """What the trend is fitted to, for each layer in it; not-a-number where it says nothing."""
    subject: str
    """What the trend is of, in words."""

    @cached_property
    def trend(self) -> GradientFlow:
        """The fitted line over depth."""
        return gradient_flow(self.reading.watched.trend_depths, self.ratios)

    @cached_property
    def _logs(self) -> list[float]:
        return [math.log10(ratio) for ratio in self.ratios.tolist() if 0 < ratio < math.inf]

    @cached_property
    def ends(self) -> float:
        """Powers of ten between the medians of the last third of the layers and of the first.

        Of two values in the middle of a third the one is taken that makes less of the difference.
        """
        third = len(self._logs) // 3
        if not third:
            return math.nan
        last, first = self._logs[-third:], self._logs[:third]
        fall = median_low(last) - median_high(first)
        rise = median_high(last) - median_low(first)
        return max(fall, 0.0) or min(rise, 0.0)

    @cached_property
    def fall(self) -> float:
        """Powers of ten by which the gradient falls from the last layer to the first.

        It is that of the fitted line; of few layers it is that between the last and the first,
        where every layer has its part in it. It is 0 where ends or interval contradict it, and
        where it rises in one of few layers only, as in a stem in front of parallel branches.
        """
        if self.is_of_few:
            return self.ends
        line = self.trend.decades
        if not math.isfinite(line) or not math.isfinite(self.ends) or line * self.ends <= 0:
            return 0.0
        if line < 0 and len(self._logs) <= _SINGLE and not self._is_shared(-1):
            return 0.0
        return 0.0 if self.trend.low <= 1.0 <= self.trend.high else line

    @cached_property
    def is_of_few(self) -> bool:
        """Whether the layers are too few for a line, and the gradient falls with each of them."""
        return FEWEST <= len(self._logs) <= _FEW and self._is_shared(1)

    def _is_shared(self, sign: int) -> bool:
        """Whether every layer has its part in a fall toward the input, or in a rise."""
        logs = [sign * log for log in self._logs]
        fair = _FAIR * (logs[-1] - logs[0]) / (len(logs) - 1)
        return fair > 0 and all(after - before >= fair for before, after in pairwise(logs))

    @property
    def level(self) -> float:
        """Median gradient of the blocks that have one over the largest of any parameter."""
        grads = self.reading.grad_rms[self.reading.watched.trend]
        return middle_of(grads[grads != 0.0]) / (self.reading.peak_rms or math.nan)

    @cached_property
    def layers(self) -> tuple[LayerGradient, ...]:
        """The layers in the trend."""
        return tuple(self.reading.layers[place] for place in self.reading.watched.trend)

    def beyond(self, decades: float) -> tuple[str, ...]:
        """Return the layers that lie so many powers of ten below the last third, or above it.

        Args:
            decades: Above zero for what lies below.
        """
        known = self._logs[-(len(self._logs) // 3) :]
        edge = 10 ** (median(known) - decades)
        below = self.ratios < edge if decades > 0 else self.ratios > edge
        return tuple(
            layer.layer.name for layer, far in zip(self.layers, below.tolist(), strict=True) if far
        )


def read_flow(reading: Reading, unsteady: Collection[str] = ()) -> Flow:
    """Return the trend of a reading over the depth of the network.

    It is that of the gradients of the outputs where they were measured, and of the ratio of
    gradient to weight otherwise. A weight that began at zero is no measure of its gradient, and
    branches that take turns lie beside each other, not in a row.

    Args:
        reading: What was read at one step.
        unsteady: Layers that have a gradient at some steps only.
    """
    places = reading.watched.trend
    outputs = None if reading.output_rms is None else reading.output_rms[places]
    if outputs is not None and np.isfinite(outputs).sum() >= FEWEST:
        return Flow(reading, outputs, "taken at the layers' outputs")
    ratios = reading.grad_to_weight[places]
    left_out = reading.unborn | {p for p in places.tolist() if reading.watched.names[p] in unsteady}
    if left_out:
        ratios = np.where(np.isin(places, list(left_out)), np.nan, ratios)
    return Flow(reading, ratios, "held against the weights")


def middle_of(values: Column | Sequence[float]) -> float:
    """Return the median of what is finite, not-a-number where nothing is."""
    kept = [value for value in np.asarray(values).tolist() if math.isfinite(value)]
    return median(kept) if kept else math.nan
