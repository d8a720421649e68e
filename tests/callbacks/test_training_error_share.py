"""Which training data are measured: what training itself reads, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_depth.callbacks import TrainingErrorMonitor
from lightning_depth.callbacks._training_samples import KEPT_BYTES, Share, copied, count_samples
from tests.callbacks._runs import Batch, trainer

NUM, SIZE = 64, 8


class Means(pl.LightningModule):
    """Its validation step logs what the batches hold, so that a mean names the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained: list[float] = []

    def values(self, batch: Any) -> Tensor:
        values: Tensor = batch[0]
        return values

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.trained += self.values(batch).flatten().tolist()
        return (self.values(batch) * self.weight).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        values = self.values(batch)
        self.log("val/mean", values.mean(), batch_size=len(values))
        self.log("val/largest", values.max(), reduce_fx="max", batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbers() -> TensorDataset:
    """Samples that are their own number; the second half belongs to validation."""
    return TensorDataset(torch.arange(float(NUM)))


class Post(DataLoader[Any]):
    """A loader that does the last step itself."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield [batch[0] / 10]


class Stream(IterableDataset[Any]):
    def __init__(self, num: int = NUM) -> None:
        self.num, self.readings = num, 0

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.readings += 1
        for number in range(self.num):
            yield [torch.tensor(float(number))]


class Plain:
    """An iterable of batches that is no DataLoader."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from ([torch.arange(4.0)], [torch.arange(6.0) + 10])


HALF = range(NUM // 2)
LOADERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (lambda: DataLoader(numbers(), SIZE), {}),
    "shuffled": (lambda: DataLoader(numbers(), SIZE, shuffle=True), {}),
    "subset": (lambda: DataLoader(numbers(), SIZE, sampler=SubsetRandomSampler(HALF)), {}),
    "weighted": (
        lambda: DataLoader(
            numbers(), SIZE, sampler=WeightedRandomSampler([1.0] * 32 + [0.0] * 32, NUM)
        ),
        {},
    ),
    "own generator": (
        lambda: DataLoader(
            numbers(), SIZE, shuffle=True, generator=torch.Generator().manual_seed(1)
        ),
        {},
    ),
    "sampler of batches": (
        lambda: DataLoader(
            numbers(), batch_sampler=BatchSampler(RandomSampler(numbers()), 5, drop_last=False)
        ),
        {},
    ),
    "limited to two": (lambda: DataLoader(numbers(), SIZE), {"limit_train_batches": 2}),
    "limited to half": (lambda: DataLoader(numbers(), SIZE), {"limit_train_batches": 0.5}),
    "overfit": (lambda: DataLoader(numbers(), SIZE), {"overfit_batches": 2}),
    "own iter": (lambda: Post(numbers(), SIZE, shuffle=True), {}),
    "stream": (lambda: DataLoader(Stream(), SIZE), {}),
    "no loader": (lambda: Plain(), {}),
    "max_steps": (lambda: DataLoader(numbers(), SIZE), {"max_steps": 3}),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
@pytest.mark.filterwarnings("ignore:.*overfit:UserWarning")
def test_the_share_is_what_the_first_epoch_read(kind: str) -> None:
    build, options = LOADERS[kind]
    runs = []
    for callbacks in ([], [TrainingErrorMonitor()]):
        pl.seed_everything(3, verbose=False)
        module = Means()
        trainer(*callbacks, **{"max_epochs": 2, **options}).fit(module, build())
        runs.append((module, torch.get_rng_state(), callbacks))
    (bare, state, _), (module, watched_state, (monitor,)) = runs
    assert module.trained == bare.trained  # the order of training is not disturbed
    assert torch.equal(state, watched_state)
    rows = monitor.history["num_samples"]
    first = bare.trained[: rows[0]]
    assert rows[0] == len(bare.trained) // max(1, len(rows))
    assert monitor.history["mean"] == pytest.approx([sum(first) / len(first)] * len(rows))
    assert monitor.history["largest"] == [max(first)] * len(rows)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_a_stream_is_read_once_an_epoch() -> None:
    stream = Stream()
    trainer(TrainingErrorMonitor(), max_epochs=2).fit(Means(), DataLoader(stream, SIZE))
    bare = Stream()
    trainer(max_epochs=2).fit(Means(), DataLoader(bare, SIZE))
    assert stream.readings == bare.readings


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_persistent_workers_go_on_undisturbed() -> None:
    runs = []
    for callbacks in ([], [TrainingErrorMonitor()]):
        pl.seed_everything(3, verbose=False)
        data = DataLoader(numbers(), SIZE, shuffle=True, num_workers=1, persistent_workers=True)
        module = Means()
        trainer(*callbacks, max_epochs=2).fit(module, data)
        runs.append(module.trained)
    assert runs[0] == runs[1]


class OfTwo(Means):
    def values(self, batch: Any) -> Tensor:
        return torch.cat([part[0] for part in batch.values()])


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size"])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_combined_loaders_are_seen_combined(mode: Any) -> None:
    pl.seed_everything(3, verbose=False)
    loaders = {
        "a": DataLoader(numbers(), SIZE, shuffle=True),
        "b": DataLoader(TensorDataset(torch.arange(20.0) + 1000), 5),
    }
    module, monitor = OfTwo(), TrainingErrorMonitor()
    trainer(monitor, max_epochs=1).fit(module, CombinedLoader(loaders, mode))
    assert monitor.history["mean"] == pytest.approx([sum(module.trained) / len(module.trained)])


# Batches go once through everything that a validation batch goes through.


class Hooks(Means):
    """Scales batches on the way, in all three hooks."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch[0].mul_(2)  # in place: what is kept must not change
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return [part + 1 for part in super().transfer_batch_to_device(batch, device, 0)]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [part * (5 if self.trainer.training else 10) for part in batch]


@pytest.mark.parametrize("data", [numbers, Stream])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_transfer_hooks_are_called_once_a_measurement(data: Any) -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor, max_epochs=3).fit(Hooks(), DataLoader(data(), SIZE))
    mean = (NUM - 1) / 2
    assert monitor.history["mean"] == pytest.approx([(2 * mean + 1) * 10] * 3)


class Casts(Means):
    seen: Any = None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        Casts.seen = batch[0].dtype, (batch[0] @ batch[0]).dtype
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("precision", "dtype", "product"),
    [
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("16-true", torch.float16, torch.float16),
        ("64-true", torch.float64, torch.float64),
        ("bf16-mixed", torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_batches_are_converted_as_the_precision_wants(
    precision: Any, dtype: torch.dtype, product: torch.dtype
) -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor, precision=precision, max_epochs=1).fit(Casts(), DataLoader(numbers(), SIZE))
    assert Casts.seen == (dtype, product)
    assert monitor.history["mean"] == pytest.approx([(NUM - 1) / 2], rel=1e-2)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_the_precision_plugin_is_left_as_it_was() -> None:
    plugin = MixedPrecision("bf16-mixed", "cpu")
    first, second = TrainingErrorMonitor(), TrainingErrorMonitor(prefix="second")
    run = trainer(first, second, plugins=[plugin], max_epochs=1)
    run.fit(Means(), DataLoader(numbers(), SIZE))
    assert first.history == second.history
    assert "convert_input" not in vars(plugin)


# What is read where something else is offered.


class Offers(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbers(), SIZE)

    def train_eval_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Counted(self), 4)


class Counted(Dataset[Any]):
    def __init__(self, owner: Offers) -> None:
        self.owner = owner

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> list[Tensor]:
        self.owner.batches += 1
        return [torch.tensor(float(index)) + 0 * torch.rand(())]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_loader_for_evaluation_is_preferred_and_read_once() -> None:
    data, monitor = Offers(), TrainingErrorMonitor(max_samples=8)
    trainer(monitor, max_epochs=3).fit(Means(), data)
    assert monitor.history["mean"] == pytest.approx([3.5] * 3)
    assert data.batches == 8


# The share itself.


def test_batches_are_spread_over_the_epoch() -> None:
    share = Share(max_samples=6, planned=30)
    for number in range(30):
        share.offer([torch.full((2,), float(number))])
    assert [batch[0][0].item() for batch, _ in share.first(9)] == [0, 10, 20]
    assert share.full


def test_large_batches_are_bounded_by_their_bytes() -> None:
    huge = torch.zeros(1, dtype=torch.int8).expand(4, KEPT_BYTES // 8)  # half of the bound, each
    share = Share(max_samples=1000, planned=math.inf)
    share._kept, share._stride = [(huge, 4)], 1
    share._room = KEPT_BYTES // 2
    share.offer([torch.zeros(4, KEPT_BYTES // 16, dtype=torch.int8)])
    share.offer([torch.zeros(4, KEPT_BYTES // 16, dtype=torch.int8)])
    share.offer([torch.zeros(4, KEPT_BYTES // 16, dtype=torch.int8)])
    assert share.num_samples == 12
    assert share.full


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.zeros(3), "names": ["a", "b", "c"]},
        (torch.zeros(3), [torch.ones(3)]),
        Batch(torch.zeros(3), torch.zeros(3)),
    ],
)
def test_a_copy_shares_no_memory(batch: Any) -> None:
    copy = copied(batch)
    assert type(copy) is type(batch)
    assert count_samples(copy) == 3
    first = next(iter(_tensors(batch)))
    first.add_(7)
    assert not torch.equal(next(iter(_tensors(copy))), first)


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Batch):
        return [batch.x]
    return [
        value
        for value in (batch.values() if isinstance(batch, dict) else batch)
        if isinstance(value, Tensor)
    ]


class Iterates(Means):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, _, _ = next(dataloader_iter)
        return super().training_step(batch, 0)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`:UserWarning")
def test_a_step_that_fetches_its_own_batches_is_not_measured() -> None:
    monitor = TrainingErrorMonitor()
    with pytest.warns(UserWarning, match="^TrainingErrorMonitor measures nothing: no training ba"):
        trainer(monitor, max_epochs=1).fit(Iterates(), DataLoader(numbers(), SIZE))
    assert monitor.history == {}
