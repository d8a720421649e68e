"""When a figure may be drawn: drawing is slow, and training must not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["FigurePace"]

_SHARE = 0.01
"""Drawing takes at most this share of the time since the last figure."""


@dataclass
class FigurePace:
    """Lets a figure be drawn at most once an epoch and for a hundredth of the time.

    Args:
        clock: Returns the time in seconds.
        seconds: How long drawing is thought to take: a guess, until one was drawn.
    """

    clock: Callable[[], float] = time.monotonic
    seconds: float = 1.0
    _since: float | None = None
    _epoch: int | None = None

    def start(self) -> None:
        """Begin to count the time, with the first epoch of a run."""
        self._since, self._epoch = self.clock(), None

    def is_due(self, epoch: int) -> bool:
        """Return whether a figure may be drawn now."""
        if self._since is None or epoch == self._epoch:
            return False
        return self.seconds <= _SHARE * (self.clock() - self._since)

    @contextmanager
    def drawing(self, epoch: int) -> Iterator[None]:
        """Measure how long it takes to draw and hand over one figure."""
        begun, first = self.clock(), self._epoch is None
        try:
            yield
        finally:
            self._since, self._epoch = self.clock(), epoch
            taken = self._since - begun
            self.seconds = taken if first else (self.seconds + taken) / 2
