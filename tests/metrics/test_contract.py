"""What every metric of the package promises, over all of them."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import start_processes
from torchmetrics import Metric

import lightning_depth.metrics
from lightning_depth.metrics import EffectiveRank, KNNAccuracy, LinearProbeAccuracy
from tests.metrics import reference

CLASSES = [getattr(lightning_depth.metrics, name) for name in lightning_depth.metrics.__all__]
X, Y = reference.clusters(240, 6, 4)
BATCHES = list(zip(X.split(48), Y.split(48), strict=True))


def filled(metric_class: type[Metric], batches: list[Any] = BATCHES, **options: Any) -> Metric:
    metric = metric_class(num_classes=4, **options)
    for x, y in batches:
        metric.update(x, y)
    return metric


@pytest.fixture(params=CLASSES, ids=[metric_class.__name__ for metric_class in CLASSES])
def metric_class(request: pytest.FixtureRequest) -> type[Metric]:
    found: type[Metric] = request.param
    return found


def test_forward_accumulates_and_returns_the_batch(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=4)
    values = [metric(x, y).item() for x, y in BATCHES]
    alone = [filled(metric_class, [batch]).compute().item() for batch in BATCHES]
    assert values == pytest.approx(alone, rel=1e-9)
    assert metric.compute().item() == pytest.approx(filled(metric_class).compute().item())


def test_forward_with_batches_of_odd_size(metric_class: type[Metric]) -> None:
    batches = list(zip(X.split(37), Y.split(37), strict=True))
    metric = metric_class(num_classes=4)
    for x, y in batches:
        metric(x, y)
    assert metric.compute().item() == pytest.approx(filled(metric_class).compute().item(), rel=1e-9)


def test_order_of_batches_does_not_matter(metric_class: type[Metric]) -> None:
    turned = filled(metric_class, BATCHES[::-1]).compute().item()
    assert turned == pytest.approx(filled(metric_class).compute().item(), rel=1e-9)


def test_merge_state_equals_one_stream(metric_class: type[Metric]) -> None:
    first, second = filled(metric_class, BATCHES[:2]), filled(metric_class, BATCHES[2:])
    first.compute()
    first.merge_state(second)
    fresh = metric_class(num_classes=4)
    fresh.merge_state(second.metric_state)
    fresh.merge_state(filled(metric_class, BATCHES[:2]))
    expected = filled(metric_class).compute().item()
    assert first.compute().item() == pytest.approx(expected, rel=1e-9)
    assert fresh.compute().item() == pytest.approx(expected, rel=1e-9)


def test_merging_another_width_is_refused(metric_class: type[Metric]) -> None:
    other = filled(metric_class, [(X[:, :3], Y)])
    sentence = "`features` must have 6 features a sample, as before, but got 3."
    with pytest.raises(ValueError, match=sentence):
        filled(metric_class).merge_state(other)


def test_merging_other_classes_is_refused(metric_class: type[Metric]) -> None:
    other = metric_class(num_classes=5)
    other.update(X, Y)
    sentence = "^`incoming_state` must be of a metric with num_classes=4.*, but got num_classes=5"
    for metric in (filled(metric_class), metric_class(num_classes=4)):
        with pytest.raises(ValueError, match=sentence):
            metric.merge_state(other)


@pytest.mark.parametrize("metric_class", [EffectiveRank, KNNAccuracy, LinearProbeAccuracy])
def test_merging_another_sample_is_refused(metric_class: type[Metric]) -> None:
    sentence = (
        "^`incoming_state` must .* max_samples=50, seed=0, but got .* max_samples=50, seed=1.$"
    )
    with pytest.raises(ValueError, match=sentence):
        filled(metric_class, max_samples=50).merge_state(
            filled(metric_class, max_samples=50, seed=1).metric_state
        )


def test_merging_an_incomplete_state_is_refused(metric_class: type[Metric]) -> None:
    with pytest.raises(ValueError, match=r"^`incoming_state` must hold '\w+', but does not.$"):
        filled(metric_class).merge_state({})


def test_pickle_clone_and_deepcopy(metric_class: type[Metric]) -> None:
    metric = filled(metric_class)
    copies = [pickle.loads(pickle.dumps(metric)), metric.clone(), copy.deepcopy(metric)]
    assert [twin.compute().item() for twin in copies] == [metric.compute().item()] * 3


def test_reset_forgets_samples_and_width(metric_class: type[Metric]) -> None:
    metric = filled(metric_class)
    metric.reset()
    for x, y in BATCHES:
        metric.update(x[:, :3], y)
    narrow = filled(metric_class, [(x[:, :3], y) for x, y in BATCHES])
    assert metric.compute().item() == narrow.compute().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_casts_leave_the_state_alone(metric_class: type[Metric], dtype: torch.dtype) -> None:
    metric = metric_class(num_classes=4)
    for place, (x, y) in enumerate(BATCHES):
        if place == 2:
            metric.compute()
            metric = metric.to(dtype).half().bfloat16().to(dtype=dtype)
        metric.update(x, y)
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == filled(metric_class).compute().item()
    metric.reset()
    kept = [value for value in metric.metric_state.values() if value.is_floating_point()]
    assert {value.dtype for value in kept} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_summed_in_double(
    metric_class: type[Metric], dtype: torch.dtype
) -> None:
    half = [(x.to(dtype), y) for x, y in BATCHES]
    double = [(x.to(dtype).double(), y) for x, y in BATCHES]
    assert filled(metric_class, half).compute() == filled(metric_class, double).compute()


def test_inference_mode_and_then_training(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=4)
    with torch.inference_mode():
        for x, y in BATCHES[:2]:
            metric.update(x, y)
    for x, y in BATCHES[2:]:
        metric.update(x.clone().requires_grad_(), y)
    assert metric.compute().item() == pytest.approx(filled(metric_class).compute().item())


@pytest.mark.filterwarnings("ignore")  # of torch and torchmetrics, that scripting is old
def test_can_be_scripted(metric_class: type[Metric]) -> None:
    torch.jit.script(metric_class(num_classes=4))


def test_state_stays_out_of_checkpoints(metric_class: type[Metric]) -> None:
    assert filled(metric_class).state_dict() == {}


def test_wrong_width_is_refused(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=4, num_features=5)
    sentence = "^`features` must have 5 features a sample, as before, but got 6.$"
    with pytest.raises(ValueError, match=sentence):
        metric.update(X, Y)


def test_numbers_of_samples_must_agree(metric_class: type[Metric]) -> None:
    sentence = "^`features` and `target` must hold as many samples, but got 240 and 239.$"
    with pytest.raises(ValueError, match=sentence):
        metric_class(num_classes=4).update(X, Y[1:])


def test_labels_must_be_below_the_number_of_classes(metric_class: type[Metric]) -> None:
    sentence = r"^`target` must hold labels below `num_classes` \(=4\), but got 7.$"
    with pytest.raises(ValueError, match=sentence):
        metric_class(num_classes=4).update(X, Y + 4)


def test_labels_must_have_one_of_three_shapes(metric_class: type[Metric]) -> None:
    sentence = (
        r"^`target` must have the shape \(N,\), \(N, 1\) or \(N, 4\), but got \(240, 2, 2\).$"
    )
    with pytest.raises(ValueError, match=sentence):
        metric_class(num_classes=4).update(X, torch.zeros(240, 2, 2))


@pytest.mark.parametrize("num_classes", [0, 2.5, True])
def test_number_of_classes_must_be_a_count(metric_class: type[Metric], num_classes: Any) -> None:
    sentence = f"^`num_classes` must be a whole number of at least 1, but got {num_classes!r}.$"
    with pytest.raises(ValueError, match=sentence):
        metric_class(num_classes=num_classes)


@pytest.mark.parametrize("labels", [Y[:0], torch.zeros(0, 4), Y[:0].float()])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_an_empty_batch_changes_nothing(
    metric_class: type[Metric], place: int, labels: torch.Tensor
) -> None:
    batches = [*BATCHES[:place], (X[:0], labels), *BATCHES[place:]]
    assert filled(metric_class, batches).compute() == filled(metric_class).compute()


@pytest.mark.parametrize("num_features", [None, 6])
def test_a_stream_of_empty_batches_is_not_a_number(
    metric_class: type[Metric], num_features: int | None
) -> None:
    metric = filled(metric_class, [(X[:0], Y[:0])] * 2, num_features=num_features)
    with pytest.warns(UserWarning, match=f"^{metric_class.__name__} is NaN: it needs"):
        assert math.isnan(metric.compute())


def test_forward_warns_once_of_each_reason(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=4)
    constant, unfit = (torch.full((8, 2), 0.1), Y[:8]), (torch.full((8, 2), math.nan), Y[:8])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for batch in (constant, constant, unfit, constant, unfit):
            assert math.isnan(metric(*batch))
        metric.compute()
        metric.reset()
        metric(*constant)
    assert [" is NaN: " in str(warning.message) for warning in seen] == [True, True]


def test_one_feature_may_come_without_its_axis(metric_class: type[Metric]) -> None:
    flat = filled(metric_class, [(x[:, 0], y) for x, y in BATCHES]).compute()
    assert flat == filled(metric_class, [(x[:, :1], y) for x, y in BATCHES]).compute()


def test_samples_without_features_are_refused(metric_class: type[Metric]) -> None:
    sentence = "^`features` must have at least 1 feature a sample, but got 0.$"
    with pytest.raises(ValueError, match=sentence):
        metric_class(num_classes=4).update(X[:, :0], Y)


def test_one_value_and_several_are_drawn(metric_class: type[Metric]) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    metric = filled(metric_class)
    value = metric.compute().item()
    _, one = metric.plot()
    assert one.get_lines()[0].get_ydata()[0] == pytest.approx(value)
    _, axes = plt.subplots()
    _, same = metric.plot([torch.tensor(1.0), metric.compute()], axes)
    assert same is axes
    assert axes.get_lines()[0].get_ydata() == pytest.approx([1.0, value])
    plt.close("all")


def test_rank_needs_no_labels() -> None:
    metric = EffectiveRank()
    for x, _ in BATCHES:
        metric.update(x)
    assert metric.compute().item() == pytest.approx(reference.effective_rank(X.numpy(), Y.numpy()))


@pytest.mark.parametrize(
    "labels", [Y, torch.eye(4)[Y], Y / 3, torch.full_like(Y, -1), torch.zeros(240, 5, 5)]
)
def test_rank_counts_every_sample_whatever_its_label(labels: torch.Tensor) -> None:
    metric = EffectiveRank()
    metric.update(X, labels)
    assert metric.compute().item() == pytest.approx(reference.effective_rank(X.numpy(), Y.numpy()))


def _run(rank: int, folder: str, shares: list[list[int]]) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found = {}
    for metric_class in CLASSES:
        metric = metric_class(num_classes=4)
        for place in shares[rank]:
            metric.update(*BATCHES[place])
        metric._update_count = max(1, metric._update_count)  # a process without data is no mistake
        found[metric_class.__name__] = [metric.compute().item() for _ in range(2)]
        metric.update(*BATCHES[-1])  # the own state is back after synchronisation
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shares",
    [[[0, 2], [1, 3]], [[0, 1, 2], [3]], [[0, 1, 2, 3], []]],
    ids=["even", "uneven", "one"],
)
def test_two_processes_equal_one(tmp_path: Path, shares: list[list[int]]) -> None:
    start_processes(_run, (str(tmp_path), shares), nprocs=2, start_method="fork")
    expected = {metric.__name__: filled(metric, BATCHES[:4]).compute().item() for metric in CLASSES}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, values in found.items():
            assert values == pytest.approx([expected[name]] * 2, rel=1e-9), name
            assert math.isfinite(values[0])
