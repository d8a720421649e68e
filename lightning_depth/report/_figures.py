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

__all__ = ["Bands", "Figure", "Panel", "absent", "error_figure", "gradient_figure", "styled"]

Trials = Mapping[str, Sequence[Mapping[str, Any]]]
Styles = Mapping[str, _panels.Style]
Bands = Mapping[str, Band]

ERRORS = {"train_error": "Training error, in eval mode", "val_error": "Validation error"}
GRADIENTS = {
    "output_grad_rms": "Gradient of the layers' outputs, root mean square",
    "grad_to_weight": "Gradient over weight, each a root mean square",
    "grad_rms": "Gradient, root mean square",
}
"""What findings may be about, by column: the first that was measured. Old studies stored the last.
"""
DECADES = 8
"""Gradients smaller than the largest by more decades than this share the lowest color."""


@dataclass(frozen=True)
class Panel:
    """One picture: its name, the element, and the arm whose key stands before the name."""

    name: str
    svg: str
    arm: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, and in the legend each arm with its numbers."""

    title: str
    lead: str
    reading: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...] = ()
    scale: str | None = None
    scale_name: str = ""
    absent: str = ""


def absent(trials: Trials, drawn: Sequence[str]) -> str:
    """Return the arms that finished runs but have no number to draw."""
    return join([arm for arm, own in trials.items() if own and arm not in drawn])


def styled(bands: Bands, styles: Styles) -> list[_panels.Line]:
    """Return the lines of a panel, each in its arm's looks."""
    return [_panels.Line(band, styles[arm]) for arm, band in bands.items()]


def error_figure(trials: Trials, styles: Styles) -> Figure | None:
    """Return training and validation error over epochs, one line an arm; None without curves."""
    drawn: dict[str, Bands] = {}
    for column in ERRORS:
        bands = {arm: _series.curves(own, column) for arm, own in trials.items()}
        drawn[column] = {arm: band for arm, band in bands.items() if not band.is_empty}
    drawn = {column: bands for column, bands in drawn.items() if bands}
    if not drawn:
        return None
    top = max(float(np.nanmax(band.high)) for own in drawn.values() for band in own.values())
    legend = tuple((arm, told) for arm in trials if (told := _errors_of(arm, drawn)))
    return Figure(
        "Error by epoch",
        "At the last epoch, mean over the seeds (lowest to highest seed):",
        "Lines are means over the seeds, bands reach from the lowest seed to the highest. Where "
        "the validation error alone is high, a net overfits; where the training error is high "
        "already, it never fitted, and depth may be the reason.",
        tuple(_error_panel(column, own, styles, top or 1.0) for column, own in drawn.items()),
        legend=legend,
        absent=absent(trials, [arm for arm, _ in legend]),
    )


def _error_panel(column: str, bands: Bands, styles: Styles, top: float) -> Panel:
    svg = _panels.lines(
        styled(bands, styles),
        "epoch",
        lambda value: f"{100 * value:.3g} %",
        y_limits=(-0.02 * top, 1.05 * top),
    )
    name = ERRORS[column]
    ends = join([f"{arm} {_end(band)}" for arm, band in bands.items()])
    alternative = f"{name} by epoch. At the last epoch: {ends}."
    return Panel(name, embed(svg, column.replace("_", "-"), alternative))


def _errors_of(arm: str, drawn: Mapping[str, Bands]) -> str:
    names = {"train_error": "training", "val_error": "validation"}
    ends = [f"{names[name]} {_end(own[arm])}" for name, own in drawn.items() if arm in own]
    return ", ".join(ends)


def _end(band: Band) -> str:
    mean, low, high = band.end()
    spread = f" ({percent(low)} to {percent(high)})" if band.num_seeds > 1 else ""
    return f"{percent(mean)}{spread}"


def gradient_figure(trials: Trials) -> Figure | None:
    """Return a map by depth and step per arm of what the findings judge, on one color scale."""
    quantity = _judged(trials)
    grids = {arm: _series.gradients(own, quantity) for arm, own in trials.items()}
    drawn = {arm: grid for arm, grid in grids.items() if grid is not None and grid.positive.size}
    if not drawn:
        return None
    limits = _color_limits(list(drawn.values()))
    low, high = (scientific(limit) for limit in limits)
    scale = embed(_panels.color_bar(limits), "scale", f"Color scale: dark {low}, bright {high}.")
    name = GRADIENTS[quantity]
    return Figure(
        "Gradient flow by depth and step",
        f"{name}; depth 1 is nearest the input. The numbers are medians over the steps"
        + ("." if quantity == "grad_rms" else "; findings are about the same quantity."),
        "A map that darkens downwards is a gradient that is lost on its way back to the first "
        "layers; one that brightens downwards grows on its way. One logarithmic color scale for "
        "all arms; geometric mean over the seeds; grey where no number is finite.",
        tuple(
            _map(number, arm, grid, limits, _trend(trials[arm], grid))
            for number, (arm, grid) in enumerate(drawn.items())
        ),
        scale=scale,
        scale_name=name,
        absent=absent(trials, list(drawn)),
    )


def _judged(trials: Trials) -> str:
    """The first quantity of which every arm that measured gradients has a number."""
    measured = [own for own in trials.values() if _series.has_numbers(own, "grad_rms")]
    return next(
        (
            column
            for column in GRADIENTS
            if measured and all(_series.has_numbers(own, column) for own in measured)
        ),
        "grad_rms",
    )


def _map(number: int, arm: str, grid: Grid, limits: tuple[float, float], trend: str) -> Panel:
    note = f"{trend}, {len(grid.depths)} layers"
    alternative = f"Gradient size of {arm} by depth and optimizer step: {note}."
    svg = embed(_panels.gradient_map(grid, limits), f"gradient-{number}", alternative)
    return Panel(arm, svg, arm=arm, note=note)


def _trend(trials: Sequence[Mapping[str, Any]], grid: Grid) -> str:
    """The factor a layer that findings and logs name; the ends of the map where it is unknown."""
    factor = _series.shrink_per_layer(trials)
    if not np.isfinite(factor) or factor <= 0:
        return f"first layer over last {_shrinkage(grid)}"
    verb, fold = ("falls", factor) if factor >= 1 else ("grows", 1 / factor)
    return f"{verb} {fold:.3g}-fold with every layer toward the input"


def _color_limits(grids: Sequence[Grid]) -> tuple[float, float]:
    high = int(np.ceil(np.log10(max(float(grid.positive.max()) for grid in grids))))
    low = int(np.floor(np.log10(min(float(grid.positive.min()) for grid in grids))))
    return 10.0 ** min(max(low, high - DECADES), high - 1), 10.0**high


def _shrinkage(grid: Grid) -> str:
    first, last = grid.values[0], grid.values[-1]
    both = np.isfinite(first) & np.isfinite(last) & (last > 0)
    return scientific(float(np.median(first[both] / last[both]))) if both.any() else "not finite"
