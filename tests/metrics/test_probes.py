"""Linear and nearest-neighbour probes against scikit-learn; bounded samples."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from lightning_depth.functional.probe import ridge_labels, ridge_scores
from lightning_depth.metrics import EffectiveRank, KNNAccuracy, LinearProbeAccuracy
from tests.metrics import reference


def ridge_accuracy(
    x: np.ndarray, y: np.ndarray, test: np.ndarray, num_classes: int, ridge: float
) -> float:
    penalty = ridge * x[~test].var(0).mean() * (~test).sum()
    scores = Ridge(alpha=penalty).fit(x[~test], np.eye(num_classes)[y[~test]]).predict(x[test])
    return float((scores.argmax(1) == y[test]).mean())


def held_out(metric: LinearProbeAccuracy, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Which samples the metric tested, each found again by what it holds."""
    kept = metric.kept_features[metric._held_out()]
    test = (x[:, None] == kept).all(2).any(1).numpy()
    assert test.sum() == metric.num_kept
    for label in range(4):
        mine = test[y.numpy() == label]
        assert mine.sum() == len(mine) // 2  # half of each class
    return np.asarray(test)


@pytest.mark.parametrize("num_features", [5, 300], ids=["narrow", "wide"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_linear_probe_equals_ridge_of_scikit_learn(num_features: int, offset: float) -> None:
    x, y = reference.clusters(250, num_features, 4, spread=3.0)
    metric = LinearProbeAccuracy(num_classes=4, ridge=0.01)
    for rows, labels in zip((x + offset).split(31), y.split(31), strict=True):
        metric.update(rows, labels)
    near = (x + offset - offset).numpy()
    test = held_out(metric, x + offset, y)
    expected = ridge_accuracy(near, y.numpy(), test, 4, 0.01)
    assert metric.compute().item() == pytest.approx(expected)
    assert metric.num_kept == sum(count // 2 for count in np.bincount(y.numpy()))


@pytest.mark.parametrize(
    "order",
    [
        torch.arange(400).reshape(2, 200).T.flatten(),  # a class and the other in turn
        torch.arange(400),  # one class after the other
        torch.randperm(400, generator=torch.Generator().manual_seed(1)),
    ],
    ids=["in turn", "sorted", "shuffled"],
)
@pytest.mark.parametrize("batch_size", [1, 31, 400])
def test_the_order_of_the_stream_and_its_batches_do_not_matter(
    order: torch.Tensor, batch_size: int
) -> None:
    y = torch.arange(400) // 200
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) + 10 * y[:, None]
    metrics = [LinearProbeAccuracy(2), KNNAccuracy(2)]
    for metric in metrics:
        for rows in order.split(batch_size):
            metric.update(x[rows], y[rows])
        assert metric.compute().item() == 1.0
    assert sorted(metrics[0].kept_keys.tolist()) == metrics[0].kept_keys.tolist()
    other = LinearProbeAccuracy(2)
    other.update(x, y)
    assert torch.equal(metrics[0].kept_keys, other.kept_keys)
    assert torch.equal(metrics[0]._held_out(), other._held_out())


def test_another_seed_holds_out_others_and_two_processes_the_same() -> None:
    x, y = reference.clusters(300, 5, 4, spread=3.0)
    whole, first, second, other = (LinearProbeAccuracy(4, seed=seed) for seed in (0, 0, 0, 1))
    for metric in (whole, other):
        metric.update(x, y)
    first.update(x[:170], y[:170])
    second.update(x[170:], y[170:])
    first.merge_state(second)
    assert torch.equal(first.kept_keys, whole.kept_keys)
    assert first.compute() == whole.compute()
    assert first.num_kept == whole.num_kept
    assert not torch.equal(
        whole.kept_features[whole._held_out()], other.kept_features[other._held_out()]
    )


def test_equal_features_of_two_classes_are_kept_whatever_their_order() -> None:
    x, y = torch.zeros(40, 2), torch.arange(40) % 2
    kept = []
    for order in (torch.arange(40), torch.arange(39, -1, -1)):
        metric = KNNAccuracy(2, max_samples=15)
        metric.update(x[order], y[order])
        kept.append(metric.kept_labels)
    assert torch.equal(*kept)


@pytest.mark.parametrize(
    ("num_features", "num_test"),
    [(5, 125), (300, 125), (300, 7)],
    ids=["narrow", "wide", "wide, few to classify"],
)
def test_ridge_of_features_at_hand_equals_scikit_learn(num_features: int, num_test: int) -> None:
    x, y = reference.clusters(250, num_features, 4, spread=3.0)
    train, test = slice(0, None, 2), slice(1, 2 * num_test, 2)
    penalty = 0.01 * x[train].var(0, unbiased=False).mean().item() * len(x[train])
    fitted = Ridge(alpha=penalty).fit(x[train].numpy(), np.eye(6)[y[train].numpy()])
    expected = fitted.predict(x[test].numpy())
    arguments = (x[train] + 100, y[train], x[test] + 100, 6, 0.01)
    scores = ridge_scores(*arguments).numpy()
    np.testing.assert_allclose(scores[:, :4], expected[:, :4], rtol=1e-8, atol=1e-10)
    assert np.isneginf(scores[:, 4:]).all()  # classes without a sample
    np.testing.assert_array_equal(ridge_labels(*arguments).numpy(), expected.argmax(1))


def test_linear_probe_keeps_a_bounded_number_of_samples() -> None:
    x, y = reference.clusters(2000, 5, 4)
    metric = LinearProbeAccuracy(num_classes=4, max_samples=100)
    for rows, labels in zip(x.split(64), y.split(64), strict=True):
        metric(rows, labels)
    assert metric.num_kept == 100
    assert len(metric.kept_features) == 100


def test_linear_probe_never_answers_a_class_it_has_not_seen() -> None:
    metric = LinearProbeAccuracy(num_classes=3)
    metric.update(torch.tensor([[0.0], [9.0], [1.0], [9.0]]), torch.tensor([0, 2, 0, 2]))
    assert metric.compute().item() == 1.0
    assert metric.num_kept == 2


def test_the_only_sample_of_a_class_is_never_held_out() -> None:
    metric = LinearProbeAccuracy(num_classes=3)
    metric.update(torch.tensor([[0.0], [9.0], [1.0], [9.0]]), torch.tensor([0, 2, 1, 2]))
    assert metric.kept_labels[metric._held_out()].tolist() == [2]


@pytest.mark.parametrize("num_neighbors", [1, 6, 1000])
def test_neighbors_equal_those_of_scikit_learn(num_neighbors: int) -> None:
    x, y = reference.clusters(150, 4, 5, spread=2.0)
    metric = KNNAccuracy(num_classes=5, num_neighbors=num_neighbors)
    for rows, labels in zip((x + 1e3).split(40), y.split(40), strict=True):
        metric.update(rows, labels)
    search = NearestNeighbors(n_neighbors=min(num_neighbors, 149)).fit(x.numpy())
    votes = [
        np.bincount(y.numpy()[places], minlength=5)
        for places in search.kneighbors(return_distance=False)
    ]
    expected = (np.argmax(votes, 1) == y.numpy()).mean()
    assert metric.compute().item() == pytest.approx(expected)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_effective_rank_ignores_a_common_offset(offset: float) -> None:
    x, y = reference.clusters(300, 20, 3)
    metric = EffectiveRank(num_classes=3)
    metric.update(x + offset, y)
    expected = reference.effective_rank(x.numpy(), y.numpy())
    assert metric.compute().item() == pytest.approx(expected, rel=1e-8)


def test_uncentred_rank_sees_the_offset() -> None:
    x, _ = reference.clusters(300, 20, 3)
    metric = EffectiveRank(centered=False)
    metric.update(x + 1e3)
    values = np.linalg.svd(x.numpy() + 1e3, compute_uv=False)
    shares = values / values.sum()
    assert metric.compute().item() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_reservoir_does_not_depend_on_the_order_of_the_stream() -> None:
    x, y = reference.clusters(1000, 4, 3)
    kept = []
    for order in (torch.arange(1000), torch.randperm(1000)):
        metric = KNNAccuracy(num_classes=3, max_samples=50)
        for rows in order.split(33):
            metric.update(x[rows], y[rows])
        kept.append(metric.kept_features)
    assert torch.equal(*kept)


@pytest.mark.parametrize("metric_class", [KNNAccuracy, LinearProbeAccuracy])
def test_samples_without_a_label_take_no_place_in_the_reservoir(
    metric_class: type[KNNAccuracy] | type[LinearProbeAccuracy],
) -> None:
    x, y = reference.clusters(600, 4, 3, spread=2.0)
    alone = metric_class(num_classes=3, max_samples=100)
    alone.update(x, y)
    together = metric_class(num_classes=3, max_samples=100)
    rows = torch.cat([x[:300], torch.randn(5000, 4, dtype=torch.float64), x[300:]])
    labels = torch.cat([y[:300], torch.full((5000,), -1), y[300:]])
    for part, some in zip(rows.split(700), labels.split(700), strict=True):
        together.update(part, some)
    assert together.num_kept == 100
    assert torch.equal(together.kept_features, alone.kept_features)
    assert together.compute().item() == pytest.approx(alone.compute().item())


def test_reservoir_is_a_fair_sample() -> None:
    x = torch.arange(20_000.0)[:, None]
    metric = EffectiveRank(max_samples=2000, seed=3)
    metric.update(x)
    # uniform on 0..19999: mean 9999.5, standard error 5773 / sqrt(2000) = 129
    assert metric.kept_features.mean().item() == pytest.approx(9999.5, abs=4 * 129)
    other = EffectiveRank(max_samples=2000, seed=4)
    other.update(x)
    assert not torch.equal(metric.kept_features, other.kept_features)


@pytest.mark.parametrize(
    ("metric", "x", "y", "reason"),
    [
        (KNNAccuracy(2), [[1.0]], [0], "it needs at least two samples, but got 1."),
        (KNNAccuracy(2), [[1.0]] * 4, [0, 1, 0, 1], "all samples have the same features."),
        (KNNAccuracy(2), [[float("nan")], [1.0]], [0, 1],
         "the features hold values that are not finite."),
        (EffectiveRank(), [[1.0]] * 4, [0, 1, 0, 1], "all samples have the same features."),
        (EffectiveRank(), [[float("inf")], [1.0]], [0, 1],
         "the features hold values that are not finite."),
        (LinearProbeAccuracy(2), [[1.0], [2.0]], [0, 1], "it needs two samples of a class."),
        (LinearProbeAccuracy(2), [[float("nan")], [1.0]], [0, 0],
         "the features hold values that are not finite."),
        (LinearProbeAccuracy(2), [[1.0], [float("nan")]], [1, 1],
         "the features hold values that are not finite."),
        (LinearProbeAccuracy(2, ridge=0.0), [[1.0, 2.0]] * 4, [0, 1] * 2,
         "all samples that it is fitted to have the same features."),
        (LinearProbeAccuracy(2, ridge=0.0), [[1.0, 2.0], [3.0, 6.0], [2.0, 4.0], [5.0, 10.0]],
         [0, 1, 1, 0], "the features depend on each other, which needs a `ridge` above 0.0."),
    ],
)  # fmt: skip
def test_undefined_is_nan_with_one_warning(
    metric: KNNAccuracy, x: list[list[float]], y: list[int], reason: str
) -> None:
    metric.update(torch.tensor(x), torch.tensor(y))
    with pytest.warns(UserWarning, match=f"^{type(metric).__name__} is NaN: {re.escape(reason)}$"):
        assert torch.isnan(metric.compute())


@pytest.mark.parametrize("value", [0.1, 3.3, 1e8 / 3, 0.0])
@pytest.mark.parametrize("batch_size", [7, 3000])
def test_a_probe_of_constant_features_is_nan_with_one_warning(
    value: float, batch_size: int
) -> None:
    metric = LinearProbeAccuracy(num_classes=3)
    x, y = torch.full((3000, 8), value), torch.arange(3000) % 3
    for rows, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        metric.update(rows, labels)
    sentence = "is NaN: all samples that it is fitted to have the same features.$"
    with pytest.warns(UserWarning, match=sentence) as seen:
        assert torch.isnan(metric.compute())
    assert len(seen) == 1


def test_one_sample_a_class_has_an_answer() -> None:
    metric = KNNAccuracy(num_classes=3, num_neighbors=1)
    metric.update(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 2]))
    assert metric.compute().item() == 0.0


@pytest.mark.parametrize("ridge", [-1.0, float("nan")])
def test_ridge_must_not_be_negative(ridge: float) -> None:
    sentence = f"^`ridge` must be a finite number of at least 0, but got {ridge!r}.$"
    with pytest.raises(ValueError, match=sentence):
        LinearProbeAccuracy(num_classes=2, ridge=ridge)


@pytest.mark.parametrize("max_samples", [1, 2.0])
def test_reservoir_must_hold_two_samples(max_samples: float) -> None:
    sentence = f"^`max_samples` must be a whole number of at least 2, but got {max_samples!r}.$"
    with pytest.raises(ValueError, match=sentence):
        KNNAccuracy(num_classes=2, max_samples=max_samples)  # type: ignore[arg-type] # the test


def test_number_of_neighbors_must_be_a_count() -> None:
    sentence = "^`num_neighbors` must be a whole number of at least 1, but got 0.$"
    with pytest.raises(ValueError, match=sentence):
        KNNAccuracy(num_classes=2, num_neighbors=0)
