"""Why a pass cannot be measured, and what a reader must know of one that was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lightning_depth.callbacks._probe.collector import INPUT, NOT_RUN
from lightning_depth.callbacks._probe.measures import MEASURES
from lightning_depth.callbacks._probe.passes import FinishedPass

__all__ = ["QUIET", "notes_on", "why_unmeasurable"]

QUIET = ("within", "constant", NOT_RUN)
"""Notes that wait for the end: no fault of how the probe was set up."""

FAR = 10  # times as far as the labels before it goes a label that may be none
VOID = 255  # of pixels without a class, in masks of a byte


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
    if reasons := {why for why in finished.unread.values() if why != NOT_RUN}:
        return f"every watched layer was left out, as {', and '.join(sorted(reasons))}"
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
    return {kind: note for kind, note in _notes_on(finished, rows) if note}


def _notes_on(
    finished: FinishedPass, rows: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, str]]:
    left_out = finished.dropped | finished.unread
    for why in sorted(set(left_out.values())):
        names = [name for name, reason in left_out.items() if reason == why]
        if names := [name for name in names if name != INPUT]:  # pictures of several sizes
            yield why, f"left out, as {why}: {_some(names)}"
    yield "negative", _on_negative(finished)
    yield "far", _on_far(sorted(finished.counts))
    unknown = {
        column: [
            layer for layer, value in zip(rows["layer"], values, strict=True) if value != value
        ]
        for column, values in rows.items()
        if column in MEASURES
    }
    without = {layer for layers in unknown.values() for layer in layers}
    suspects = [layer for layer in rows["layer"] if layer in without]
    broken = [layer for layer in suspects if not _is_finite(finished, layer)]
    if broken:
        yield "finite", f"not measured, as their features are not finite: {_some(broken)}"
    constant = [name for name in suspects if name not in broken and _is_constant(finished, name)]
    if constant:
        yield "constant", f"the features are the same for all samples at {_some(constant)}"
    points = [layer for place, layer in enumerate(rows["layer"]) if _is_points(rows, place)]
    if points:
        yield "within", f"the classes do not vary within themselves at {_some(points)}"
    if finished.moments and len(finished.samples.labels) <= len(finished.counts):
        explained = {*broken, *constant}
        missing = [column for column, layers in unknown.items() if set(layers) - explained]
        if missing:
            classes = len(finished.counts)
            kept = f"the sample kept beside the sums holds one of each of {classes} classes"
            yield "sample", f"not measured: {_some(missing)}, as {kept}"


def _on_negative(finished: FinishedPass) -> str:
    if not finished.negative:
        return ""
    shown = _some([str(label) for label in finished.negative])
    return f"labels below zero ({shown}) are no classes and are left out"


def _on_far(labels: Sequence[int]) -> str:
    """Of a label that lies far beyond the others, which number the classes without many gaps."""
    if len(labels) < 3:
        return ""
    *others, last = labels
    dense = 2 * len(others) > others[-1] + 1
    if not dense or not (last >= FAR * (others[-1] + 1) or VOID == last > others[-1] + 1):
        return ""
    return (
        f"the label {last} counts as a class, though the others end at {others[-1]}; if it marks "
        f"what has no class, leave it out by `ignore_index={last}`"
    )


def _is_points(rows: Mapping[str, Sequence[Any]], place: int) -> bool:
    """Whether nothing is left of the classes' own spread, as the measures of it say."""
    ends = {"separation": 0.0, "collapse": 0.0, "fisher": math.inf}
    return any(name in rows and rows[name][place] == end for name, end in ends.items())


def _is_constant(finished: FinishedPass, layer: str) -> bool:
    rows = finished.features[layer][finished.filled[layer]]
    return torch.allclose(rows, rows[:1], rtol=1e-6, atol=0)


def _is_finite(finished: FinishedPass, layer: str) -> bool:
    rows = finished.features[layer][finished.filled[layer]]
    return bool(torch.isfinite(rows).all())


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
