"""Separability by depth: one panel for the first epoch and one for the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_depth.report import _panels, _series
from lightning_depth.report._canvas import embed
from lightning_depth.report._figures import Bands, Figure, Panel, Styles, Trials, absent, styled
from lightning_depth.report._format import join, percent, scientific
from lightning_depth.report._series import Array, Band

__all__ = ["separability_figure"]

Epoch = Literal["first", "last"]
EPOCHS: tuple[Epoch, Epoch] = ("first", "last")


@dataclass(frozen=True)
class Measure:
    """What the page calls a measure, and how to read it."""

    title: str
    short: str
    better: str
    is_share: bool = False


MEASURES = {
    "separation": Measure("Separation", "separation", "lower"),
    "fisher": Measure("Fisher ratio", "Fisher ratio", "higher"),
    "linear_probe": Measure("Linear probe accuracy", "linear probe", "higher", is_share=True),
    "knn": Measure("Nearest neighbors accuracy", "nearest neighbors", "higher", is_share=True),
    "collapse": Measure("Neural collapse (NC1)", "NC1", "lower"),
    "effective_rank": Measure("Effective rank", "effective rank", ""),
}
"""Columns of a stored history that are measures; shares are shown as percent."""

POOLS = {
    "mean": "maps are reduced to their mean over positions",
    "class_token": "tokens to the class token",
}
"""How a layer's output became one row of features a sample, where it was not one already."""

AT_CHANCE = "the last layer does not separate the classes better than chance"
"""Told in the place of numbers that would be of noise."""

Epochs = Mapping[Epoch, Bands]


def separability_figure(trials: Trials, styles: Styles) -> Figure | None:
    """Return, for each stored measure, a panel for the first epoch and one for the last."""
    drawn: dict[str, Epochs] = {
        name: {epoch: _bands(trials, name, epoch) for epoch in EPOCHS} for name in MEASURES
    }
    drawn = {name: epochs for name, epochs in drawn.items() if epochs["last"]}
    if not drawn:
        return None
    panels = [
        _panel(name, f"separability-{number}", epoch, epochs, styles)
        for number, (name, epochs) in enumerate(drawn.items())
        for epoch in EPOCHS
        if epochs[epoch]
    ]
    legend = tuple(
        (arm, AT_CHANCE if _is_at_chance(trials[arm]) else told)
        for arm in trials
        if (told := _told(arm, drawn))
    )
    return Figure(
        "Separability of the classes by depth",
        "After the last epoch, from the input to the last layer:",
        f"{_sample(trials)}Depth 0 is the input. Where a line goes on falling or rising, each "
        "layer brings the classes further apart; where it is flat, its layers add nothing. Both "
        "epochs share one axis; bands reach from the lowest seed to the highest.",
        tuple(panels),
        legend=legend,
        absent=absent(trials, [arm for arm, _ in legend]),
    )


def _sample(trials: Trials) -> str:
    """Return on how many samples it was measured, and how maps became features."""
    histories = [history for own in trials.values() for history in _series.separability(own)]
    sizes = sorted({size for history in histories for size in history.get("num_samples", ())})
    pools = {pool: None for history in histories for pool in history.get("pool", ())}
    if not sizes:
        return ""
    how = join([POOLS[pool] for pool in pools if pool in POOLS])
    pooled = f"; {how}" if how else ""
    span = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    return f"Measured on {span} validation samples{pooled}. "


def _bands(trials: Trials, measure: str, epoch: Epoch) -> Bands:
    bands = {arm: _series.profile(own, measure, epoch) for arm, own in trials.items()}
    return {arm: band for arm, band in bands.items() if not band.is_empty}


def _panel(measure: str, key: str, epoch: Epoch, epochs: Epochs, styles: Styles) -> Panel:
    told_as = MEASURES[measure]
    edges = [edge for own in epochs.values() for band in own.values() for edge in band.edges()]
    values = np.concatenate(edges)
    bands = epochs[epoch]
    told = join([f"{arm} {_change(measure, band)}" for arm, band in bands.items()])
    alternative = (
        f"{told_as.title} by depth, {epoch} epoch. From the input to the last layer: {told}."
    )
    svg = _lines(measure, bands, styles, values[np.isfinite(values)])
    note = f"{told_as.better} is better" if told_as.better else ""
    title = f"{told_as.title}, {epoch} epoch"
    return Panel(title, embed(svg, f"{key}-{epoch}", alternative), note=note)


def _told(arm: str, drawn: Mapping[str, Epochs]) -> str:
    parts = [
        f"{MEASURES[name].short} {_change(name, epochs['last'][arm])}"
        for name, epochs in drawn.items()
        if arm in epochs["last"]
    ]
    return ", ".join(parts)


def _is_at_chance(own: Sequence[Mapping[str, Any]]) -> bool:
    """Whether after the last epoch no seed's classes were separated better than by chance."""
    stored = [history["above_chance"][-1:] for history in _series.separability(own)
              if "above_chance" in history]  # fmt: skip
    return bool(stored) and not any(value for last in stored for value in last)


def _change(measure: str, band: Band) -> str:
    text = percent if MEASURES[measure].is_share else scientific
    ends = [float(band.mean[place]) for place in (0, -1)]
    first, last = (text(end) if np.isfinite(end) else "no number" for end in ends)
    return f"{first} to {last}"


def _lines(measure: str, bands: Bands, styles: Styles, values: Array) -> str:
    drawn = styled(bands, styles)
    low, high = float(values.min()), float(values.max())
    if MEASURES[measure].is_share:
        limits = (max(low - 0.05, -0.02), 1.02)
        return _panels.lines(drawn, "depth", lambda v: f"{100 * v:.3g} %", y_limits=limits)
    if low > 0:
        limits = (low / 1.15, high * 1.15)
        return _panels.lines(drawn, "depth", _panels.short, y_limits=limits, log=True)
    margin = 0.05 * (high - low) or 1.0
    return _panels.lines(drawn, "depth", _panels.short, y_limits=(low - margin, high + margin))
