"""An empty panel to draw on, and the way from a matplotlib figure to SVG inside a page.

Colors of ink, lines and arms become CSS variables, so that the page decides what they are on a
light screen, on a dark one and on paper. Text stays text, set in the page's own font.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_depth import _extras

__all__ = ["ARMS", "EMPTY", "INK", "MUTED", "RULE", "embed", "panel", "symbol", "to_svg"]

INK, MUTED, RULE, EMPTY = "#1f2328", "#57606a", "#d0d7de", "#eceff2"
ARMS = ("#0072b2", "#c44e00", "#008f68", "#b5488f", "#8a6d00", "#4b9cd3", "#5a5a5a")
"""One color an arm, in turn; dash and marker change with it, so color is never alone."""
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", EMPTY: "--empty"} | {
    color: f"--arm-{number}" for number, color in enumerate(ARMS)
}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning-depth",  # the same study gives the same file
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def panel(
    width: float,
    height: float,
    *,
    left: float = 52,
    right: float = 12,
    bottom: float = 40,
    top: float = 8,
) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes; lengths are points, which the page shows as pixels.

    The user's own matplotlib settings are out of the way inside and untouched outside.
    """
    matplotlib = _extras.matplotlib()
    figure_module = _extras.matplotlib_figure()
    defaults = {
        name: value
        for name, value in matplotlib.rcParamsDefault.items()
        if not name.startswith(("backend", "interactive", "toolbar", "webagg"))
    }
    with matplotlib.rc_context(defaults | SETTINGS):
        figure = figure_module.Figure(figsize=(width / 72, height / 72))
        box = (left / width, bottom / height, 1 - (left + right) / width)
        yield figure, figure.add_axes((*box, 1 - (bottom + top) / height))


def to_svg(figure: Any) -> str:
    """Return a figure as an ``<svg>`` element that scales with the page and obeys its colors."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", dpi=200, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.strip()


def embed(svg: str, key: str, label: str) -> str:
    """Return the element with ids that are its own on the page and a text for those who do not see.

    Args:
        svg: What ``to_svg`` returned.
        key: Prefix of the element's ids; letters and digits.
        label: The text alternative; escaped here.
    """
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def symbol(svg: str, key: str) -> str:
    """Return the picture as a symbol of that id, to be shown by ``<use>`` wherever it is needed."""
    svg = embed(svg, key, "")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    inner = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return f'<symbol id="{key}" {box.group()}>{inner}</symbol>'
