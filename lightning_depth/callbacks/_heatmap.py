"""A heat map of one quantity by depth and step, on a logarithmic color scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_depth import _extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_heatmap"]

_MOST_LABELS = 24


def draw_heatmap(
    table: Mapping[str, Sequence[Any]], column: str, title: str, label: str
) -> tuple[Figure, Axes]:
    """Draw one column of a history, with depth upward and steps to the right.

    A measured step is as wide as the time until half way to its neighbors, so that the first
    steps, which are all measured, do not look like half of the run.

    Args:
        table: Columns ``step``, ``depth``, ``layer`` and the one that is drawn.
        column: What is drawn; cells without a number above zero stay empty.
        title: Title of the figure.
        label: What the color means.
    """
    figure = _extras.matplotlib_figure().Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="optimizer step", title=title)
    steps = sorted(set(table.get("step", ())))
    layers = dict(sorted(zip(table.get("depth", ()), table.get("layer", ()), strict=True)))
    grid = _grid(table, column, steps, list(layers)) if steps else []
    if any(math.isfinite(value) for row in grid for value in row):
        borders = [place + 0.5 for place in range(len(layers) + 1)]
        mesh = axes.pcolormesh(_borders(steps), borders, grid, norm="log")
        figure.colorbar(mesh, ax=axes, label=label)
    names = list(layers.values())
    ticks = range(0, len(names), max(1, math.ceil(len(names) / _MOST_LABELS)))
    axes.set_yticks([tick + 1 for tick in ticks], [names[tick] for tick in ticks])
    return figure, axes


def _grid(
    table: Mapping[str, Sequence[Any]], column: str, steps: Sequence[int], depths: Sequence[int]
) -> list[list[float]]:
    columns = {step: place for place, step in enumerate(steps)}
    rows = {depth: place for place, depth in enumerate(depths)}
    grid = [[math.nan] * len(steps) for _ in depths]
    for step, depth, value in zip(table["step"], table["depth"], table[column], strict=True):
        grid[rows[depth]][columns[step]] = value if 0 < value < math.inf else math.nan
    return grid


def _borders(steps: Sequence[int]) -> list[float]:
    """Borders half way between steps; the outer ones as far out as the inner ones are in."""
    inner = [(a + b) / 2 for a, b in pairwise(steps)]
    first = steps[0] - (inner[0] - steps[0] if inner else 0.5)
    last = steps[-1] + (steps[-1] - inner[-1] if inner else 0.5)
    return [first, *inner, last]
