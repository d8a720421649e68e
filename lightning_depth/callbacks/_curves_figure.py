"""Curves over epochs or steps, on an axis that suits its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves"]

_WIDE = 100.0
"""Positive values that differ by more than this factor get a logarithmic axis."""


def draw_curves(
    axes: Axes, counts: Sequence[int], curves: Mapping[str, Sequence[float | None]]
) -> None:
    """Draw several curves on one axis that suits the range of all.

    It begins at zero where the lowest value is at most half of the highest, and is logarithmic
    where they lie far apart.

    Args:
        axes: Where to draw.
        counts: Epochs or steps.
        curves: The curves by their names; None leaves a gap.
    """
    for label, values in curves.items():
        gaps = [float("nan") if value is None else value for value in values]
        axes.plot(counts, gaps, "o-", label=label)
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True, min_n_ticks=1)
    known = [value for values in curves.values() for value in values if value is not None]
    if known and min(known) > 0 and max(known) / min(known) > _WIDE:
        axes.set_yscale("log")
    elif known and 0 <= min(known) <= max(known) / 2:
        axes.set_ylim(bottom=0)
