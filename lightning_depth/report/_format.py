"""Numbers as people read them: percent, counts, durations; what was not measured is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TypeGuard

__all__ = [
    "MISSING",
    "count",
    "duration",
    "is_number",
    "join",
    "moment",
    "percent",
    "scientific",
    "short_count",
    "signed",
]

MISSING = "–"


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a stored value is a finite number; files hold null for the rest."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as percent, or a dash."""
    if not is_number(value):
        return MISSING
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%".replace("-", "−")


def count(value: float | None) -> str:
    """Return a whole number with thousands separated, or a dash."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def short_count(value: float | None) -> str:
    """Return a large number with three digits and a unit prefix (``40.8 M``), or a dash."""
    if not is_number(value):
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g}"


def scientific(value: float | None) -> str:
    """Return a number of any size with two significant digits, or a dash."""
    if not is_number(value):
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{_superscript(int(exponent))}".replace("-", "−")


def signed(value: float | None) -> str:
    """Return a difference with its sign and three significant digits, or a dash."""
    if not is_number(value):
        return MISSING
    digits = 1 if abs(value) >= 9.95 else 2
    text = f"{value:+.{digits}f}" if abs(value) >= 0.095 or value == 0 else f"{value:+.2g}"
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it, or a dash."""
    if not is_number(seconds):
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.{2 if seconds < 0.0995 else 3}g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(stamp: object) -> str:
    """Return an ISO time stamp to the minute; anything else is returned as its text."""
    try:
        return datetime.fromisoformat(str(stamp)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(stamp)


def join(parts: Sequence[str], separator: str = ", ", last: str = " and ") -> str:
    """Return parts as one enumeration: ``a, b and c``."""
    return last.join([separator.join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
