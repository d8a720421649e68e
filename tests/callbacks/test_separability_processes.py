"""Two processes give what one gives: unequal shares, repeated samples, a process without any."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_depth.callbacks import LayerSeparabilityProbe
from tests.callbacks.test_separability import VAL, Net, X, Y, loader, trainer

OPTIONS: list[dict[str, Any]] = [{"max_samples": 100}, {"max_samples": None}, {"nuisance": 2}]


class Leave(Checkpoint):
    """Ends the process group in order; gloo may abort at exit otherwise. Runs as the last one."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class Shares(pl.LightningDataModule):
    """Validation data cut by hand: each process its own part."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def val_dataloader(self) -> DataLoader[Any]:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        bounds = [sum(self.sizes[:place]) for place in range(len(self.sizes) + 1)]
        return DataLoader(Subset(samples(), range(bounds[rank], bounds[rank + 1])), 64)


class ThreeNet(Net):
    """Batches of three elements."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net(batch[0])


def samples() -> TensorDataset:
    return TensorDataset(X[VAL], Y[VAL], torch.arange(len(VAL)) % 3)


def run(data: Any, options: dict[str, Any], processes: int, **trainer_options: Any) -> Any:
    pl.seed_everything(0, verbose=False)
    probe = LayerSeparabilityProbe(labels=1, **options)
    callbacks: dict[str, Any] = {}
    if processes > 1:
        callbacks = {"strategy": "ddp_fork", "devices": processes, **trainer_options}
    run = trainer(probe, **callbacks)
    if processes > 1:
        run.callbacks.append(Leave())  # type: ignore[attr-defined] # set by a connector
    if isinstance(data, pl.LightningDataModule):
        run.validate(ThreeNet(), datamodule=data, verbose=False)
    else:
        run.validate(ThreeNet(), data, verbose=False)
    return probe.history


def whole() -> DataLoader[Any]:
    return DataLoader(samples(), 64)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("options", OPTIONS, ids=["sample", "streaming", "nuisance"])
@pytest.mark.filterwarnings("ignore:Using `DistributedSampler`")
def test_repeated_samples_of_the_sampler_are_taken_out(options: dict[str, Any]) -> None:
    assert len(VAL) % 2 == 1  # so that torch's sampler repeats one
    one, two = run(whole(), options, 1), run(whole(), options, 2)
    _assert_equal(two, one)
    assert set(two["repeated"]) == {0}


@pytest.mark.parametrize("options", OPTIONS[:2], ids=["sample", "streaming"])
@pytest.mark.parametrize("sizes", [[300, 97], [396, 1]], ids=["uneven", "nearly-all-in-one"])
def test_unequal_shares(options: dict[str, Any], sizes: list[int]) -> None:
    two = run(Shares(sizes), options, 2, use_distributed_sampler=False)
    _assert_equal(two, run(whole(), options, 1))
    assert set(two["repeated"]) == {1}  # who cut the data by hand may have done so with overlap


def _assert_equal(found: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    for column in set(expected) - {"repeated"}:
        if isinstance(expected[column][0], float):
            assert found[column] == pytest.approx(expected[column], rel=1e-5), column
        else:
            assert found[column] == expected[column], column


def test_every_process_logs_the_same(tmp_path: Path) -> None:
    probe = LayerSeparabilityProbe()
    watch = Watch(tmp_path)
    run = trainer(probe, strategy="ddp_fork", devices=2)
    run.callbacks += [watch, Leave()]  # type: ignore[attr-defined] # set by a connector
    run.fit(Net(), loader(VAL[:64]), loader())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    assert first["separability/separation"] == pytest.approx(probe.history["separation"][-1])


class Watch(pl.Callback):
    """Writes down what a process sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        torch.save(metrics, os.fspath(self.folder / f"{trainer.global_rank}.pt"))


# A process that fails leaves no other waiting


class Stumbling(LayerSeparabilityProbe):
    """Fails where and when it is told to, as a full memory would have it."""

    def __init__(self, folder: Path, rank: int, place: str) -> None:
        super().__init__()
        self.folder, self.rank, self.place = folder, rank, place

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if trainer.global_rank == self.rank:
                patch.setattr(self.place, _stumble)
            try:
                super().on_validation_epoch_end(trainer, pl_module)
            except Exception as error:
                self._write(trainer, error)

    def _conclude(self, trainer: pl.Trainer) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            if trainer.global_rank == self.rank:
                patch.setattr(self.place, _stumble)
            try:
                return super()._conclude(trainer)
            except Exception as error:
                self._write(trainer, error)
                return []

    def _write(self, trainer: pl.Trainer, error: Exception) -> None:
        path = self.folder / f"{trainer.global_rank}.txt"
        path.write_text(f"{type(error).__name__}: {error}")


def _stumble(*args: Any, **options: Any) -> Any:
    raise MemoryError("as planned")


@pytest.mark.parametrize(
    ("rank", "place", "told"),
    [
        (1, "lightning_depth.callbacks._probe.passes._about", "process 1 could not do its part"),
        (0, "lightning_depth.callbacks._probe.passes._own_rows", "process 0 could not do its part"),
        (0, "lightning_depth.callbacks.separability.summarise", "rank zero could not do its part"),
        (0, "lightning_depth.callbacks.separability.weigh", "rank zero could not do its part"),
        (0, "lightning_depth.callbacks.separability.find_idle", "rank zero could not do its part"),
    ],
)
def test_a_process_that_fails_leaves_no_other_waiting(
    rank: int, place: str, told: str, tmp_path: Path
) -> None:
    probe = Stumbling(tmp_path, rank, place)
    run = trainer(probe, strategy="ddp_fork", devices=2)
    run.callbacks.append(Leave())  # type: ignore[attr-defined] # set by a connector
    run.fit(Net(), loader(VAL[:64]), loader())
    failed = "MemoryError: as planned"
    assert (tmp_path / f"{rank}.txt").read_text() == failed
    assert (tmp_path / f"{1 - rank}.txt").read_text() == f"RuntimeError: {told}: {failed}"
