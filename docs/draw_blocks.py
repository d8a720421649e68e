"""Draws the graph of every block for the gallery: ``python docs/draw_blocks.py``.

Each drawing is data: boxes on a grid and arrows between them; an arrow "over" bows above the row,
"under" below it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parent / "_static" / "blocks"
STEP, ROW, WIDTH, HEIGHT, MARGIN = 112, 46, 92, 28, 30
INK, WEIGHT, OTHER, JOIN = "#3b4252", "#cfe3f7", "#eceff4", "#fbe3c0"

Box = tuple[float, float, str]
Drawing = tuple[dict[str, Box], list[tuple[str, ...]]]


def chain(*labels: str, row: float = 0, start: float = 1, name: str = "") -> Drawing:
    """Return boxes in a row with arrows from each to the next."""
    boxes = {f"{name}{i}": (start + i, row, label) for i, label in enumerate(labels)}
    keys = list(boxes)
    return boxes, list(pairwise(keys))


def around(labels: list[str], join: str, last: list[str], shortcut: str = "over") -> Drawing:
    """Return a branch with a way past it, and what follows the join."""
    boxes, arrows = chain("x", *labels, join, *last, "y", start=0)
    arrows.append(("0", str(len(labels) + 1), shortcut))
    return boxes, arrows


def parallel(rows: list[list[str]], join: str) -> Drawing:
    """Return branches side by side over one input."""
    columns = max(map(len, rows))
    middle = (len(rows) - 1) / 2
    boxes: dict[str, Box] = {"x": (0, middle, "x"), "join": (columns + 1, middle, join)}
    arrows: list[tuple[str, ...]] = []
    for number, labels in enumerate(rows):
        parts, inner = chain(*labels, row=number, name=f"r{number}_")
        boxes |= parts
        arrows += [("x", f"r{number}_0"), *inner, (f"r{number}_{len(labels) - 1}", "join")]
    boxes["y"] = (columns + 2, middle, "y")
    return boxes, [*arrows, ("join", "y")]


REVERSIBLE: Drawing = (
    {
        "x1": (0, 0, "x₁"),
        "x2": (0, 1, "x₂"),
        "f": (1, 0.5, "F"),
        "a": (2, 0, "+"),
        "g": (3, 0.5, "G"),
        "b": (4, 1, "+"),
        "y1": (5, 0, "y₁"),
        "y2": (5, 1, "y₂"),
    },
    [
        *(("x1", "a"), ("x2", "f"), ("f", "a"), ("a", "g"), ("g", "b")),
        *(("x2", "b"), ("a", "y1"), ("b", "y2")),
    ],
)
DENSE: Drawing = (
    chain("x", "layer 1", "layer 2", "layer 3", "cat", start=0)[0] | {"y": (5, 0, "y")},
    [
        *(("0", "1"), ("1", "2"), ("2", "3"), ("3", "4"), ("4", "y")),
        *(("0", "2", "over"), ("0", "3", "over"), ("0", "4", "over")),
        *(("1", "3", "under"), ("1", "4", "under"), ("2", "4", "under")),
    ],
)
DRAWINGS: dict[str, Drawing] = {
    "plain": chain("x", "conv 3×3", "norm, act", "conv 3×3", "norm", "act", "y", start=0),
    "residual": around(["conv 3×3", "norm, act", "conv 3×3", "norm"], "+", ["act"]),
    "bottleneck": around(["1×1, C/4", "3×3, C/4", "1×1, C"], "+", ["act"]),
    "preactivation": around(["norm, act", "conv 3×3", "norm, act", "conv 3×3"], "+", []),
    "preactivation_bottleneck": around(["norm, act", "1×1, C/4", "3×3, C/4", "1×1, C"], "+", []),
    "highway": parallel([["H: conv", "act", "× T"], ["T: conv", "sigmoid"], ["× (1 − T)"]], "+"),
    "crelu": chain("x", "conv, C/2", "norm", "z, −z", "ReLU", "y", start=0),
    "dense": DENSE,
    "maxout": chain("x", "conv, k·C", "norm", "max of k", "y", start=0),
    "separable": chain("x", "3×3 each", "norm, act", "conv 1×1", "norm, act", "y", start=0),
    "inverted_residual": around(["1×1, 6·C", "3×3 each", "1×1, C", "norm"], "+", []),
    "inception": parallel([["1×1"], ["1×1", "3×3"], ["1×1", "3×3"], ["max pool", "1×1"]], "cat"),
    "reversible": REVERSIBLE,
}


def centre(box: Box, top: float) -> tuple[float, float]:
    """Return the middle of a box in pixels."""
    return MARGIN + 20 + box[0] * STEP, top + box[1] * ROW


def half_width(label: str) -> float:
    """Return half of a box's width: inputs, outputs and joins are small."""
    return 16 if len(label) <= 3 else WIDTH / 2


def svg_box(box: Box, top: float) -> str:
    """Return one box: blue where it has weights, orange where paths meet."""
    (x, y), label = centre(box, top), box[2]
    half = half_width(label)
    heavy = any(part in label for part in ("conv", "×1", "×3", "layer", "F", "G"))
    colour = WEIGHT if heavy and "× " not in label else JOIN if label in ("+", "cat") else OTHER
    return (
        f'<rect x="{x - half:.0f}" y="{y - HEIGHT / 2:.0f}" width="{2 * half:.0f}" '
        f'height="{HEIGHT}" rx="6" fill="{colour}" stroke="{INK}"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="{INK}">{label}</text>'
    )


def svg_arrow(arrow: tuple[str, ...], boxes: dict[str, Box], top: float) -> str:
    """Return one arrow, straight or bowed."""
    first, second = boxes[arrow[0]], boxes[arrow[1]]
    (x1, y1), (x2, y2) = centre(first, top), centre(second, top)
    if len(arrow) == 3:
        lift = -1 if arrow[2] == "over" else 1
        bow = HEIGHT / 2 + 8 + 5 * (second[0] - first[0])
        path = (
            f"M{x1:.0f},{y1 + lift * HEIGHT / 2:.0f} C{x1 + 24:.0f},{y1 + lift * 1.6 * bow:.0f} "
            f"{x2 - 24:.0f},{y2 + lift * 1.6 * bow:.0f} {x2:.0f},{y2 + lift * HEIGHT / 2:.0f}"
        )
    else:
        a, b = x1 + half_width(first[2]), x2 - half_width(second[2])
        path = f"M{a:.0f},{y1:.0f} C{a + 18:.0f},{y1:.0f} {b - 18:.0f},{y2:.0f} {b:.0f},{y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#tip)"/>'


def draw(name: str, drawing: Drawing) -> str:
    """Return the drawing of one block as SVG."""
    boxes, arrows = drawing
    rows = max(box[1] for box in boxes.values())
    over = any(arrow[2:] == ("over",) for arrow in arrows)
    under = any(arrow[2:] == ("under",) for arrow in arrows)
    top = 24 + (46 if over else 0)
    height = top + rows * ROW + 24 + (46 if under else 0)
    width = 2 * MARGIN + 40 + max(box[0] for box in boxes.values()) * STEP
    parts = [svg_arrow(arrow, boxes, top) for arrow in arrows]
    parts += [svg_box(box, top) for box in boxes.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img" font-family="sans-serif" font-size="12">'
        f"<title>Graph of the {name} block</title>"
        f'<rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    """Write every drawing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, drawing in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(name, drawing), encoding="utf-8")


if __name__ == "__main__":
    main()
