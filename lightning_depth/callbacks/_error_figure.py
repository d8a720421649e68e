"""Training data in evaluation mode over the epochs, beside validation and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_depth import _extras
from lightning_depth.callbacks._curves_figure import draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["choose_shown", "draw_errors"]

_MOST = 4
"""Quantities that are drawn and told."""


def draw_errors(
    table: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    chances: Mapping[str, float | None],
) -> tuple[Figure, Axes]:
    """Draw one axes a quantity, one above the other.

    Args:
        table: History of the monitor.
        columns: Quantities in it.
        chances: What a network gets that looks at nothing, where known.

    Returns:
        The figure and its uppermost axes.
    """
    shown = choose_shown(columns)
    rows = max(1, len(shown))
    figure = _extras.matplotlib_figure().Figure(figsize=(6, 1.2 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    epochs = table.get("epoch", [])
    for axes, column in zip(grid, shown, strict=False):
        validation = table.get(f"val/{column}", ())
        curves = {"validation": validation} if any(v is not None for v in validation) else {}
        curves["training data, evaluation mode"] = table[column]
        draw_curves(axes, epochs, curves)
        if (chance := chances.get(column)) is not None:
            axes.axhline(chance, color="0.5", linestyle=":", label="chance")
        axes.set_ylabel(column)
    if len(shown):
        grid[0].legend(fontsize="small")
    grid[0].set_title("Training data in evaluation mode")
    grid[-1].set_xlabel("epoch")
    return figure, grid[0]


def choose_shown(columns: Sequence[str]) -> list[str]:
    """Return the few quantities that are drawn and told, the error first.

    Args:
        columns: All of them.
    """
    return sorted(columns, key=_importance)[:_MOST]


def _importance(column: str) -> int:
    words = ("error", "loss", "acc")
    return next((place for place, word in enumerate(words) if word in column), len(words))
