"""Early stopping and the training monitor in two processes, judged by the files they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import EarlyStopping, TrainingErrorMonitor
from tests.callbacks.stopping_models import QUIET, ScriptedModule, loader, tensors_of
from tests.callbacks.test_gradient_processes import ForkedModelParallel, ForkedSharded
from tests.callbacks.test_training_error import DigitsModule, digits

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use")


def whole(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors, gathered where they are sharded."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in tensors_of(module).items()
    }


class Reports(ScriptedModule):
    """Writes what each rank saw and ended with; ranks may be told different metrics."""

    def __init__(
        self, folder: Path, other: tuple[float, ...] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.folder, self.other = folder, other

    def on_validation_epoch_end(self) -> None:
        if self.other is not None and self.global_rank == 1 and self.checks == 0:
            self.script = list(self.other)
        super().on_validation_epoch_end()

    def on_validation_end(self) -> None:
        self.seen.append(whole(self))

    def on_train_end(self) -> None:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined] # by a connector
        stopping = next(one for one in callbacks if isinstance(one, EarlyStopping))
        record = {
            "seen": self.seen,
            "end": whole(self),
            "best_epoch": stopping.best_epoch,
            "reason": stopping.stopping_reason.value,
            "message": stopping.stopping_reason_message,
            "epochs": self.current_epoch,
        }
        torch.save(record, self.folder / f"rank{self.global_rank}.pt")


class Leave(Checkpoint):
    """Ends the process group in order; gloo may abort at exit otherwise. Runs as the last one."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def fit_twice(
    module: Any, callbacks: list[Any], data: Any = None, path: Path | None = None, **options: Any
) -> None:
    """Train in two forked processes."""
    settings = {
        **QUIET,
        "strategy": "ddp_fork",
        "devices": 2,
        "use_distributed_sampler": False,
        "enable_checkpointing": True,
        "callbacks": [*callbacks, Leave()],
    }
    trainer = pl.Trainer(**{**settings, **options})
    validation = loader() if isinstance(module, ScriptedModule) else None
    trainer.fit(module, data or loader(), validation, ckpt_path=path, weights_only=True)


def records(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_two_processes_give_back_the_third_epoch(place: Any, tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=place)
    fit_twice(Reports(tmp_path), [stopping], max_epochs=20, default_root_dir=tmp_path)
    for record in records(tmp_path):
        assert same(record["end"], record["seen"][2])
        assert not same(record["end"], record["seen"][3])
        assert (record["best_epoch"], record["epochs"]) == (2, 6)


def test_ranks_that_see_different_metrics_agree_on_reason_and_weights(tmp_path: Path) -> None:
    module = Reports(tmp_path, other=(3.0, 2.0, 2.5, 2.5, 0.1, 0.1, 0.1))
    stopping = EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    fit_twice(module, [stopping], max_epochs=20)
    first, second = records(tmp_path)
    # the second rank's patience ends at its fourth check; the first's best is its third
    assert first["epochs"] == second["epochs"] == 4
    assert first["reason"] == second["reason"] == EarlyStoppingReason.PATIENCE_EXHAUSTED.value
    assert first["message"] == second["message"]
    assert "Best score: 2.000" in first["message"]
    assert first["best_epoch"] == second["best_epoch"] == 2
    assert same(first["end"], first["seen"][2])
    assert same(second["end"], second["seen"][2])


class Sharded(Reports):
    """Cut up by FSDP2."""

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for part in (self.net, self.head, self):
            fully_shard(part, mesh=mesh)


def sharded_strategy() -> ForkedModelParallel:
    return ForkedModelParallel(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        process_group_backend="gloo",
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_sharded_weights_come_back_and_survive_a_resume(place: Any, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    stopping = EarlyStopping("val_loss", restore_best_weights=place)
    options: dict[str, Any] = {"default_root_dir": tmp_path}
    fit_twice(
        Sharded(tmp_path), [stopping, saving], max_epochs=4, strategy=sharded_strategy(), **options
    )
    first, second = records(tmp_path)
    assert same(first["end"], first["seen"][2])
    assert not same(first["end"], first["seen"][3])
    assert same(first["end"], second["end"])
    expected = first["seen"][2]

    resumed = Sharded(tmp_path, script=[5.0] * 9)
    again = EarlyStopping("val_loss", restore_best_weights=place)
    path = tmp_path / "epoch=3.ckpt"
    fit_twice(resumed, [again], path=path, max_epochs=9, strategy=sharded_strategy(), **options)
    for record in records(tmp_path):
        assert (record["best_epoch"], record["epochs"]) == (2, 6)
        assert same(record["end"], expected)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_weights_cut_up_by_fsdp1_are_refused(tmp_path: Path) -> None:
    strategy = ForkedSharded(process_group_backend="gloo", state_dict_type="full")
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    with pytest.raises(Exception, match="cannot copy weights that FSDP1 has cut up: restore from"):
        fit_twice(Reports(tmp_path), [stopping], strategy=strategy, max_epochs=1)
    assert list(tmp_path.iterdir()) == []


class WritesErrors(pl.Callback):
    def __init__(self, monitor: TrainingErrorMonitor, folder: Path) -> None:
        self.monitor, self.folder = monitor, folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        table = self.monitor.history
        record = {"history": table, "chance": self.monitor.chance_error, "end": whole(pl_module)}
        torch.save(record, self.folder / f"rank{trainer.global_rank}.pt")


def test_training_error_of_two_processes_is_that_of_all_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    monitor = TrainingErrorMonitor(max_samples=1000)
    inputs, labels = digits(302)
    data = DataLoader(TensorDataset(inputs, labels), 32)
    callbacks = [monitor, WritesErrors(monitor, tmp_path)]
    fit_twice(DigitsModule(), callbacks, data, max_epochs=2, use_distributed_sampler=True)
    first, second = records(tmp_path)
    assert first["history"] == second["history"]
    assert first["history"]["num_samples"] == [302, 302]
    module = DigitsModule()
    module.load_state_dict(first["end"])
    wrong = (module.eval()(inputs).argmax(1) != labels).float().mean()
    assert first["history"]["error"][-1] == pytest.approx(float(wrong))
    assert first["chance"] == pytest.approx(1 - float(labels.bincount().max()) / 302)


class ShardedDigits(DigitsModule):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_training_error_of_a_sharded_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    monitor = TrainingErrorMonitor()
    inputs, labels = digits(32)
    data = DataLoader(TensorDataset(inputs, labels), 4)
    callbacks = [monitor, WritesErrors(monitor, tmp_path)]
    fit_twice(ShardedDigits(), callbacks, data, strategy=sharded_strategy(), max_epochs=1)
    first, second = records(tmp_path)
    assert first["history"] == second["history"]
    assert first["history"]["num_samples"] == [64]  # each process reads them all
    module = DigitsModule()
    module.load_state_dict(first["end"])
    loss = torch.nn.functional.cross_entropy(module.eval()(inputs), labels)
    assert first["history"]["loss"] == pytest.approx([float(loss)], rel=1e-5)
