"""Panels of the report's figures.

No word that came from outside is drawn into a picture: names stand in the page around it, where the
template escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_depth.report._canvas import ARMS, EMPTY, INK, MUTED, panel, to_svg
from lightning_depth.report._series import Array, Band, Grid

__all__ = [
    "Line",
    "Style",
    "color_bar",
    "gradient_map",
    "interval",
    "key",
    "lines",
    "power_of_ten",
    "short",
    "styles",
]

DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.8)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure."""

    color: str
    dash: Any
    marker: str


@dataclass(frozen=True)
class Line:
    """One arm's band with its looks."""

    band: Band
    style: Style


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return one style an arm; no two of the first 28 arms look alike."""
    return {
        name: Style(
            ARMS[number % len(ARMS)],
            DASHES[(number + 2 * (number // len(ARMS))) % len(DASHES)],
            MARKERS[(number + number // len(ARMS)) % len(MARKERS)],
        )
        for number, name in enumerate(names)
    }


def key(style: Style) -> str:
    """Return the piece of line that stands before an arm's name."""
    with panel(34, 12, left=0, right=0, bottom=0, top=0) as (figure, axes):
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **_looks(style))
        axes.set_xlim(0, 2)
        return to_svg(figure)


def lines(
    drawn: Sequence[Line],
    x_label: str,
    y_text: Callable[[float], str],
    *,
    y_limits: tuple[float, float],
    log: bool = False,
) -> str:
    """Return a panel with one line an arm and, where there are several seeds, their spread."""
    with panel(440, 262) as (figure, axes):
        for line in drawn:
            _draw_line(axes, line)
        if log:
            axes.set_yscale("log")
            axes.minorticks_off()
            if y_limits[1] < 1e3 * y_limits[0]:
                axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.set_ylim(*y_limits)
        axes.yaxis.set_major_formatter(lambda value, _: y_text(value))
        _whole_numbers(axes.xaxis)
        axes.set_xlabel(x_label)
        axes.grid(visible=False, axis="x")
        return to_svg(figure)


def _looks(style: Style) -> dict[str, Any]:
    return {
        "color": style.color,
        "linestyle": style.dash,
        "linewidth": 1.8,
        "marker": style.marker,
        "markersize": 4.4,
    }


def _draw_line(axes: Any, line: Line) -> None:
    band = line.band
    if band.num_seeds > 1:
        shade = {"color": line.style.color, "alpha": 0.16, "linewidth": 0}
        axes.fill_between(band.x, band.low, band.high, **shade)
    marked = np.linspace(0, len(band.x) - 1, min(len(band.x), 12)).round().astype(int).tolist()
    axes.plot(band.x, band.mean, markevery=marked, **_looks(line.style))


def gradient_map(grid: Grid, limits: tuple[float, float]) -> str:
    """Return a panel with depth upwards, steps to the right and the gradient as log color.

    A gradient of exactly zero takes the lowest color; a place without a number stays empty.
    """
    shown = np.ma.masked_invalid(np.where(grid.values == 0, limits[0], grid.values))
    height = min(236, 96 + 14 * len(grid.depths))  # few layers need no tall map
    with panel(440, height) as (figure, axes):
        axes.set_facecolor(EMPTY)
        axes.grid(visible=False)
        axes.pcolormesh(_edges(grid.steps), _edges(grid.depths), shown, **_log_color(limits))
        _whole_numbers(axes.xaxis)
        _whole_numbers(axes.yaxis)
        axes.set_ylabel("depth")
        axes.set_xlabel("optimizer step")
        return to_svg(figure)


def color_bar(limits: tuple[float, float]) -> str:
    """Return the scale that all gradient maps of the report share."""
    edges = np.geomspace(*limits, 129)
    with panel(440, 36, bottom=21, top=2) as (figure, axes):
        axes.grid(visible=False)
        axes.pcolormesh(
            edges, [0, 1], np.sqrt(edges[1:] * edges[:-1])[None, :], **_log_color(limits)
        )
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: power_of_ten(value))
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return to_svg(figure)


def interval(effect: float, low: float, high: float) -> str:
    """Return a claim's effect as a dot with its interval as a line, on an axis with a mark at 0."""
    ends = min(low, effect, 0.0), max(high, effect, 0.0)
    margin = 0.06 * (ends[1] - ends[0]) or 1.0
    with panel(300, 44, left=16, right=16, bottom=22, top=4) as (figure, axes):
        axes.grid(visible=False)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.plot([low, high], [0, 0], color=INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot([effect], [0], color=INK, marker="o", markersize=7)
        axes.set_xlim(ends[0] - margin, ends[1] + margin)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        return to_svg(figure)


def short(value: float) -> str:
    """Return a number for an axis: plain where it is short, else with a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "−")
    mantissa = round(value / 10.0 ** np.floor(np.log10(abs(value)) + 1e-9), 6)
    return power_of_ten(value) if mantissa == 1 else f"{mantissa:.2g}·{power_of_ten(value)}"


def power_of_ten(value: float) -> str:
    """Return a power of ten in characters that need no typesetting."""
    exponent = str(int(np.floor(np.log10(abs(value)) + 1e-9)))
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _log_color(limits: tuple[float, float]) -> dict[str, Any]:
    low, high = limits
    return {"norm": "log", "vmin": low, "vmax": high, "cmap": "viridis", "rasterized": True}


def _edges(centers: Array) -> Array:
    """Return the borders of cells, half way between their centers."""
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    between = (centers[1:] + centers[:-1]) / 2
    ends = 2 * centers[0] - between[0], 2 * centers[-1] - between[-1]
    return np.concatenate([ends[:1], between, ends[1:]])


def _whole_numbers(axis: Any) -> None:
    axis.get_major_locator().set_params(integer=True)
