"""Separability by depth: one figure a measure, with a panel for the first and the last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from lightning_depth.report import _panels, _series
from lightning_depth.report._canvas import embed
from lightning_depth.report._figures import Figure, Panel, Styles, Trials, styled
from lightning_depth.report._format import join, percent, scientific
from lightning_depth.report._series import Array, Band

__all__ = ["separability_figures"]

MEASURES = {
    "separation": ("Within-class over between-class scatter", "Lower is better separated."),
    "fisher": ("Fisher ratio", "Higher is better separated."),
    "linear_probe": ("Accuracy of a linear probe", "Higher is better separated."),
}
SHARES = {"linear_probe"}
"""Measures that are shares of samples and are shown as percent on a linear axis."""

Bands = Mapping[str, Band]


def separability_figures(trials: Trials, styles: Styles) -> list[Figure]:
    """Return one figure for each stored measure that has a finite number, the known ones first."""
    stored = {name: None for own in trials.values() for name in _series.measures(own)}
    order = sorted(stored, key=lambda name: name not in MEASURES)
    figures = [
        _figure(name, number, trials, styles)
        for number, name in enumerate(order)
        if any(_bands(trials, name, "last"))
    ]
    return figures


def _bands(trials: Trials, measure: str, epoch: Literal["first", "last"]) -> dict[str, Band]:
    bands = {arm: _series.profile(own, measure, epoch) for arm, own in trials.items()}
    return {arm: band for arm, band in bands.items() if not band.is_empty}


def _figure(measure: str, number: int, trials: Trials, styles: Styles) -> Figure:
    first, last = _bands(trials, measure, "first"), _bands(trials, measure, "last")
    title, better = MEASURES.get(measure, (measure, ""))
    values = np.concatenate(
        [
            edge
            for bands in (first, last)
            for band in bands.values()
            for edge in (band.low, band.high)
        ]
    )
    values = values[np.isfinite(values)]
    panels = [
        Panel(
            f"After the {epoch} epoch",
            embed(
                _lines(measure, bands, styles, values),
                f"separability-{number}-{epoch}",
                f"{title} by depth after the {epoch} epoch. "
                f"From the input to the last layer: {_told(measure, bands)}.",
            ),
        )
        for epoch, bands in (("first", first), ("last", last))
        if bands
    ]
    return Figure(
        f"{title} by depth",
        f"After the last epoch, from the input to the last layer: {_told(measure, last)}.",
        f"{better} Depth 0 is the input. Where a line goes on falling or rising, each layer brings "
        "the classes further apart; where it is flat, its layers add nothing.".strip(),
        tuple(panels),
        legend=tuple(arm for arm in trials if arm in first or arm in last),
    )


def _told(measure: str, bands: Bands) -> str:
    text = percent if measure in SHARES else scientific
    parts = []
    for arm, band in bands.items():
        finite = band.mean[np.isfinite(band.mean)]
        parts.append(f"{arm} {text(float(finite[0]))} to {text(float(finite[-1]))}")
    return join(parts)


def _lines(measure: str, bands: Bands, styles: Styles, values: Array) -> str:
    drawn = styled(bands, styles)
    low, high = float(values.min()), float(values.max())
    if measure in SHARES:
        limits = (max(low - 0.05, -0.02), 1.02)
        return _panels.lines(drawn, "depth", lambda v: f"{100 * v:.3g} %", y_limits=limits)
    if low > 0:
        limits = (low / 1.15, high * 1.15)
        return _panels.lines(drawn, "depth", _panels.short, y_limits=limits, log=True)
    margin = 0.05 * (high - low) or 1.0
    return _panels.lines(drawn, "depth", _panels.short, y_limits=(low - margin, high + margin))
