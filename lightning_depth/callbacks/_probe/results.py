"""What a finished pass says, in plain containers: rows by layer, the law, pairs, the picture.

Letters: N samples, C classes, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_depth.callbacks._probe.collector import INPUT
from lightning_depth.callbacks._probe.measures import (
    LayerSample,
    LayerSums,
    Measure,
    chance_of,
    is_lower_than_by_chance,
    measure_sample,
    measure_sums,
    pairs_of,
    probe_hits,
    spread_shares,
)
from lightning_depth.callbacks._probe.moments import scatter_of
from lightning_depth.callbacks._probe.notes import notes_on
from lightning_depth.callbacks._probe.passes import FinishedPass
from lightning_depth.functional.law import fit_separation_law
from lightning_depth.functional.plane import class_plane
from lightning_depth.functional.reservoir import rank_in_class

__all__ = [
    "Question",
    "pair_column",
    "picture",
    "sample_of",
    "scalars_of",
    "summarise",
    "sums_of",
]

PANELS = 8
PANEL_SAMPLES = 400
HARDEST = 3
LAWFUL = 0.8  # R² from which on the law of data separation is said to hold
SURE = 2.33  # standard errors by which the linear probe beats chance, 99 % one-sided


@dataclass(frozen=True)
class Question:
    """What is to be measured on a finished pass."""

    measures: Sequence[Measure]
    class_pairs: Sequence[tuple[int, int]]
    nuisance: bool


def pair_column(pair: tuple[int, int]) -> str:
    """Name of the column that holds the curve of a pair of classes."""
    return f"fisher_{pair[0]}_{pair[1]}"


def summarise(finished: FinishedPass, names: Sequence[str], question: Question) -> dict[str, Any]:
    """Return everything that is kept of a pass.

    Args:
        finished: The pass.
        names: Layers in order of execution, the input first where it was measured.
        question: What to measure.

    Returns:
        Plain containers: ``rows`` (columns by layer), ``notes``, ``standing``, ``law`` and
        ``pairs``. Of a network that does not separate the classes better than chance no law is
        stated and no pair is the hardest.
    """
    classes = sorted(finished.counts)
    rows: dict[str, list[Any]] = {}
    every = range(len(classes))
    last = sample_of(finished, names[-1], classes)
    hardest = _hardest(pairs_of(sums_of(finished, names[-1], classes) or last, every))
    curves: list[list[float]] = []
    for depth, name in enumerate(names, 0 if INPUT in names else 1):
        row, curve = _measure_layer(finished, name, classes, question, hardest)
        curves.append(curve)
        for column, value in ({"layer": name, "depth": depth} | row).items():
            rows.setdefault(column, []).append(value)
    standing = _standing(last, rows)
    pairs = [
        _pair(classes[first], classes[second], [curve[place] for curve in curves], names)
        for place, (first, second) in enumerate(hardest)
    ]
    return {
        "rows": rows,
        "notes": notes_on(finished, rows),
        "standing": standing,
        "law": _law(rows, last, separates=standing["separates"]),
        "pairs": pairs if standing["separates"] else [],
    }


def _standing(last: LayerSample, rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Whether a linear probe of the last layer beats chance, which is what it is."""
    chance, tested = chance_of(last)
    if not tested:
        return {"chance": chance, "separates": False}
    known = rows.get("linear_probe")
    accuracy = known[-1] if known else float(probe_hits(last).double().mean())
    error = math.sqrt(chance * (1 - chance) / tested)
    return {"chance": chance, "separates": accuracy - chance > SURE * error}


def scalars_of(
    result: Mapping[str, Any], measures: Sequence[Measure], *, each_layer: bool
) -> dict[str, float]:
    """Return what is logged of a pass: measures of the last layer, the law, and each layer's."""
    rows, law = result["rows"], result["law"]
    scalars: dict[str, float] = {name: rows[name][-1] for name in measures}
    if law:
        scalars |= {"decay_ratio": law["decay_ratio"], "r_squared": law["r_squared"]}
    if each_layer:
        scalars |= {
            f"{name}/{layer}": value
            for name in measures
            for layer, value in zip(rows["layer"], rows[name], strict=True)
        }
    return scalars


def sample_of(finished: FinishedPass, name: str, classes: list[int]) -> LayerSample:
    features, filled, samples = finished.features[name], finished.filled[name], finished.samples
    if not bool(filled.all()):
        features, samples = features[filled], samples.at(filled)
    labels = torch.searchsorted(torch.tensor(classes), samples.labels)
    places = rank_in_class(samples.keys, labels)
    return LayerSample(features, labels, places, len(classes))


def _measure_layer(
    finished: FinishedPass,
    name: str,
    classes: list[int],
    question: Question,
    hardest: Sequence[tuple[int, int]],
) -> tuple[dict[str, Any], list[float]]:
    """The row of a layer, and Fisher's criterion of the hardest pairs."""
    sample = sample_of(finished, name, classes)
    info = finished.infos[name]
    row: dict[str, Any] = {
        "pool": info.pool,
        "num_samples": len(sample.labels),
        "num_features": sample.features.shape[1],
        "projected_from": info.width if info.width > sample.features.shape[1] else 0,
    }
    source = sums_of(finished, name, classes) or sample
    if isinstance(source, LayerSums):
        row["num_samples"] = int(source.scatter.counts.sum())
        row |= measure_sums(source, sample, question.measures)
    else:
        row |= measure_sample(sample, question.measures)
    asked = [  # of a label that never came there is no curve
        tuple(classes.index(label) for label in pair) if {*pair} <= {*classes} else (0, 0)
        for pair in question.class_pairs
    ]
    values = _values_of(source, [*asked, *hardest])
    row |= dict(zip(map(pair_column, question.class_pairs), values, strict=False))
    if question.nuisance:
        row["label_share"], row["nuisance_share"] = _shares(finished, name, classes)
    return row, values[len(asked) :]


def _values_of(source: LayerSample | LayerSums, pairs: Sequence[tuple[int, ...]]) -> list[float]:
    """Fisher's criterion of some pairs; NaN where the two are the same."""
    classes = sorted({number for pair in pairs for number in pair})
    matrix = pairs_of(source, classes)
    return [float(matrix[classes.index(a), classes.index(b)]) for a, b in pairs]


def sums_of(finished: FinishedPass, name: str, classes: list[int]) -> LayerSums | None:
    """The sums over the whole pass, where it was measured whole."""
    if name not in finished.moments:
        return None
    moments = finished.moments[name]
    labels = torch.tensor([classes.index(label) for label, _ in finished.cells])
    squares = moments.squares.new_zeros(len(classes)).index_add_(0, labels, moments.squares)
    return LayerSums(scatter_of(moments, labels, len(classes)), squares)


def _shares(finished: FinishedPass, name: str, classes: list[int]) -> tuple[float, float]:
    if name in finished.moments:
        moments = finished.moments[name]
        cells = finished.cells
        counts, sums = moments.counts, moments.sums
        offset = sums.sum(0) / counts.sum()
        total = float(moments.squares.sum() - counts.sum() * offset.square().sum())
    else:
        filled = finished.filled[name]
        pairs = torch.stack([finished.samples.labels, finished.samples.nuisance], 1)[filled]
        unique, index = torch.unique(pairs, dim=0, return_inverse=True)
        cells = [(int(label), int(second)) for label, second in unique]
        x = finished.features[name][filled].double()
        x = x - x.mean(0)
        counts = torch.bincount(index, minlength=len(cells)).double()
        sums = x.new_zeros(len(cells), x.shape[1]).index_add_(0, index, x)
        total = float(x.square().sum())
    labels = torch.tensor([classes.index(label) for label, _ in cells])
    return spread_shares(counts, sums, labels, total)


def _law(rows: dict[str, list[Any]], last: LayerSample, *, separates: bool) -> dict[str, float]:
    """The line, and whether it is a law: and not of shuffled labels as well."""
    if "separation" not in rows:
        return {}
    beyond = [place for place, depth in enumerate(rows["depth"]) if depth > 0]
    law = fit_separation_law(
        [rows["depth"][place] for place in beyond], [rows["separation"][place] for place in beyond]
    )
    holds = separates and law.r_squared >= LAWFUL and law.high < 1
    stated = holds and is_lower_than_by_chance(last)  # which costs most
    return {**law._asdict(), "stated": stated}


def _hardest(matrix: Tensor) -> list[tuple[int, int]]:
    """The pairs of classes, by their numbers, that are least apart."""
    upper = torch.ones_like(matrix, dtype=torch.bool).triu(diagonal=1)
    values = torch.where(upper, torch.nan_to_num(matrix, nan=math.inf), math.inf)
    count = min(HARDEST, int(torch.isfinite(values).sum()))
    places = values.flatten().topk(count, largest=False).indices.tolist()
    return [divmod(place, len(matrix)) for place in places]


def _pair(first: int, second: int, curve: list[float], names: Sequence[str]) -> dict[str, Any]:
    """How far apart a pair of classes is at last, and the layer that did most for it."""
    rises = [_rise(before, after) for before, after in pairwise(curve)]
    best = max(range(len(rises)), key=rises.__getitem__) + 1 if rises else 0
    return {"first": first, "second": second, "fisher": curve[-1], "apart_at": names[best]}


def _rise(before: float, after: float) -> float:
    """By how much a criterion rises in its logarithm, which points without spread make infinite."""
    if not before > 0 or not after > 0 or math.isinf(before):
        return -math.inf
    return math.log(after) - math.log(before)


def picture(
    finished: FinishedPass, names: Sequence[str], class_pairs: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return coordinates of some samples in the plane of their classes, for some layers.

    Args:
        finished: The pass.
        names: Layers in order of execution.
        class_pairs: Of the first of them the classes are shown; the first ten by default.
    """
    shown = list(class_pairs[0]) if class_pairs else sorted(finished.counts)[:10]
    labels = finished.samples.labels
    kept = torch.isin(labels, torch.tensor(shown))
    rank = rank_in_class(finished.samples.keys, labels)
    kept &= rank < max(2, PANEL_SAMPLES // max(1, len(shown)))
    for name in names:
        kept &= finished.filled[name]
    if int(kept.sum()) < 3 or bool((labels[kept] == labels[kept][0]).all()):
        return {}
    numbers = torch.searchsorted(torch.tensor(sorted(shown)), labels[kept])
    layers = {}
    for place in _spread_evenly(len(names), PANELS):
        plane = class_plane(finished.features[names[place]][kept], numbers, len(shown))
        layers[names[place]] = [[round(value, 4) for value in row] for row in plane.tolist()]
    return {"labels": labels[kept].tolist(), "layers": layers}


def _spread_evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})
