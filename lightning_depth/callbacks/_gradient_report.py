"""What is said and logged of one measurement of the gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_depth.callbacks._clipping import Clipping
from lightning_depth.callbacks._flow import judge
from lightning_depth.callbacks._scope import Record, Scope
from lightning_depth.callbacks._streaks import Streaks
from lightning_depth.findings import Finding, FindingKind, Severity

__all__ = ["confirm", "scalars_of"]

_FEW = ("norm", "clipped_norm", "shrink_per_layer")
"""What is logged of each of several optimizers, as far as there is room."""
_MOST_SCALARS = 10
_CERTAIN_AT_START = (FindingKind.EXPLODING,)
"""What the first measurement of a run says of the initialisation; a few steps may hide it."""
_DESTRUCTIVE = (FindingKind.EXPLODING, FindingKind.NON_FINITE)
"""They leave networks behind that pass no gradient; that they do so is no news."""


def confirm(streaks: Streaks, scope: Scope, record: Record) -> list[Finding]:
    """Return what has lasted and is not yet told, causes without their consequences.

    Args:
        streaks: What was seen before.
        scope: The optimizer that was measured.
        record: The measurement; what its own step changes is judged with the next one.
    """
    known = scope.counts.updates
    updates = np.array(known) if known is not None else None
    seen = judge(record.flow, updates, scaled=scope.scaler is not None)
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
