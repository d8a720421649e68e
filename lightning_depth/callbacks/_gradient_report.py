"""What is said and logged of one measurement of the gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_depth.callbacks._clipping import Clipping
from lightning_depth.callbacks._flow_findings import judge
from lightning_depth.callbacks._missing import judge_presence
from lightning_depth.callbacks._scope import Record, Scope
from lightning_depth.callbacks._streaks import Streaks
from lightning_depth.callbacks._through_time import judge_time
from lightning_depth.findings import Finding, FindingKind, Severity

__all__ = ["TIME", "confirm", "scalars_of"]

TIME = "time/"
"""How the scopes begin under which the gradient through time is waited for."""
_STEPS_THROUGH_TIME = 200
"""Gates open in the first steps of training, so that what is lost through time is given time."""
_UNCHANGED = 0.6
"""Share of its largest fall that a gradient through time keeps where nothing opens."""

_FEW = ("norm", "clipped_norm", "shrink_per_layer")
"""What is logged of each of several optimizers, as far as there is room."""
_MOST_SCALARS = 10
_CERTAIN_AT_START = (FindingKind.EXPLODING,)
"""What the first measurement of a run says of the initialisation; a few steps may hide it."""
_DESTRUCTIVE = (FindingKind.EXPLODING, FindingKind.NON_FINITE)
"""They leave networks behind that pass no gradient; that they do so is no news."""


def confirm(streaks: Streaks, scope: Scope, record: Record, patience: int) -> list[Finding]:
    """Return what has lasted and is not yet told, causes without their consequences.

    What is tiny by design at its start is not counted: it need not last.

    Args:
        streaks: What was seen before.
        scope: The optimizer that was measured.
        record: The measurement; what its own step changes is judged with the next one.
        patience: Measurements in a row after which something counts as found.
    """
    known, presence, reading = scope.counts.updates, scope.counts.presence, record.flow.reading
    fits = known is not None and len(known) == len(reading.watched)
    updates = np.array(known) if fits else None
    presence.add(record.step, reading)
    missing = judge_presence(presence, reading, patience, scope.executed)
    judged = judge(record.flow, updates, scaled=scope.scaler is not None, presence=presence)
    seen = [finding for finding in judged if finding.severity is not Severity.INFO]
    if reading.starts and updates is not None and not np.nan_to_num(updates).any():
        seen = [finding for finding in seen if finding.kind is not FindingKind.VANISHING]
    return [
        *missing,
        *_confirm(streaks, scope, record, seen),
        *_confirm_time(streaks, scope, record),
    ]


def _confirm_time(streaks: Streaks, scope: Scope, record: Record) -> list[Finding]:
    """What is lost through time at first often comes back, and that it does so shows soon."""
    if scope.time is None or not scope.profiles:
        return []
    counts, found = scope.counts, judge_time(scope.profiles, scope.time.modules)
    counts.lost_in_time = max([counts.lost_in_time, *(finding.value for finding in found)])
    lasting = [f for f in found if f.value >= _UNCHANGED * counts.lost_in_time]
    key = f"{TIME}{scope.key}"
    return streaks.confirm(key, record.step, lasting, least_steps=_STEPS_THROUGH_TIME)


def _confirm(streaks: Streaks, scope: Scope, record: Record, seen: list[Finding]) -> list[Finding]:
    if record.skipped and not seen:
        return []  # neither a bad step nor a good one
    if streaks.has_told(scope.key, _DESTRUCTIVE):
        seen = [finding for finding in seen if finding.kind is not FindingKind.VANISHING]
    if streaks.has_told(scope.key, (FindingKind.EXPLODING,)):
        seen = [_as_consequence(finding) for finding in seen]
    certain = _CERTAIN_AT_START if scope.counts.measured == 1 else ()
    return streaks.confirm(scope.key, record.step, seen, certain)


def scalars_of(scope: Scope, record: Record, *, log_layers: bool) -> dict[str, float]:
    """Return what is logged, few totals where there are several optimizers.

    Args:
        scope: The optimizer that was measured.
        record: The measurement; what its own step changes is not yet known, and
            ``update_to_weight`` is that of the measurement before.
        log_layers: Whether the ratio of every layer is logged beside the totals.
    """
    scalars = _totals(scope, record)
    if log_layers:
        reading = record.flow.reading
        ratios = zip(reading.watched.names, reading.grad_to_weight.tolist(), strict=True)
        scalars |= {f"grad_to_weight/{name}": ratio for name, ratio in ratios}
    return scalars


def _totals(scope: Scope, record: Record) -> dict[str, float]:
    reading, trend = record.flow.reading, record.flow.trend
    scalars = {"norm": reading.norm}
    if scope.clipping is not Clipping.NONE:
        known_at_once = scope.clipping is Clipping.BY_NORM
        scalars["clipped_norm"] = (record if known_at_once else scope.counts).clipped_norm
        scalars["clipped_fraction"] = scope.counts.clipped_fraction
    if scope.scaler is not None:
        scalars["skipped"] = float(scope.counts.skipped)
    scalars["nonfinite"] = float(reading.nonfinite)
    scalars["shrink_per_layer"] = trend.shrink_per_layer
    scalars["first_to_last"] = trend.first_to_last
    if scope.watcher.measures_updates:
        scalars["update_to_weight"] = scope.counts.update_to_weight
    if scope.siblings > 1:
        few = _FEW[: max(1, _MOST_SCALARS // scope.siblings)]
        return {f"{key}/{scope.name}": scalars[key] for key in few if key in scalars}
    return scalars


def _as_consequence(finding: Finding) -> Finding:
    """Rank what overflowed after what had exploded before."""
    if finding.kind is not FindingKind.NON_FINITE:
        return finding
    return replace(
        finding, severity=Severity.WARNING, message=f"After it exploded: {finding.message}"
    )
