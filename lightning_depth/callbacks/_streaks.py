"""Waiting until something has lasted before it is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lightning_depth.findings import Finding

__all__ = ["Streaks"]


class Streaks:
    """Counts for how many measurements in a row something of one kind was seen.

    Args:
        patience: Measurements in a row after which it is confirmed.

    Example:
        >>> Streaks(patience=3).confirm("", 0, [])
        []
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._running: dict[str, list[int]] = {}
        self._told: list[str] = []

    def confirm(self, scope: str, step: int, seen: Iterable[Finding]) -> list[Finding]:
        """Take one measurement, and return what has lasted long enough and is not yet told.

        Args:
            scope: What was measured, for instance one of several optimizers.
            step: Step of the measurement.
            seen: What this measurement says.

        Returns:
            Findings that carry the step at which they were first seen.
        """
        confirmed = []
        kinds = {f"{scope}{finding.kind.value}": finding for finding in seen}
        for key in [key for key in self._running if key.startswith(scope) and key not in kinds]:
            del self._running[key]
        for key, finding in kinds.items():
            streak = self._running.setdefault(key, [step, 0])
            streak[1] += 1
            if streak[1] >= self._patience and key not in self._told:
                self._told.append(key)
                confirmed.append(replace(finding, step=streak[0]))
        return confirmed

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return {
            "running": {key: list(row) for key, row in self._running.items()},
            "told": list(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._running = {key: list(row) for key, row in state["running"].items()}
        self._told = list(state["told"])
