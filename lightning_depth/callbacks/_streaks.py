"""Waiting until something has lasted before it is said."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from lightning_depth.findings import Finding, FindingKind

__all__ = ["Streaks"]


class Streaks:
    """Counts for how many measurements in a row something of one kind was seen.

    What is told is what was seen first: the first layer with a NaN is the one that matters, and
    a step later every layer has one.

    Args:
        patience: Measurements in a row after which it is confirmed.

    Example:
        >>> Streaks(patience=3).confirm("", 0, [])
        []
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._running: dict[str, tuple[int, Finding]] = {}
        self._told: list[str] = []

    def confirm(
        self,
        scope: str,
        step: int,
        seen: Iterable[Finding],
        certain: Collection[FindingKind] = (),
        *,
        least_steps: int = 0,
    ) -> list[Finding]:
        """Take one measurement, and return what has lasted long enough and is not yet told.

        Args:
            scope: What was measured, for instance one of several optimizers.
            step: Step of the measurement.
            seen: What this measurement says.
            certain: Kinds that need not last.
            least_steps: Steps for which it must have lasted, however often it was measured.

        Returns:
            Findings as they were first seen, with the step.
        """
        kinds = {f"{scope}{finding.kind.value}": finding for finding in seen}
        for key in [key for key in self._running if key.startswith(scope) and key not in kinds]:
            del self._running[key]
        for key, finding in kinds.items():
            count, first = self._running.get(key, (0, replace(finding, step=step)))
            if finding.kind is FindingKind.NO_GRADIENT:
                count, first = _same_layers(count, first, replace(finding, step=step))
            self._running[key] = (count + 1, first)
        return self._tell(
            key
            for key, finding in kinds.items()
            if self._has_lasted(key, step, least_steps) or finding.kind in certain
        )

    def forget(self, layers: Collection[str]) -> None:
        """Drop what is running of layers that are gone.

        Args:
            layers: Their names.
        """
        self._running = {
            key: (count, first)
            for key, (count, first) in self._running.items()
            if not set(first.layers) & set(layers)
        }

    def _has_lasted(self, key: str, step: int, least_steps: int) -> bool:
        count, first = self._running[key]
        return count >= self._patience and step - (first.step or 0) >= least_steps

    def has_told(self, scope: str, kinds: Collection[FindingKind]) -> bool:
        """Return whether a finding of one of these kinds was told.

        Args:
            scope: What was measured.
            kinds: The kinds that are asked for.
        """
        return any(f"{scope}{kind.value}" in self._told for kind in kinds)

    def is_running(self, scope: str, kind: FindingKind) -> bool:
        """Return whether something of a kind was seen last time and is not yet told.

        Args:
            scope: What was measured.
            kind: The kind that is asked for.
        """
        key = f"{scope}{kind.value}"
        return key in self._running and key not in self._told

    def unfinished(self, kind: FindingKind) -> list[Finding]:
        """Return what of one kind is still running and too short to have been told.

        Args:
            kind: A kind that needs no patience once the run is over.
        """
        return self._tell(key for key in self._running if key.endswith(kind.value))

    def finish(self, scopes: str) -> list[Finding]:
        """Return what lasted up to the end, twice the patience, but not the steps asked for.

        Args:
            scopes: What the names of the scopes begin with.
        """
        return self._tell(
            key
            for key, (count, _) in self._running.items()
            if key.startswith(scopes) and count >= 2 * self._patience
        )

    def _tell(self, keys: Iterable[str]) -> list[Finding]:
        new = [key for key in keys if key not in self._told]
        self._told += new
        return [self._running[key][1] for key in new]

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        running = {key: [count, first.to_dict()] for key, (count, first) in self._running.items()}
        return {"running": running, "told": list(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        Args:
            state: State of the same kind of object.
        """
        self._running = {
            key: (count, Finding.from_dict(first))
            for key, (count, first) in state["running"].items()
        }
        self._told = list(state["told"])


def _same_layers(count: int, first: Finding, new: Finding) -> tuple[int, Finding]:
    """What began earlier lasts only in the layers of both: branches may take turns."""
    if set(first.layers) <= set(new.layers):
        return count, first
    if set(new.layers) <= set(first.layers):
        return count, replace(new, step=first.step)
    return 0, new
