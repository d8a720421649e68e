"""One curve over epochs or steps, on an axis that suits its range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curve"]

_WIDE = 100.0
"""Positive values that differ by more than this factor get a logarithmic axis."""


def draw_curve(
    axes: Axes, counts: Sequence[int], values: Sequence[float | None], label: str
) -> None:
    """Draw a curve: whole numbers across, from zero up, or logarithmic where the range is wide.

    Args:
        axes: Where to draw.
        counts: Epochs or steps.
        values: The curve; None leaves a gap.
        label: Name of the curve.
    """
    known = [value for value in values if value is not None]
    axes.plot(
        counts, [float("nan") if value is None else value for value in values], "o-", label=label
    )
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True, min_n_ticks=1)
    if known and min(known) > 0 and max(known) / min(known) > _WIDE:
        axes.set_yscale("log")
    elif known and min(known) >= 0:
        axes.set_ylim(bottom=0)
