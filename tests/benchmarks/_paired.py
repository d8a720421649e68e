"""Two or more ways of doing one thing, timed in turn in one process, with the spread of the ratio.

Each round runs every variant once, in an order that rotates, and divides by the base of the same
round; so what slows the machine for a while slows both sides. The base runs twice a round: its
second run against its first is the A/A line, which says what a ratio of 1 looks like here.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy.stats import binom

BASE, AGAIN = "bare", "bare again (A/A)"


@dataclass(frozen=True)
class Ratio:
    """Time of a variant over that of the base, over the rounds."""

    name: str
    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.median:.3f} | {self.lower_quartile:.3f} to "
            f"{self.upper_quartile:.3f} | {self.low:.3f} to {self.high:.3f} | {self.rounds} |"
        )


HEADER = (
    "| variant | median ratio | quartiles | 95 % interval of the median | rounds |\n"
    "| --- | ---: | ---: | ---: | ---: |"
)


def summarise(name: str, ratios: list[float]) -> Ratio:
    """Return median, quartiles and the order-statistic interval of the median."""
    ordered = sorted(ratios)
    first, _, third = statistics.quantiles(ordered, n=4, method="inclusive")
    rank = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    low, high = ordered[rank], ordered[-1 - rank]
    return Ratio(name, statistics.median(ordered), first, third, low, high, len(ordered))


def compare(
    base: Callable[[], None],
    variants: Mapping[str, Callable[[], None]],
    *,
    precision: float,
    min_rounds: int = 9,
    max_seconds: float = 600.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Ratio]:
    """Time variants against a base until the A/A interval is narrower than a precision.

    Args:
        base: What the others are compared with.
        variants: What is compared, by name.
        precision: Half-width that the interval of the A/A median must reach.
        min_rounds: Rounds that are run whatever the interval.
        max_seconds: After this no round is begun.
        clock: What tells the time.

    Returns:
        The A/A line, then the variants.
    """
    runs = {BASE: base, AGAIN: base, **variants}
    for run in {id(run): run for run in runs.values()}.values():
        run()  # warm up: imports, caches, memory
    names, ratios = list(runs), {name: [] for name in runs if name != BASE}
    begun, rounds = time.perf_counter(), 0
    while True:
        turn = rounds % len(names)
        seconds = {name: _time(runs[name], clock) for name in names[turn:] + names[:turn]}
        for name, values in ratios.items():
            values.append(seconds[name] / seconds[BASE])
        rounds += 1
        if rounds < max(min_rounds, 2):
            continue
        line = summarise(AGAIN, ratios[AGAIN])
        narrow = max(line.high - 1, 1 - line.low) < precision
        if narrow or time.perf_counter() - begun > max_seconds:
            return [summarise(name, values) for name, values in ratios.items()]


def _time(run: Callable[[], None], clock: Callable[[], float]) -> float:
    gc.collect()
    begun = clock()
    run()
    return clock() - begun
