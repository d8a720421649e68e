"""The digits of scikit-learn: split, normalisation, loaders."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_depth.data import Digits, build_data, list_datasets
from lightning_depth.errors import ConfigurationError, MisuseError


def ready(**options: Any) -> Digits:
    data = Digits(**options)
    data.setup("fit")
    return data


def test_parts_hold_every_digit_once() -> None:
    splits = ready().splits
    images = torch.cat([splits.train.tensors[0], splits.val.tensors[0]]).flatten(1)
    # undo the normalisation: 17 grey levels from 0 to 16
    levels = (images - images.min()) / (images.max() - images.min()) * 16
    rows = np.round(levels.numpy()).astype(int)
    original = load_digits().data.astype(int)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, original))


def test_split_is_stratified() -> None:
    splits = ready(val_fraction=0.25).splits
    train = torch.bincount(splits.train.tensors[1])
    val = torch.bincount(splits.val.tensors[1])
    assert torch.equal(train + val, torch.bincount(torch.from_numpy(load_digits().target)))
    assert ((val / (train + val) - 0.25).abs() < 0.005).all()


def test_split_follows_its_seed_and_not_the_global_one() -> None:
    torch.manual_seed(1)
    first = ready(seed=3).splits.val.tensors[0]
    torch.manual_seed(2)
    assert torch.equal(first, ready(seed=3).splits.val.tensors[0])
    assert not torch.equal(first, ready(seed=4).splits.val.tensors[0])


def test_training_pixels_alone_set_the_scale() -> None:
    splits = ready().splits
    train = splits.train.tensors[0].double()
    assert train.mean().abs() < 1e-6
    assert (train.std(correction=0) - 1).abs() < 1e-6
    assert splits.val.tensors[0].double().mean().abs() > 1e-6


def test_shapes_are_known_before_setup() -> None:
    data = Digits(batch_size=30)
    assert (data.num_classes, data.input_shape) == (10, (1, 8, 8))
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape[1:], images.dtype) == (data.input_shape, torch.float32)
    assert (labels.shape, labels.dtype) == ((30,), torch.int64)


def test_training_order_changes_and_evaluation_order_does_not() -> None:
    data = ready()
    train = [torch.cat([y for _, y in data.train_dataloader()]) for _ in range(2)]
    fixed = [torch.cat([y for _, y in data.train_eval_dataloader()]) for _ in range(2)]
    assert not torch.equal(*train)
    assert torch.equal(*fixed)
    assert torch.equal(fixed[0], data.splits.train.tensors[1])


def test_evaluation_draws_nothing_from_the_global_generator() -> None:
    data = ready()
    state = torch.get_rng_state()
    assert [len(batch) for loader in (data.val_dataloader(), data.train_eval_dataloader())
            for batch in loader]  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())


def test_last_training_batch_of_one_is_dropped() -> None:
    sizes = [len(labels) for _, labels in ready(batch_size=4).train_dataloader()]
    assert (len(sizes), set(sizes)) == (1437 // 4, {4})
    sizes = [len(labels) for _, labels in ready(batch_size=64).train_dataloader()]
    assert sum(sizes) == 1437
    assert len(list(ready(batch_size=1).train_dataloader())) == 1437


def test_samples_can_be_sharded_and_cut_like_any_others() -> None:
    samples = ready().splits.train
    sampler: DistributedSampler[Any] = DistributedSampler(samples, num_replicas=2, rank=1)
    loader = DataLoader(samples, 10, sampler=sampler)
    images, labels = next(iter(loader))
    assert (tuple(images.shape), tuple(labels.shape)) == ((10, 1, 8, 8), (10,))
    shard = list(sampler)[:10]
    assert torch.equal(images, samples.tensors[0][shard])
    images, labels = next(iter(DataLoader(Subset(samples, [5, 7]), 2)))
    assert torch.equal(images[1], samples[7][0])
    assert labels[1] == samples[7][1]


def test_registry_builds_by_name() -> None:
    assert "digits" in list_datasets()
    data = build_data("digits", batch_size=16, seed=2)
    assert isinstance(data, Digits)
    assert (data.batch_size, data.seed) == (16, 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, but got 0."),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, but got -1."),
        (
            {"val_fraction": 1.0},
            "`val_fraction` must be a finite number greater than 0 and less than 1, but got 1.0.",
        ),
        ({"seed": 2**40}, "`seed` must be at most 4,294,967,295, but got 1099511627776."),
        (
            {"batchsize": 4},
            "Unknown option of data set 'digits': 'batchsize'. Did you mean 'batch_size'? "
            "Known: batch_size, seed, val_fraction.",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_option_is_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_data("digits", **options)


@pytest.mark.parametrize("fraction", [1e-5, 9 / 1797, 0.995, 0.99999])
def test_fraction_that_leaves_a_part_without_a_digit_is_refused(fraction: float) -> None:
    sentence = (
        "`val_fraction` must leave at least 10 of the 1,797 samples to train on and as many to "
        f"validate on, one of each class, but got {fraction!r}."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        ready(val_fraction=fraction)


@pytest.mark.parametrize("fraction", [10 / 1797, 0.994])
def test_smallest_part_holds_one_of_each_digit(fraction: float) -> None:
    splits = ready(val_fraction=fraction).splits
    smaller = min(splits.train, splits.val, key=len)
    assert smaller.tensors[1].bincount().tolist() == [1] * 10


def test_misspelt_data_set_is_named() -> None:
    start = "Unknown data set 'digit'. Did you mean 'digits'? Known: digits"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}"):
        build_data("digit")


def test_loader_before_setup_is_refused() -> None:
    sentence = "Call `setup()` of Digits before asking for data."
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        Digits().train_dataloader()


def test_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"^Digits has no test part\.$"):
        ready().test_dataloader()
