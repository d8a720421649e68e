"""The picture of activations by depth and step: size, dead and saturated units, rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_depth import _extras
from lightning_depth.callbacks._heatmap import draw_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_activity"]

_PANELS = {
    "rms": "RMS of the output",
    "dead": "dead units (share)",
    "saturated": "saturated outputs (share)",
    "effective_rank": "effective rank",
}


def draw_activity(table: Mapping[str, Sequence[Any]]) -> tuple[Figure, list[Axes]]:
    """Draw one map a quantity, side by side; a quantity that no layer has is left out.

    Args:
        table: The history of an ActivationMonitor.
    """
    shown = [name for name in _PANELS if any(map(math.isfinite, table.get(name, ())))] or ["rms"]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = _extras.matplotlib_figure().Figure(
        figsize=(2.0 + 4.5 * columns, 0.6 + 3.6 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for place, (panel, name) in enumerate(zip(axes, shown, strict=False)):
        draw_map(panel, table, name, title=_PANELS[name], names=place % columns == 0)
        if place + columns < len(shown):
            panel.set_xlabel("")  # said by the map below
    for panel in axes[len(shown) :]:
        panel.remove()
    figure.suptitle("Activations by depth")
    return figure, axes[: len(shown)]
