"""A map of one quantity by depth and step, whose colors mean the same in every figure of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_depth import _extras
from lightning_depth.callbacks._showing import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_heatmap", "draw_map", "shorten_name"]

_MOST_LABELS = 24
_LABEL_POINTS = 8.0
_LABEL_SHARE = 0.28
"""Names of layers take at most this share of the width, so that the map keeps half of it."""
_EMPTY = "0.8"

Array = NDArray[np.float64]
Table = Mapping[str, Sequence[Any]]


class _Scale(NamedTuple):
    """How numbers become colors; what lies outside takes the color of the nearer end."""

    low: float
    high: float
    norm: str = "log"
    colors: str = "viridis"


_ABOUT_ONE = _Scale(1e-3, 1e3, colors="RdBu_r")
"""For what is neither lost nor gained at 1, which has the middle color."""
_SHARE = _Scale(0.0, 1.0, norm="linear")
_SCALES = {
    "rms": _ABOUT_ONE,
    "grad_to_weight": _Scale(1e-7, 1e1),
    "update_to_weight": _Scale(1e-7, 1e1),
    "grad_rms": _Scale(1e-9, 1e-1),
    "output_grad_rms": _Scale(1e-9, 1e-1),
    "weight_rms": _Scale(1e-4, 1e1),
    "dead": _SHARE,
    "dormant": _SHARE,
    "saturated": _SHARE,
    "variety": _SHARE,
    "effective_rank": _Scale(1.0, 15.0, norm="linear"),
}


def draw_heatmap(
    table: Table, column: str, title: str, label: str, *, relative: bool = False
) -> Plot:
    """Draw one column of a history as a figure of its own, see ``draw_map``.

    Args:
        table: Columns ``step``, ``depth``, ``layer`` and the one that is drawn.
        column: What is drawn.
        title: Title of the figure.
        label: What the color means.
        relative: Whether each layer is held against the median layer of its step.
    """
    figure = _extras.matplotlib_figure().Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    draw_map(axes, table, column, title=title, label=label, relative=relative)
    return Plot(figure, axes)


def draw_map(
    axes: Axes,
    table: Table,
    column: str,
    *,
    title: str = "",
    label: str = "",
    relative: bool = False,
    names: bool = True,
) -> None:
    """Draw one column of a history into axes, with depth upward and steps to the right.

    A measured step is as wide as the time until half way to its neighbors, so that the first
    steps, which are all measured, do not look like half of the run. Places without a number stay
    gray; zero takes the lowest color and infinity the highest.

    Args:
        axes: Where to draw; of a figure with constrained layout.
        table: Columns ``step``, ``depth``, ``layer`` and the one that is drawn.
        column: What is drawn.
        title: Title of the axes.
        label: What the color means.
        relative: Whether each layer is held against the median layer of its step.
        names: Whether the layers are named beside the map.
    """
    axes.set(xlabel="optimizer step", title=title, facecolor=_EMPTY)
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True, min_n_ticks=1)
    steps, layers = sorted(set(table.get("step", ()))), _rows(table)
    if steps:
        values = np.array(table[column], dtype=float)
        grid = _grid(table, _relative(table, values) if relative else values, steps, layers)
        _fill(axes, grid, steps, _ABOUT_ONE if relative else _scale(column, grid), label)
    _name_rows(axes, layers if names else [])


def shorten_name(name: str, room: float, width: Callable[[str], float]) -> str:
    """Return the end of a name that fits, with its last number, by which layers are told apart.

    Args:
        name: Dotted name of a layer.
        room: How wide the text may be.
        width: Returns how wide a text is.
    """
    if width(name) <= room:
        return name
    parts = name.split(".")
    number = max((place for place, part in enumerate(parts) if part.isdigit()), default=None)
    last = len(parts) - 1 if number is None else number
    texts = [f"…{'.'.join(parts[start:])}" for start in range(1, last + 1)]
    if number is not None:
        kept, rest = ".".join(parts[max(number - 1, 0) : number + 1]), parts[number + 1 :]
        texts += [f"…{kept}…{end}" for end in [*_ends(rest), ""] if rest]
    return next((text for text in [*texts, *_cuts(name)] if width(text) <= room), "…")


def _ends(parts: Sequence[str]) -> list[str]:
    """Ends of a dotted name, from the longest, in whole parts and then in letters."""
    wholes = [".".join(parts[start:]) for start in range(1, len(parts))]
    return [*wholes, *(parts[-1][start:] for start in range(1, len(parts[-1])))] if parts else []


def _cuts(name: str) -> list[str]:
    return [f"…{name[start:]}" for start in range(1, len(name))]


def _rows(table: Table) -> list[str]:
    """Layers nearest the input first; one that is gone stays where it was."""
    depths = dict(zip(table.get("layer", ()), table.get("depth", ()), strict=True))
    return sorted(depths, key=lambda name: depths[name])


def _grid(table: Table, values: Array, steps: Sequence[int], layers: Sequence[str]) -> Array:
    columns = {step: place for place, step in enumerate(steps)}
    rows = {name: place for place, name in enumerate(layers)}
    grid = np.full((len(layers), len(steps)), math.nan)
    where = (
        [rows[name] for name in table["layer"]],
        [columns[step] for step in table["step"]],
    )
    grid[where] = values
    return grid


def _relative(table: Table, values: Array) -> Array:
    """Each value over the median of its step, of one optimizer where there are several."""
    groups: dict[Any, list[int]] = {}
    optimizers = table.get("optimizer", [None] * len(values))
    for place, group in enumerate(zip(table["step"], optimizers, strict=True)):
        groups.setdefault(group, []).append(place)
    medians = np.full(len(values), math.nan)
    for places in groups.values():
        known = values[places]
        known = known[np.isfinite(known) & (known > 0)]
        medians[places] = np.median(known) if len(known) else 1.0
    ratios: Array = values / medians
    return ratios


def _scale(column: str, grid: Array) -> _Scale:
    """The column's own scale; for one without, whole decades around what there is."""
    known = grid[np.isfinite(grid) & (grid > 0)]
    if column in _SCALES or not len(known):
        return _SCALES.get(column, _ABOUT_ONE)
    low, high = math.floor(math.log10(known.min())), math.ceil(math.log10(known.max()))
    return _Scale(10.0**low, 10.0 ** max(high, low + 1))


def _fill(axes: Axes, grid: Array, steps: Sequence[int], scale: _Scale, label: str) -> None:
    shown = np.ma.masked_invalid(grid.clip(scale.low, scale.high))  # a logarithm loses zero
    extend = "both" if scale.norm == "log" else "neither"
    rows = [place + 0.5 for place in range(len(grid) + 1)]
    looks: dict[str, Any] = {"norm": scale.norm, "cmap": scale.colors, "rasterized": True}
    mesh = axes.pcolormesh(_borders(steps), rows, shown, vmin=scale.low, vmax=scale.high, **looks)
    axes.figure.colorbar(mesh, ax=axes, label=label, extend=extend)


def _borders(steps: Sequence[int]) -> list[float]:
    """Borders half way between steps; the outer ones as far out as the inner ones are in."""
    inner = [(a + b) / 2 for a, b in pairwise(steps)]
    first = steps[0] - (inner[0] - steps[0] if inner else 0.5)
    last = steps[-1] + (steps[-1] - inner[-1] if inner else 0.5)
    return [first, *inner, last]


def _name_rows(axes: Axes, layers: Sequence[str]) -> None:
    """Name as many layers as there is room for, by the ends of their names."""
    ticks = range(0, len(layers), max(1, math.ceil(len(layers) / _MOST_LABELS)))
    place, parent = axes.get_subplotspec(), axes.figure
    columns = 1 if place is None else place.get_gridspec().ncols
    # panels beside each other name their rows once
    room = _LABEL_SHARE * 72 * parent.bbox.width / parent.dpi / math.sqrt(columns)
    shown = [shorten_name(layers[tick], room, _width_in_points) for tick in ticks]
    axes.set_yticks([tick + 1 for tick in ticks], shown, fontsize=_LABEL_POINTS)


def _width_in_points(text: str) -> float:
    fonts = _extras.matplotlib_text()
    prop = fonts.FontProperties(size=_LABEL_POINTS)
    width, _, _ = fonts.text_to_path.get_text_width_height_descent(text, prop, ismath=False)
    return float(width)
