"""Search over whole numbers for the width at which a growing cost passes a target.

Costs of networks are near to quadratic in the width, so a parabola through the last known points
finds the place in a few builds; the bracket around it is then closed on the integers, so that the
answer is exact whatever the shape of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["Bracket", "WidthSearch"]

_LARGEST = 2**24
_GAP = 256  # so many neighbours that cannot be built end the search upwards
_STRIDE = 8  # a step upwards multiplies the width by at most this


@dataclass(frozen=True)
class Bracket:
    """Neighbouring widths on either side of a target.

    Args:
        below: The largest width before the target is passed; none if the smallest passes it.
        above: The smallest width that passes it; none if no width does.
    """

    below: int | None
    above: int | None


@dataclass
class WidthSearch:
    """Widths that were tried, and what they cost.

    Args:
        measure: Cost of a width; none where the width cannot be built.
        step: Widths are multiples of it.
        costs: What is known so far.
    """

    measure: Callable[[int], int | None]
    step: int = 1
    costs: dict[int, int | None] = field(default_factory=dict)

    def known(self) -> list[tuple[int, int]]:
        """Return the widths that could be built with their costs, in order of width."""
        return sorted((width, cost) for width, cost in self.costs.items() if cost is not None)

    def bracket(self, target: float, *, strict: bool) -> Bracket:
        """Return the two neighbouring widths between which the target is passed.

        Args:
            target: The cost to look for.
            strict: Whether a cost equal to the target has passed it.

        Returns:
            The neighbours; both none where nothing can be built.
        """
        first = self._smallest()
        if first is None:
            return Bracket(None, None)
        if self._passes(first, target, strict):
            return Bracket(None, first)
        low, high = first, self._climb(first, target, strict)
        if high is None:
            return Bracket(self.known()[-1][0], None)
        low = max(width for width, _ in self.known() if not self._passes(width, target, strict))
        slow_steps = 0
        while (width := self._next_between(low, high, target, slow_steps >= 2)) is not None:
            size = high - low
            low, high = (low, width) if self._passes(width, target, strict) else (width, high)
            slow_steps = slow_steps % 2 + 1 if 2 * (high - low) > size else 0
        return Bracket(low, high)

    def _cost(self, width: int) -> int | None:
        if width not in self.costs:
            self.costs[width] = self.measure(width)
        return self.costs[width]

    def _passes(self, width: int, target: float, strict: bool) -> bool:
        cost = self._cost(width)
        assert cost is not None
        return cost >= target if strict else cost > target

    def _smallest(self) -> int | None:
        widths = range(self.step, (4 * _GAP + 1) * self.step, self.step)
        return next((width for width in widths if self._cost(width) is not None), None)

    def _climb(self, low: int, target: float, strict: bool) -> int | None:
        """Return some width that passes the target, or none if the widths end before it."""
        guess = low * _STRIDE
        while True:
            width = self._near(guess, low, _LARGEST + 1, reach=_GAP * self.step)
            if width is None:
                if guess - low <= _GAP * self.step:
                    return None
                guess = (low + guess) // 2
                continue
            if self._passes(width, target, strict):
                return width
            low = width
            guess = min(self._estimate(target, above=low) + self.step, low * _STRIDE)

    def _next_between(self, low: int, high: int, target: float, halve: bool) -> int | None:
        guess = (low + high) // 2 if halve else self._estimate(target, above=low)
        return self._near(guess, low, high, reach=high - low)

    def _near(self, guess: int, low: int, high: int, reach: int) -> int | None:
        """Return the width nearest to a guess, strictly between two, that can be built."""
        centre = min(max(guess - guess % self.step, low + self.step), high - 1)
        for width in _outwards(centre - centre % self.step, reach, self.step):
            if low < width < high and self._cost(width) is not None:
                return width
        return None

    def _estimate(self, target: float, above: int) -> int:
        """Return where a parabola through the known points nearest to the target meets it."""
        points = sorted(self.known(), key=lambda point: abs(point[1] - target))[:3]
        (x1, y1), (x2, y2) = points[0], points[1]
        slope = (y2 - y1) / (x2 - x1)
        bend = 0.0
        if len(points) == 3:
            x3, y3 = points[2]
            bend = ((y3 - y1) / (x3 - x1) - slope) / (x3 - x2)
        # y1 + slope (x - x1) + bend (x - x1)(x - x2) = target, with u = x - x1
        linear, rest = slope - bend * (x2 - x1), y1 - target
        inside = linear * linear - 4 * bend * rest
        if linear <= 0 or inside < 0:
            return above * _STRIDE
        return x1 + math.floor(-2 * rest / (linear + math.sqrt(inside)))


def _outwards(centre: int, reach: int, step: int) -> Iterator[int]:
    yield centre
    for distance in range(step, reach + step, step):
        yield centre + distance
        yield centre - distance
