"""What a pass says, in words that are no surer than its samples allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_depth.callbacks._probe.collector import INPUT

__all__ = ["describe_pass"]

WORDS = {"fisher": "Fisher ratio", "linear_probe": "linear probe's accuracy"}
MARGIN = 1.96  # standard errors on either side of an interval of 95 %


def describe_pass(
    rows: Mapping[str, Sequence[Any]],
    law: Mapping[str, float],
    standing: Mapping[str, Any],
    moves: Mapping[str, float],
) -> str:
    """Return how separability changes from the first layer to the last.

    Args:
        rows: Columns of one pass, by layer.
        law: The law of that pass; told only where it is stated.
        standing: How the last layer stands against chance.
        moves: Standard error of the change of each measure, of the logarithm of the Fisher ratio.
    """
    told = [
        f"the {words} {_moves(name, rows[name], moves.get(name, math.nan))}"
        for name, words in WORDS.items()
        if name in rows and all(math.isfinite(rows[name][place]) for place in (0, -1))
    ]
    first = "the input" if rows["layer"][0] == INPUT else str(rows["layer"][0])
    last = rows["layer"][-1]
    of = "positions" if "position" in rows.get("pool", ()) else "samples"
    where = f"On {max(rows['num_samples'])} validation {of}"
    if told:
        text = f"{where}, from {first} to {last}, {' and '.join(told)}."
    else:
        text = f"{where} {len(rows['layer'])} layers were measured."
    return " ".join(part for part in (text, _of_chance(last, standing), _of_law(law)) if part)


def _moves(name: str, values: Sequence[float], error: float) -> str:
    """A verb where a change is beyond chance with 95 % confidence, else how far it may be."""
    first, last = f"{values[0]:.2g}", f"{values[-1]:.2g}"
    if first == last:
        return f"stays at {first}"
    change, spread = _CHANGES[name](values[0], values[-1], MARGIN * error)
    if abs(change) > MARGIN * error:
        return f"{'rises' if change > 0 else 'falls'} from {first} to {last}"
    if math.isnan(error):
        return f"is {first} at first and {last} at last"
    return f"stays at {last} ± {spread:.1g}"


def _difference(first: float, last: float, margin: float) -> tuple[float, float]:
    return last - first, margin


def _ratio(first: float, last: float, margin: float) -> tuple[float, float]:
    change = math.log(last / first) if first > 0 and last > 0 else math.nan
    return change, last * math.expm1(margin)


_CHANGES: dict[str, Callable[[float, float, float], tuple[float, float]]] = {
    "fisher": _ratio,
    "linear_probe": _difference,
}


def _of_chance(last: str, standing: Mapping[str, Any]) -> str:
    if standing.get("separates", True):
        return ""
    chance = standing["chance"]
    known = "" if math.isnan(chance) else f" (an accuracy of {chance:.2g})"
    return f"At {last} the classes are not separated better than by chance{known}."


def _of_law(law: Mapping[str, float]) -> str:
    if not law.get("stated"):
        return ""
    falls = [100 * (1 - law[end]) for end in ("decay_ratio", "high", "low")]
    return (
        f"Each layer lowers the separation by {falls[0]:.0f} % (95 % interval {falls[1]:.0f} to "
        f"{falls[2]:.0f} %, R² {law['r_squared']:.2f})."
    )
