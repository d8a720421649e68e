"""Figures of the probe: measures by depth, and the classes in the plane, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lightning_depth import _extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["draw_panels", "draw_profile"]

MARKERS = "osv^D<>Pp*"
SHOWN = 5  # passes that are drawn
ACCURACIES = ("linear_probe", "knn")
LABELS = {
    "separation": "separation (smaller is better)",
    "fisher": "Fisher ratio",
    "linear_probe": "linear probe accuracy",
    "collapse": "neural collapse NC1",
    "knn": "nearest-neighbor accuracy",
    "effective_rank": "effective rank",
}


def draw_profile(
    table: Mapping[str, Sequence[Any]],
    law: Mapping[str, float],
    columns: Sequence[str],
    chance: float | None = None,
    panels: Mapping[str, Any] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Draw each column over depth, the first and the last passes and some between.

    Args:
        table: Columns of the history.
        law: The law of the last pass; where it is stated its line is drawn through the separation.
        columns: Columns to draw, one axes each.
        chance: Accuracy of always naming the commonest class, drawn where accuracies are.
        panels: Picture of the classes of the last pass, drawn below where it is given.
    """
    rows = 0 if not panels else -(-len(panels["layers"]) // 4)
    width, height = 4.2 * max(len(columns), 2), 3.4
    figure = _extras.matplotlib_figure().Figure(
        figsize=(width, height + rows * width / 4), layout="constrained"
    )
    if rows and panels:
        top, below = figure.subfigures(2, 1, height_ratios=[height, rows * width / 4])
        _fill_panels(below, panels)
    else:
        top = figure
    axes = top.subplots(1, len(columns), squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        _draw_column(axis, table, column)
        if column == "separation" and law.get("stated"):
            _draw_law(axis, law, max(table["depth"]))
        if column in ACCURACIES and chance is not None and math.isfinite(chance):
            axis.axhline(chance, ls=":", color="gray", label=f"chance {chance:.2g}")
            axis.legend(handles=axis.get_lines()[-1:], fontsize="small")
    axes[0].legend(fontsize="small", title="epoch", title_fontsize="small")
    return figure, list(axes)


def draw_panels(panels: Mapping[str, Any]) -> Figure:
    """Draw the classes in the plane in which they lie furthest apart, one panel a layer."""
    count = len(panels["layers"])
    columns = min(4, count)
    figure = _extras.matplotlib_figure().Figure(
        figsize=(2.6 * columns, 2.6 * -(-count // columns) + 0.5), layout="constrained"
    )
    _fill_panels(figure, panels)
    return cast("Figure", figure)


def _draw_column(axis: Axes, table: Mapping[str, Sequence[Any]], column: str) -> None:
    passes = _passes(table)
    count = min(len(passes), SHOWN)
    shown = [passes[round(i * (len(passes) - 1) / max(1, count - 1))] for i in range(count)]
    colors = _extras.matplotlib().colormaps["viridis"]
    by_decades = column in ("separation", "collapse") or column.startswith("fisher")
    drawn: list[float] = []
    for place, rows in enumerate(shown):
        depths = [table["depth"][i] for i in rows]
        values = [_drawable(table[column][i], positive=by_decades) for i in rows]
        drawn += values
        color = colors(0.85 * (count - 1 - place) / max(1, count - 1))  # the last one dark
        epoch = str(table["epoch"][rows[0]])
        axis.plot(depths, values, "o-", ms=3, lw=1.2, color=color, label=epoch)
    if not any(math.isfinite(value) for value in drawn):
        axis.text(0.5, 0.5, "no number to draw", ha="center", transform=axis.transAxes)
    elif by_decades:
        _scale_by_decades(axis)
    axis.set_xlabel("depth (0 is the input)")
    axis.set_ylabel(LABELS.get(column) or _pair_label(column))
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.3)


def _passes(table: Mapping[str, Sequence[Any]]) -> list[range]:
    """The rows of each pass: it begins anew where the moment changes or the depth falls back."""
    keys = list(zip(table["epoch"], table["step"], strict=True))
    starts = [
        place
        for place, key in enumerate(keys)
        if not place or key != keys[place - 1] or table["depth"][place] <= table["depth"][place - 1]
    ]
    return [range(*ends) for ends in zip(starts, [*starts[1:], len(keys)], strict=True)]


def _drawable(value: float, *, positive: bool) -> float:
    return value if math.isfinite(value) and (value > 0 or not positive) else math.nan


def _draw_law(axis: Axes, law: Mapping[str, float], depth: int) -> None:
    ends = [1, depth]
    line = [math.exp(law["intercept"]) * law["decay_ratio"] ** end for end in ends]
    axis.plot(ends, line, "--", lw=1, color="crimson")
    axis.set_title(
        f"× {law['decay_ratio']:.2f} a layer ({law['low']:.2f} to {law['high']:.2f}, "
        f"R² {law['r_squared']:.2f})",
        fontsize="small",
        color="crimson",
    )


def _scale_by_decades(axis: Axes) -> None:
    """A logarithmic axis with as many labels as there is room for."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = math.log10(high / low)
    labelled = {2, 5} if decades <= 2.5 else set()

    def between(value: float, place: float) -> str:
        leading = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        return _plain(value, place) if decades <= 1 or leading in labelled else ""

    axis.yaxis.set_major_formatter(_plain)
    axis.yaxis.set_minor_formatter(between)
    axis.tick_params(axis="y", which="minor", labelsize="x-small")


def _plain(value: float, place: float = 0.0) -> str:
    return f"{value:g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.0e}"


def _pair_label(column: str) -> str:
    _, first, second = column.split("_")
    return f"Fisher ratio of {first} and {second}"


def _limits(layers: Mapping[str, Any]) -> list[tuple[float, float]]:
    """One scale for all panels, so that distances can be compared, without far outliers."""
    found = []
    for axis in (0, 1):
        values = sorted(p[axis] for points in layers.values() for p in points if p[axis] == p[axis])
        if not values:
            return [(-1.0, 1.0)] * 2
        low, high = values[len(values) // 200], values[-1 - len(values) // 200]
        margin = 0.05 * (high - low) or 1.0
        found.append((low - margin, high + margin))
    return found


def _fill_panels(figure: Figure | SubFigure, panels: Mapping[str, Any]) -> None:
    layers, labels = panels["layers"], panels["labels"]
    columns = min(4, len(layers))
    grid = figure.subplots(-(-len(layers) // columns), columns, squeeze=False)
    classes = sorted(set(labels))
    colors = _extras.matplotlib().colormaps["tab10"]
    limits = _limits(layers)
    for axis in grid.flat[len(layers) :]:
        axis.set_axis_off()
    for axis, (name, points) in zip(grid.flat, layers.items(), strict=False):
        for place, label in enumerate(classes):
            mine = [point for point, other in zip(points, labels, strict=True) if other == label]
            axis.scatter(
                [x for x, _ in mine], [y for _, y in mine], s=9, alpha=0.7, lw=0,
                color=colors(place % 10), marker=MARKERS[place % len(MARKERS)], label=str(label),
            )  # fmt: skip
        axis.set_title(name, fontsize="small")
        axis.set_xlim(limits[0])
        axis.set_ylim(limits[1])
        axis.set_xticks([])
        axis.set_yticks([])
    grid.flat[0].legend(fontsize="x-small", ncols=2, handletextpad=0.1, columnspacing=0.5)
