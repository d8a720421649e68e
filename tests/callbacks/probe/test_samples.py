"""The class-balanced sample of a stream: bounded, fair, the same for any batches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lightning_depth.callbacks._probe.samples import Samples, SampleStore
from lightning_depth.functional.reservoir import balanced_quota, content_keys, rank_in_class


def stream(counts: list[int]) -> Samples:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    keys = content_keys(torch.arange(len(labels))[:, None])
    return Samples(keys, labels, torch.full_like(labels, -1))


def collect(samples: Samples, capacity: int, batch_size: int) -> SampleStore:
    """Fill a store whose features are the numbers of the samples."""
    store = SampleStore(capacity)
    for rows in torch.arange(len(samples.labels)).split(batch_size):
        plan = store.plan(samples.at(rows))
        store.put("layer", rows[plan.rows][:, None].float(), plan.slots)
    return store


def kept(store: SampleStore) -> list[int]:
    slots = (store.samples.labels >= 0).nonzero()[:, 0]
    features, filled = store.rows_of("layer", slots)
    assert bool(filled.all())
    return sorted(int(value) for value in features[:, 0])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("counts", [[100, 100, 100], [5, 300, 40], [600]], ids=str)
def test_the_smallest_keys_of_each_class_are_kept(counts: list[int], batch_size: int) -> None:
    samples = stream(counts)
    quota = balanced_quota(torch.tensor(counts), 60)
    expected = (rank_in_class(samples.keys, samples.labels) < quota).nonzero()[:, 0].tolist()
    store = collect(samples, 60, batch_size)
    assert kept(store) == expected
    assert store.counts == dict(enumerate(counts))


def test_rows_stay_beside_their_labels() -> None:
    samples = stream([50, 400, 9])
    store = collect(samples, 40, 16)
    slots = (store.samples.labels >= 0).nonzero()[:, 0]
    numbers = store.rows_of("layer", slots)[0][:, 0].long()
    assert torch.equal(samples.labels[numbers], store.samples.labels[slots])
    assert torch.equal(samples.keys[numbers], store.samples.keys[slots])


def test_a_layer_that_missed_a_batch_is_known_to_have_missed_it() -> None:
    samples = stream([40, 40])
    store = SampleStore(20)
    for number, rows in enumerate(torch.arange(80).split(10)):
        plan = store.plan(samples.at(rows))
        store.put("always", rows[plan.rows][:, None].float(), plan.slots)
        if number % 2 == 0:
            store.put("sometimes", rows[plan.rows][:, None].float(), plan.slots)
    slots = (store.samples.labels >= 0).nonzero()[:, 0]
    always, _ = store.rows_of("always", slots)
    _, filled = store.rows_of("sometimes", slots)
    assert filled.tolist() == [(int(number) // 10) % 2 == 0 for number in always[:, 0]]


def test_memory_is_bounded_by_the_capacity() -> None:
    store = collect(stream([3000, 3000]), 100, 64)
    assert len(store.samples.labels) <= 100 + 64
    assert Counter(label for label in store.samples.labels.tolist() if label >= 0) == {0: 50, 1: 50}


@pytest.mark.parametrize(
    ("counts", "capacity", "quota"),
    [
        ([10, 10], 100, 10),
        ([10, 10], 10, 5),
        ([1, 2, 100], 30, 27),
        ([1, 50, 50], 30, 14),
        ([5] * 100, 50, 1),
        ([], 5, 1),
    ],
)
def test_quota_shares_what_small_classes_leave(
    counts: list[int], capacity: int, quota: int
) -> None:
    assert balanced_quota(torch.tensor(counts, dtype=torch.long), capacity) == quota
    largest = max(
        (q for q in range(1, 200) if sum(min(c, q) for c in counts) <= capacity), default=1
    )
    assert sum(min(c, quota) for c in counts) == sum(min(c, largest) for c in counts) or quota == 1


def test_keys_depend_on_the_content_alone() -> None:
    rows = torch.randn(100, 30)
    assert torch.equal(content_keys(rows), content_keys(rows.double()))
    assert len(set(content_keys(rows).tolist())) == 100
    assert not torch.equal(content_keys(rows, 0), content_keys(rows, 1))


def test_keys_are_spread_evenly() -> None:
    keys = content_keys(torch.arange(20_000)[:, None]).double() / 2**63
    shares = torch.histc(keys, 20, 0, 1) / len(keys)
    # 5 % each, standard error sqrt(0.05 * 0.95 / 20000) = 0.0015
    assert (shares - 0.05).abs().max().item() < 4.5 * 0.0015
