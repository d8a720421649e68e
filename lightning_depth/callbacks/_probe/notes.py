"""Why a pass cannot be measured, and what a reader must know of one that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_depth.callbacks._probe.collector import INPUT
from lightning_depth.callbacks._probe.measures import MEASURES
from lightning_depth.callbacks._probe.passes import FinishedPass

__all__ = ["notes_on", "why_unmeasurable"]


def why_unmeasurable(finished: FinishedPass) -> str | None:
    """The sentence that says why a pass cannot be measured, None where it can."""
    if finished.reason is not None:
        return finished.reason
    if not finished.counts:
        return "no validation batch had a label"
    if len(finished.counts) < 2:
        return "all validation samples have the same label"
    if max(finished.counts.values()) < 2:
        return "no two validation samples have the same label; they look like indices"
    if any(name != INPUT and bool(mask.any()) for name, mask in finished.filled.items()):
        return None if finished.moments else _why_sample_too_small(finished)
    if reasons := {why for name, why in finished.dropped.items() if name != INPUT}:
        return f"every watched layer was left out, as {', and '.join(sorted(reasons))}"
    if finished.mismatch:
        rows, labels = finished.mismatch
        return f"the watched layers hand on {rows} rows where the batch has {labels} labels"
    return "the validation step runs none of the watched layers on the labelled samples"


def _why_sample_too_small(finished: FinishedPass) -> str | None:
    classes = len(finished.counts)
    if len(finished.samples.labels) > classes:
        return None
    return (
        f"the sample holds one of each of {classes} classes and two are needed; raise "
        f"`max_samples` to {2 * classes} or more"
    )


def notes_on(finished: FinishedPass, rows: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return what a reader of the rows must know, as sentences by the kind of trouble."""
    notes = {}
    for why in sorted(set(finished.dropped.values())):
        names = [name for name, reason in finished.dropped.items() if reason == why]
        if names := [name for name in names if name != INPUT]:  # pictures of several sizes
            notes[why] = f"left out, as {why}: {_some(names)}"
    unknown = {
        column: [
            layer for layer, value in zip(rows["layer"], values, strict=True) if value != value
        ]
        for column, values in rows.items()
        if column in MEASURES
    }
    suspects = {layer for layers in unknown.values() for layer in layers}
    broken = [
        layer for layer in rows["layer"] if layer in suspects and not _is_finite(finished, layer)
    ]
    if broken:
        notes["finite"] = f"not measured, as their features are not finite: {_some(broken)}"
    if finished.moments and len(finished.samples.labels) <= len(finished.counts):
        missing = [column for column, layers in unknown.items() if set(layers) - set(broken)]
        if missing:
            notes["sample"] = (
                f"not measured: {_some(missing)}, as the sample kept beside the sums holds one of "
                f"each of {len(finished.counts)} classes"
            )
    return notes


def _is_finite(finished: FinishedPass, layer: str) -> bool:
    rows = finished.features[layer][finished.filled[layer]]
    return bool(torch.isfinite(rows).all())


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
