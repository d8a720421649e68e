"""How callbacks and their figures show themselves in a notebook."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot"]


class Plot(NamedTuple):
    """A figure and its axes, which a notebook shows as a picture."""

    figure: Figure
    axes: Axes

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()
