"""The report's figures: panels with names, a sentence with the numbers, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_depth.report import _panels, _series
from lightning_depth.report._canvas import embed
from lightning_depth.report._format import join, percent, scientific
from lightning_depth.report._series import Band, Grid

__all__ = ["Figure", "Panel", "error_figure", "gradient_figure", "styled"]

Trials = Mapping[str, Sequence[Mapping[str, Any]]]
Styles = Mapping[str, _panels.Style]

ERRORS = {"train_error": "Training error, in eval mode", "val_error": "Validation error"}
DECADES = 8
"""Gradients smaller than the largest by more decades than this share the lowest color."""


@dataclass(frozen=True)
class Panel:
    """One picture: its name, the element, and the arm whose key stands before the name."""

    name: str
    svg: str
    arm: str | None = None


@dataclass(frozen=True)
class Figure:
    """Panels that belong together."""

    title: str
    sentence: str
    reading: str
    panels: tuple[Panel, ...]
    legend: tuple[str, ...] = ()
    scale: str | None = None
    scale_name: str = ""


def styled(bands: Mapping[str, Band], styles: Styles) -> list[_panels.Line]:
    """Return the lines of a panel, each in its arm's looks."""
    return [_panels.Line(band, styles[arm]) for arm, band in bands.items()]


def error_figure(trials: Trials, styles: Styles) -> Figure | None:
    """Return training and validation error over epochs, one line an arm; None without curves."""
    drawn: dict[str, dict[str, Band]] = {}
    for column in ERRORS:
        bands = {arm: _series.curves(own, column) for arm, own in trials.items()}
        drawn[column] = {arm: band for arm, band in bands.items() if not band.is_empty}
    bands_of = {column: bands for column, bands in drawn.items() if bands}
    if not bands_of:
        return None
    top = max(float(np.nanmax(band.high)) for own in bands_of.values() for band in own.values())
    panels = [_error_panel(column, own, styles, top or 1.0) for column, own in bands_of.items()]
    return Figure(
        "Error by epoch",
        " ".join(f"{ERRORS[column]}: {_ends(own)}" for column, own in bands_of.items()),
        "At the last epoch; means over the seeds, in brackets the lowest and the highest seed, which "
        "the bands show for every epoch. Where the validation error alone is high, a net overfits; "
        "where the training error is high already, it never fitted, and depth may be the reason.",
        tuple(panels),
        legend=tuple(arm for arm in trials if any(arm in own for own in bands_of.values())),
    )


def _error_panel(column: str, bands: Mapping[str, Band], styles: Styles, top: float) -> Panel:
    svg = _panels.lines(
        styled(bands, styles),
        "epoch",
        lambda value: f"{100 * value:.3g} %",
        y_limits=(-0.02 * top, 1.05 * top),
    )
    alternative = f"{ERRORS[column]} by epoch. At the last epoch: {_ends(bands)}"
    return Panel(ERRORS[column], embed(svg, column.replace("_", "-"), alternative))


def _ends(bands: Mapping[str, Band]) -> str:
    parts = []
    for arm, band in bands.items():
        mean, low, high = band.end()
        spread = f" ({percent(low)} to {percent(high)})" if band.num_seeds > 1 else ""
        parts.append(f"{arm} {percent(mean)}{spread}")
    return f"{join(parts)}."


def gradient_figure(trials: Trials) -> Figure | None:
    """Return a map of gradient size by depth and step per arm, all on one color scale."""
    grids = {arm: _series.gradients(own) for arm, own in trials.items()}
    drawn = {arm: grid for arm, grid in grids.items() if grid is not None and grid.positive.size}
    if not drawn:
        return None
    limits = _color_limits(list(drawn.values()))
    told = {arm: _shrinkage(grid) for arm, grid in drawn.items()}
    panels = []
    for number, (arm, grid) in enumerate(drawn.items()):
        alternative = (
            f"Gradient size of {arm} by depth and optimizer step. "
            f"First layer over last layer, median over the steps: {told[arm]}."
        )
        svg = embed(_panels.gradient_map(grid, limits), f"gradient-{number}", alternative)
        panels.append(Panel(arm, svg, arm=arm))
    low, high = (scientific(limit) for limit in limits)
    return Figure(
        "Gradient flow by depth and step",
        "Gradient of the first layer over that of the last, median over the steps: "
        f"{join([f'{arm} {ratio}' for arm, ratio in told.items()])}.",
        "Color is the root mean square of a layer's gradient, on one logarithmic scale for all arms; "
        "depth 1 is nearest the input. A map that darkens downwards is a gradient that is lost on "
        "its way back to the first layers. Geometric mean over the seeds; grey where no number is "
        "finite.",
        tuple(panels),
        scale=embed(
            _panels.color_bar(limits), "scale", f"Color scale: dark is {low}, bright is {high}."
        ),
        scale_name="Gradient, root mean square",
    )


def _color_limits(grids: Sequence[Grid]) -> tuple[float, float]:
    high = int(np.ceil(np.log10(max(float(grid.positive.max()) for grid in grids))))
    low = int(np.floor(np.log10(min(float(grid.positive.min()) for grid in grids))))
    return 10.0 ** min(max(low, high - DECADES), high - 1), 10.0**high


def _shrinkage(grid: Grid) -> str:
    first, last = grid.values[0], grid.values[-1]
    both = np.isfinite(first) & np.isfinite(last) & (last > 0)
    ratio = scientific(float(np.median(first[both] / last[both]))) if both.any() else "not finite"
    return f"{ratio} ({len(grid.depths)} layers)"
