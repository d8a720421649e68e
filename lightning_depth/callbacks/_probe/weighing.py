"""How sure the differences between layers are: what the verdict on a pass rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_depth.callbacks._probe.measures import jackknife, probe_hits
from lightning_depth.callbacks._probe.passes import FinishedPass
from lightning_depth.callbacks._probe.results import picture, sample_of, sums_of
from lightning_depth.callbacks._probe.verdicts import Evidence
from lightning_depth.functional.law import separation_gain

__all__ = ["weigh"]


def weigh(
    finished: FinishedPass,
    rows: Mapping[str, Sequence[Any]],
    class_pairs: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """Return what the verdict on a pass and its picture need: ``evidence``, ``moves``, ``panels``.

    Args:
        finished: The pass.
        rows: Columns of the pass, by layer.
        class_pairs: Of the first of them the classes are shown.
    """
    names, classes = rows["layer"], sorted(finished.counts)
    logs = {name: jackknife(sample_of(finished, name, classes)) for name in names}
    probes = rows.get("linear_probe", [math.nan] * len(names))
    moves = {"fisher": _fisher_move(*(logs[names[place]]["fisher"] for place in (0, -1)))}
    if "linear_probe" in rows:
        moves["linear_probe"] = _probe_move(finished, [names[0], names[-1]], classes)
    return {
        "evidence": {
            name: Evidence(logs[name], probe) for name, probe in zip(names, probes, strict=True)
        },
        "moves": moves,
        "panels": picture(finished, names, class_pairs),
    }


def _fisher_move(first: Sequence[float], last: Sequence[float]) -> float:
    """Standard error of the change of the logarithm from the first layer to the last."""
    return separation_gain(first[1:], last[1:], 0.0, (first[0], last[0])).error


def _probe_move(finished: FinishedPass, names: Sequence[str], classes: list[int]) -> float:
    """Standard error of the change of the accuracy, the same samples tested at both layers."""
    hits = []
    for name in names:
        sums = sums_of(finished, name, classes)
        scatter = None if sums is None else sums.scatter
        hits.append(probe_hits(sample_of(finished, name, classes), scatter).double())
    first, last = hits
    if not len(first) or not len(last):
        return math.nan
    if bool((finished.filled[names[0]] == finished.filled[names[1]]).all()):
        return _error(last - first)
    return math.hypot(_error(first), _error(last))


def _error(values: Tensor) -> float:
    return float(values.std(correction=0) / math.sqrt(len(values)))
