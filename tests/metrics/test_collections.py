"""Metrics in one ``MetricCollection``: nothing is summed twice, and every answer is that alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from torchmetrics import Metric, MetricCollection

from lightning_depth.metrics import (
    DataSeparation,
    EffectiveRank,
    FisherRatio,
    KNNAccuracy,
    LinearProbeAccuracy,
    NeuralCollapse,
)
from tests.metrics.test_contract import BATCHES, CLASSES, X, Y, filled


def test_a_collection_sums_the_scatter_once() -> None:
    collection = MetricCollection(
        [DataSeparation(num_classes=4), NeuralCollapse(num_classes=4), FisherRatio(num_classes=4)]
    )
    for x, y in BATCHES:
        collection.update(x, y)
    assert collection.compute_groups == {0: ["DataSeparation", "NeuralCollapse", "FisherRatio"]}
    expected = [filled(type(metric)).compute().item() for metric in collection.values()]
    assert [value.item() for value in collection.compute().values()] == pytest.approx(expected)


def test_a_collection_of_all_sums_nothing_twice() -> None:
    collection = MetricCollection([metric_class(num_classes=4) for metric_class in CLASSES])
    for x, y in BATCHES:
        collection.update(x, y)
    assert sorted(map(len, collection.compute_groups.values())) == [1, 1, 1, 3]
    alone = {metric.__name__: filled(metric).compute().item() for metric in CLASSES}
    together = {name: value.item() for name, value in collection.compute().items()}
    assert together == pytest.approx(alone)


@pytest.mark.parametrize(
    ("metric_class", "first", "second"),
    [
        (KNNAccuracy, {"max_samples": 60}, {"max_samples": 200}),
        (KNNAccuracy, {"max_samples": 200_000}, {"max_samples": 200_001}),
        (KNNAccuracy, {"max_samples": 60, "seed": 100_000}, {"max_samples": 60, "seed": 100_001}),
        (EffectiveRank, {"max_samples": 50}, {"max_samples": 51}),
        (LinearProbeAccuracy, {"max_samples": 30}, {"max_samples": 2000}),
        (LinearProbeAccuracy, {"max_samples": 30}, {"max_samples": 30, "seed": 1}),
    ],
)
@pytest.mark.parametrize("empty_first", [False, True])
@pytest.mark.parametrize("way", ["update", "forward"])
def test_metrics_of_other_options_are_the_same_together_as_alone(
    metric_class: type[Metric],
    first: dict[str, int],
    second: dict[str, int],
    empty_first: bool,
    way: str,
) -> None:
    nothing = (X[:0], Y[:0]) if way == "update" else (X[:3], torch.full((3,), -1))
    batches = [nothing] * empty_first + BATCHES
    options = {"first": first, "second": second, "first again": first}
    collection = MetricCollection({k: metric_class(num_classes=4, **v) for k, v in options.items()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is NaN: it needs")  # the batch without a sample
        for x, y in batches:
            getattr(collection, way)(x, y)
    if way == "update":
        groups = sorted(map(sorted, collection.compute_groups.values()))
        assert groups == [["first", "first again"], ["second"]]
    together = {name: value.item() for name, value in collection.compute().items()}
    assert together == {
        name: filled(metric_class, batches, **chosen).compute().item()
        for name, chosen in options.items()
    }
