"""The measures of separation against a two-pass reference, and where they are not defined."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_depth.functional.centred import centre, separation_of_features
from lightning_depth.functional.scatter import (
    Scatter,
    class_scatter,
    data_separation,
    fisher_ratio,
    neural_collapse,
)
from lightning_depth.metrics import DataSeparation, FisherRatio, NeuralCollapse
from tests.metrics import reference

CASES = [
    pytest.param(DataSeparation, reference.separation, id="separation"),
    pytest.param(NeuralCollapse, reference.collapse, id="collapse"),
    pytest.param(FisherRatio, reference.fisher, id="fisher"),
]
SHAPES = [
    pytest.param((400, 8, 5), id="few-features"),
    pytest.param((300, 400, 4), id="more-features-than-samples"),
    pytest.param((3000, 6, 12), id="more-classes-than-features"),
]


@pytest.mark.parametrize(("metric_class", "expected"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_equals_two_pass_reference(
    metric_class: type[Metric],
    expected: Callable[..., float],
    shape: tuple[int, int, int],
    offset: float,
) -> None:
    x, y = reference.clusters(*shape)
    metric = metric_class(num_classes=shape[2])
    for rows, labels in zip((x + offset).split(64), y.split(64), strict=True):
        metric.update(rows, labels)
    assert metric.compute().item() == pytest.approx(expected(x.numpy(), y.numpy()), rel=1e-8)


@pytest.mark.parametrize(("metric_class", "expected"), CASES)
@pytest.mark.parametrize("way", ["update", "forward", "merge"])
@pytest.mark.filterwarnings("ignore:.*no class has two samples")
@pytest.mark.filterwarnings("ignore:.*it needs samples of at least two classes")
def test_an_offset_costs_no_digits_in_a_thousand_batches(
    metric_class: type[Metric], expected: Callable[..., float], way: str
) -> None:
    x, y = reference.clusters(4000, 6, 5)
    far = x + 1e6
    metric, other = metric_class(num_classes=5), metric_class(num_classes=5)
    for place, (rows, labels) in enumerate(zip(far.split(4), y.split(4), strict=True)):
        if way == "forward":
            metric.forward(rows, labels)
        else:
            (other if way == "merge" and place % 3 else metric).update(rows, labels)
    if way == "merge":
        metric.merge_state(other)
    near = (far - 1e6).numpy()  # which is exact
    assert metric.compute().item() == pytest.approx(expected(near, y.numpy()), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_features_at_hand_equals_that_of_sums(shape: tuple[int, int, int]) -> None:
    x, y = reference.clusters(*shape)
    expected = reference.separation(x.numpy(), y.numpy())
    assert separation_of_features(centre(x + 1e3, y, shape[2])).item() == pytest.approx(
        expected, rel=1e-9
    )


def separation_by_singular_values(x: Tensor, y: Tensor) -> float:
    """Without any square of a matrix, whose condition it would double."""
    means = torch.stack([x[y == k].mean(0) for k in range(int(y.max()) + 1)])
    root = (means - x.mean(0)) * (torch.bincount(y).double() / len(y)).sqrt()[:, None]
    _, values, axes = torch.linalg.svd(root, full_matrices=False)
    kept = values > 1e-12 * values[0]
    projected = (x - means[y]) @ (axes[kept].T / values[kept])
    return float(projected.square().sum() / len(x))


@pytest.mark.parametrize("smallest", [1e-1, 1e-4, 1e-5, 1e-7])
@pytest.mark.parametrize(
    "shape", [(10, 512), (1000, 40), (200, 400), (400, 200), (40, 40)], ids=str
)
def test_keeps_its_digits_where_the_class_means_are_ill_conditioned(
    shape: tuple[int, int], smallest: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0, 1, shape[1]).double() * math.log10(smallest)
    means = torch.randn(*shape, generator=generator).double() * 10**spread
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator).double()).Q
    y = torch.arange(shape[0]).repeat(3)
    noise = torch.randn(len(y), shape[1], generator=generator).double()
    x = (means[y] + 1e-3 * noise) @ turn
    found = separation_of_features(centre(x, y, shape[0])).item()
    assert found == pytest.approx(separation_by_singular_values(x, y), rel=1e-8)


@pytest.mark.parametrize("classes", [4, 60], ids=["fewer-classes", "more-classes"])
def test_constant_features_change_nothing(classes: int) -> None:
    x, y = reference.clusters(900, 20, classes)
    wider = torch.cat([x, torch.zeros(900, 7), torch.full((900, 5), 3.3)], 1).double()
    found = separation_of_features(centre(wider, y, classes)).item()
    assert found == pytest.approx(reference.separation(x.numpy(), y.numpy()), rel=1e-9)


def test_thousand_classes() -> None:
    y = torch.arange(1000).repeat(3)
    x = (
        torch.randn(3000, 40, generator=torch.Generator().manual_seed(1)).double()
        + (torch.randn(1000, 40, generator=torch.Generator().manual_seed(2)).double()[y])
    )
    metric = DataSeparation(num_classes=1000)
    metric.update(x, y)
    expected = reference.separation(x.numpy(), y.numpy())
    assert metric.compute().item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("per_class", [20, 200, 2000])
def test_collapse_does_not_grow_with_samples_per_class(per_class: int) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, 16, generator=generator)
    y = torch.arange(5).repeat(per_class)
    metric = NeuralCollapse(num_classes=5)
    metric.update(means[y] + 0.5 * torch.randn(len(y), 16, generator=generator), y)
    # the population value: S_W = 0.25 I, so its trace is on S_B's pseudo-inverse alone
    centred = (means - means.mean(0)).double()
    expected = 0.25 * torch.linalg.pinv(centred.T @ centred / 5, rtol=1e-6).trace().item() / 5
    assert metric.compute().item() == pytest.approx(expected, rel=0.3 if per_class < 100 else 0.06)


@pytest.mark.parametrize(("metric_class", "expected"), CASES)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda y: y.to(torch.uint8), id="uint8"),
        pytest.param(lambda y: y.float(), id="float"),
        pytest.param(lambda y: y[:, None], id="column"),
        pytest.param(lambda y: torch.nn.functional.one_hot(y, 5), id="one-hot"),
        pytest.param(lambda y: torch.nn.functional.one_hot(y, 5).half(), id="one-hot-half"),
    ],
)
def test_labels_in_any_form(
    metric_class: type[Metric], expected: Callable[..., float], form: Callable[[Tensor], Tensor]
) -> None:
    x, y = reference.clusters(200, 6, 5)
    metric = metric_class(num_classes=5)
    metric.update(x, form(y))
    assert metric.compute().item() == pytest.approx(expected(x.numpy(), y.numpy()), rel=1e-9)


def test_negative_labels_are_left_out() -> None:
    x, y = reference.clusters(200, 6, 5)
    metric = FisherRatio(num_classes=5)
    metric.update(torch.cat([x, x + 50]), torch.cat([y, torch.full_like(y, -100)]))
    assert metric.compute().item() == pytest.approx(reference.fisher(x.numpy(), y.numpy()))


NOT_FINITE = "the features hold values that are not finite."
DEGENERATE = [
    pytest.param([[1.0], [2.0]], [0, 0], "it needs samples of at least two classes, but got 1.",
                 id="one-class"),
    pytest.param([[1.0], [2.0]], [0, 1], "no class has two samples, so the spread within a class "
                 "is not known.", id="one-sample-a-class"),
    pytest.param([[1.0], [1.0], [1.0], [1.0]], [0, 0, 1, 1], "the means of all classes coincide.",
                 id="constant"),
    pytest.param([[float("nan")], [1.0], [2.0], [3.0]], [0, 0, 1, 1], NOT_FINITE, id="nan"),
    pytest.param([[float("inf")], [1.0], [2.0], [3.0]], [0, 0, 1, 1], NOT_FINITE, id="inf"),
    pytest.param([[1.0], [2.0]], [-1, -1], "it needs samples of at least two classes, but got 0.",
                 id="no-label"),
    pytest.param([[1.0], [2.0]], [0.5, 1.5], "it needs samples of at least two classes, but got 0.",
                 id="labels-that-are-not-whole"),
]  # fmt: skip


@pytest.mark.parametrize("metric_class", [DataSeparation, NeuralCollapse, FisherRatio])
@pytest.mark.parametrize(("x", "y", "reason"), DEGENERATE)
def test_undefined_is_nan_with_one_warning(
    metric_class: type[Metric], x: list[list[float]], y: list[float], reason: str
) -> None:
    metric = metric_class(num_classes=2)
    metric.update(torch.tensor(x), torch.tensor(y))
    sentence = f"^{metric_class.__name__} is NaN: {re.escape(reason)}$"
    with pytest.warns(UserWarning, match=sentence):
        assert torch.isnan(metric.compute())
    metric.update(torch.tensor(x), torch.tensor(y))
    if reason.startswith("no class"):
        return  # the same samples again are two of each
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isnan(metric.compute())


@pytest.mark.parametrize("metric_class", [DataSeparation, NeuralCollapse, FisherRatio])
@pytest.mark.parametrize("value", [0.1, 3.3, 1e8 / 3, 0.0])
@pytest.mark.parametrize("batch_size", [7, 3000])
def test_constant_features_are_nan_with_one_warning(
    metric_class: type[Metric], value: float, batch_size: int
) -> None:
    metric, other = metric_class(num_classes=3), metric_class(num_classes=3)
    x, y = torch.full((3000, 8), value), torch.arange(3000) % 3
    for place, (rows, labels) in enumerate(
        zip(x.split(batch_size), y.split(batch_size), strict=True)
    ):
        (other if place % 2 else metric).update(rows, labels)
    metric.merge_state(other)
    with pytest.warns(UserWarning, match="is NaN: the means of all classes coincide.$") as seen:
        assert torch.isnan(metric.compute())
    assert len(seen) == 1


@pytest.mark.parametrize("value", [0.1, 3.3, 1e8 / 3, 0.0])
@pytest.mark.parametrize("batch_size", [1, 7, 3000])
def test_plain_sums_of_constant_features_are_not_a_number(value: float, batch_size: int) -> None:
    x, y = torch.full((3000, 8), value, dtype=torch.float64), torch.arange(3000) % 3
    parts = [
        class_scatter(rows, labels, 3)
        for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)
    ]
    scatter = Scatter(*(sum(part[1:], part[0]) for part in zip(*parts, strict=True)))
    for measure in (fisher_ratio, data_separation, neural_collapse):
        assert torch.isnan(measure(scatter))


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_plain_sums_far_from_zero_are_still_measured(offset: float) -> None:
    x, y = reference.clusters(3000, 8, 3)
    near = (x + offset - offset).numpy()
    found = fisher_ratio(class_scatter(x + offset, y, 3)).item()
    assert found == pytest.approx(reference.fisher(near, y.numpy()), rel=1e-14 * offset**2)


@pytest.mark.parametrize(("metric_class", "expected"), CASES)
def test_constant_features_beside_others_change_nothing(
    metric_class: type[Metric], expected: Callable[..., float]
) -> None:
    x, y = reference.clusters(900, 5, 4)
    metric = metric_class(num_classes=4)
    wider = torch.cat([x, torch.full((900, 3), 1e8 / 3, dtype=torch.float64)], 1)
    for rows, labels in zip(wider.split(4), y.split(4), strict=True):
        metric.update(rows, labels)
    assert metric.compute().item() == pytest.approx(expected(x.numpy(), y.numpy()), rel=1e-9)


def test_collapsed_classes() -> None:
    x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    values = []
    for metric in (DataSeparation(2), NeuralCollapse(2), FisherRatio(2)):
        metric.update(x, y)
        values.append(metric.compute().item())
    assert values == [0.0, 0.0, float("inf")]


@pytest.mark.parametrize("num_features", [70, 400], ids=["tall", "wide"])
def test_many_nearly_dependent_classes_are_still_exact(num_features: int) -> None:
    x, y = reference.clusters(2000, num_features, 200)
    x[:, 1] = x[:, 0] + 1e-6 * x[:, 1]  # so that the quick way is not accurate enough
    metric = DataSeparation(num_classes=200)
    metric.update(x, y)
    within, between, _ = reference.scatter_matrices(x.numpy(), y.numpy())
    values, axes = torch.linalg.eigh(torch.from_numpy(between))
    kept = values > 1e-16 * values[-1] * num_features
    kept &= values.argsort(descending=True).argsort() < 199
    expected = (torch.diagonal(axes.T @ torch.from_numpy(within) @ axes) / values)[kept].sum()
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-3)
