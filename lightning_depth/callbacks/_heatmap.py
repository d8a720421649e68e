"""A heat map of one quantity by depth and step, on a logarithmic color scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_depth import _extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_heatmap"]

_MOST_LABELS = 24


def draw_heatmap(
    steps: Sequence[int],
    depths: Sequence[int],
    names: Sequence[str],
    values: Sequence[float],
    label: str,
) -> tuple[Figure, Axes]:
    """Draw values, given as one list for all cells, with depth upward and steps to the right.

    Args:
        steps: Step of each value.
        depths: Depth of each value.
        names: Name of the layer of each value.
        values: What is drawn; cells without a number above zero stay empty.
        label: What the color means.
    """
    figure = _extras.matplotlib_figure().Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="optimizer step", title=label)
    columns = {step: place for place, step in enumerate(sorted(set(steps)))}
    layers = dict(sorted(zip(depths, names, strict=True)))
    rows = {depth: place for place, depth in enumerate(layers)}
    grid = [[math.nan] * len(columns) for _ in rows]
    for step, depth, value in zip(steps, depths, values, strict=True):
        grid[rows[depth]][columns[step]] = math.log10(value) if 0 < value < math.inf else math.nan
    if any(math.isfinite(value) for row in grid for value in row):
        image = axes.imshow(grid, aspect="auto", origin="lower", interpolation="nearest")
        figure.colorbar(image, ax=axes, label=f"log10 of {label}")
    _label(axes, list(columns), list(layers.values()))
    return figure, axes


def _label(axes: Axes, steps: Sequence[int], names: Sequence[str]) -> None:
    ticks = range(0, len(steps), max(1, math.ceil(len(steps) / 8)))
    axes.set_xticks(list(ticks), [str(steps[tick]) for tick in ticks])
    ticks = range(0, len(names), max(1, math.ceil(len(names) / _MOST_LABELS)))
    axes.set_yticks(list(ticks), [names[tick] for tick in ticks])
