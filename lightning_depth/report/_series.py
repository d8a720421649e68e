"""Stored histories of several seeds brought onto one axis, ready to be drawn.

Numbers that were stored as null (not finite) are NaN here and never fill a gap: a mean over seeds
is the mean of those that have a number at that place.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Band",
    "Grid",
    "band",
    "curves",
    "gradients",
    "has_numbers",
    "profile",
    "separability",
    "shrink_per_layer",
]

Array = NDArray[np.float64]
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Band:
    """One line over an axis: mean over the seeds, and the lowest and highest seed."""

    x: Array
    mean: Array
    low: Array
    high: Array
    num_seeds: int

    @property
    def is_empty(self) -> bool:
        """Return whether there is no finite number to draw."""
        return not bool(np.isfinite(self.mean).any())

    def end(self) -> tuple[float, float, float]:
        """Return mean, lowest and highest at the last place that has a number."""
        last = np.flatnonzero(np.isfinite(self.mean))[-1]
        return float(self.mean[last]), float(self.low[last]), float(self.high[last])

    def edges(self) -> tuple[Array, Array]:
        """Return the lowest and the highest seed, for the limits of an axis."""
        return self.low, self.high


@dataclass(frozen=True)
class Grid:
    """One number per depth (rows) and step (columns), geometric mean over the seeds."""

    steps: Array
    depths: Array
    values: Array
    num_seeds: int

    @property
    def positive(self) -> Array:
        """Return the values a logarithm can show."""
        return self.values[np.isfinite(self.values) & (self.values > 0)]


def _numbers(values: Iterable[Any]) -> Array:
    return np.array(
        [np.nan if not isinstance(value, int | float) else value for value in values], dtype=float
    )


def band(lines: Sequence[tuple[Iterable[Any], Iterable[Any]]]) -> Band:
    """Return the band of several (x, y) lines, one a seed, on the union of their x."""
    seeds = [dict(zip(_numbers(x).tolist(), _numbers(y).tolist(), strict=False)) for x, y in lines]
    x = np.array(sorted({place for seed in seeds for place in seed if np.isfinite(place)}))
    rows = np.full((len(seeds), len(x)), np.nan)
    for row, seed in zip(rows, seeds, strict=True):
        row[:] = [seed.get(place, np.nan) for place in x]
    rows[~np.isfinite(rows)] = np.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"All-NaN|Mean of empty", RuntimeWarning)
        low, mean, high = (
            reduce(rows, axis=0) if len(rows) else np.full(len(x), np.nan)
            for reduce in (np.nanmin, np.nanmean, np.nanmax)
        )
    num_seeds = sum(bool(np.isfinite(row).any()) for row in rows)
    return Band(x, mean, low, high, num_seeds)


def curves(trials: Sequence[Mapping[str, Any]], column: str) -> Band:
    """Return an error curve over epochs, counted from 0, for the trials of one arm."""
    stored = [trial.get("curves") or {} for trial in trials]
    return band([(curve.get("epoch", ()), curve.get(column, ())) for curve in stored])


def _histories(
    trials: Sequence[Mapping[str, Any]], callback: str, table: str = "history"
) -> list[Columns]:
    stored = [(trial.get("callbacks") or {}).get(callback) or {} for trial in trials]
    return [entry[table] for entry in stored if entry.get(table)]


def has_numbers(trials: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Return whether the trials of one arm stored a finite number of a gradient quantity."""
    histories = _histories(trials, "GradientFlowMonitor")
    return any(np.isfinite(_numbers(history.get(column, ()))).any() for history in histories)


def shrink_per_layer(trials: Sequence[Mapping[str, Any]]) -> float:
    """Return by which factor the judged quantity falls with every layer toward the input.

    It is the median over the steps of all trials; not-a-number where none was stored.
    """
    totals = _histories(trials, "GradientFlowMonitor", "totals")
    factors = _numbers(x for table in totals for x in table.get("shrink_per_layer", ()))
    factors = factors[np.isfinite(factors)]
    return float(np.median(factors)) if factors.size else float("nan")


def gradients(trials: Sequence[Mapping[str, Any]], column: str) -> Grid | None:
    """Return a gradient quantity by depth and step for the trials of one arm, None without any."""
    cells: dict[tuple[float, float], list[float]] = {}
    histories = [
        history for history in _histories(trials, "GradientFlowMonitor") if column in history
    ]
    for history in histories:
        places = zip(history["depth"], history["step"], strict=False)
        for place, value in zip(places, _numbers(history[column]).tolist(), strict=False):
            cells.setdefault(place, []).append(value)
    if not cells:
        return None
    depths = np.array(sorted({depth for depth, _ in cells}))
    steps = np.array(sorted({step for _, step in cells}))
    values = np.array([[_geometric(cells.get((d, s), [])) for s in steps] for d in depths])
    return Grid(steps, depths, values, len(histories))


def _geometric(values: list[float]) -> float:
    """Return the geometric mean, 0 where a seed has a gradient of exactly 0, NaN where none is."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return float("nan")
    return float(np.exp(np.mean(np.log(finite)))) if min(finite) > 0 else 0.0


def separability(trials: Sequence[Mapping[str, Any]]) -> list[Columns]:
    """Return the separability histories of the trials that have one."""
    return _histories(trials, "LayerSeparabilityProbe")


def profile(trials: Sequence[Mapping[str, Any]], measure: str, epoch: str) -> Band:
    """Return a measure of separability by depth in the ``"first"`` or ``"last"`` stored epoch."""
    lines = []
    for history in separability(trials):
        rows = list(zip(history["epoch"], history["depth"], history.get(measure, ()), strict=False))
        if rows:
            wanted = (
                min(row[0] for row in rows) if epoch == "first" else max(row[0] for row in rows)
            )
            kept = [row for row in rows if row[0] == wanted]
            lines.append(([row[1] for row in kept], [row[2] for row in kept]))
    return band(lines)
