"""How callbacks and their figures show themselves at a prompt and in a notebook."""

from __future__ import annotations

import base64
import functools
import inspect
import io
import reprlib
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_depth import _extras
from lightning_depth.errors import MisuseError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "Shown"]

_PRIVATE = {"prefix": "_prefix", "on_finding": "_on_finding"}
"""Options that the base keeps under another name."""


class Plot(NamedTuple):
    """A figure and its axes, which a notebook shows as a picture."""

    figure: Figure
    axes: Axes

    def _repr_png_(self) -> bytes:
        """Figures that are made without pyplot are shown by nobody else."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()


class Shown:
    """Base of what has findings, a history and a plot: it says in one line what it is and saw."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have ``plot`` return a pair that shows itself, whatever pair the class returns."""
        super().__init_subclass__(**kwargs)
        if "plot" in vars(cls):
            cls.plot = _as_plot(vars(cls)["plot"])  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        """Return the class, the options that are not the defaults, and what there is to see."""
        return f"{self._as_written()}: {_state(self)}"

    def _as_written(self) -> str:
        """Return the call that makes such an object, without the defaults."""
        parameters = list(inspect.signature(type(self)).parameters.values())
        given = [
            f"{parameter.name}={_in_a_line(value)}"
            for parameter in parameters
            if not _same(value := self._option(parameter), parameter.default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_html_(self) -> str:
        """Return the same with the findings and the figure; every word is escaped."""
        this: Any = self
        parts = [f"<code>{escape(repr(self))}</code>"]
        try:
            findings = this.findings
        except MisuseError:
            return parts[0]
        parts += [f"<p>{escape(summary)}</p>" for summary in [this._summary()] if summary]
        parts += [finding._repr_html_() for finding in findings]
        return "\n".join([*parts, _picture(self)])

    def _option(self, parameter: inspect.Parameter) -> Any:
        """Return an option as it was given, its default where it is not kept."""
        name = _PRIVATE.get(parameter.name, parameter.name)
        return vars(self).get(name, parameter.default)


def _state(shown: Any) -> str:
    try:
        findings = len(shown.findings)
    except MisuseError:
        return "not run yet"
    return f"{_count(findings, 'finding')}, {_count(len(shown._history), 'measurement')}"


def _picture(shown: Any) -> str:
    """Return the figure as an element, nothing where there is none to draw."""
    if not _extras.available("matplotlib"):
        return ""
    try:
        png = shown.plot()._repr_png_()
    except MisuseError:
        return ""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _as_plot(draw: Callable[..., tuple[Figure, Axes]]) -> Callable[..., Plot]:
    @functools.wraps(draw)
    def plot(*args: Any, **kwargs: Any) -> Plot:
        return Plot(*draw(*args, **kwargs))

    return plot


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value == default)
    except (RuntimeError, ValueError, TypeError):  # arrays and tensors compare by element
        return False


def _in_a_line(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
