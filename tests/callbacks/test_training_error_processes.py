"""The module's own step on training data that two processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_depth.callbacks import TrainingErrorMonitor
from tests.callbacks._runs import NUM_CLASSES, Toy, loader, network, samples, trainer
from tests.callbacks.test_contract_processes import Leave
from tests.callbacks.test_gradient_processes import ForkedModelParallel, ForkedSharded


class Shared(Toy):
    """Logs with and without a word on processes, and a metric that adds itself over them."""

    def __init__(self, breaks_on: int | None = None) -> None:
        super().__init__(network(dropout=0.0))
        self.acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.breaks_on = breaks_on
        self.outputs: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_rank == self.breaks_on:
            raise ValueError("only here")
        logits, y = self.predict_batch(batch)
        losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        self.acc(logits, y)
        self.outputs.append(losses.mean())
        self.log("val_loss", losses.mean(), batch_size=len(y))
        self.log("val_same", losses.mean(), batch_size=len(y), sync_dist=True)
        self.log("val_worst", losses.max(), batch_size=len(y), reduce_fx="max")
        self.log("val_least", losses.min(), batch_size=len(y), reduce_fx="min", sync_dist=True)
        self.log("val_total", losses.sum(), batch_size=len(y), reduce_fx="sum")
        self.log("val_acc", self.acc)

    def on_validation_epoch_end(self) -> None:
        self.log("val_mean_of_means", torch.stack(self.outputs).mean(), sync_dist=True)
        self.outputs.clear()


class Writes(pl.Callback):
    def __init__(self, monitor: TrainingErrorMonitor, folder: Path) -> None:
        self.monitor, self.folder = monitor, folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        record = {
            "history": self.monitor.history,
            "summary": self.monitor._summary(),
            "weights": pl_module.state_dict(),
            "logged": dict(trainer.callback_metrics),
        }
        torch.save(record, self.folder / f"rank{trainer.global_rank}.pt")


def fit_twice(folder: Path, module: Toy, *callbacks: Any) -> list[dict[str, Any]]:
    pl.seed_everything(0, verbose=False)
    run = trainer(*callbacks, Leave(), strategy="ddp_fork", devices=2, enable_checkpointing=True)
    run.fit(module, loader(shuffle=True), loader())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log:UserWarning")
def test_both_processes_have_the_number_of_all_samples(tmp_path: Path) -> None:
    monitor = TrainingErrorMonitor()
    module = Shared()
    first, second = fit_twice(tmp_path, module, monitor, Writes(monitor, tmp_path))
    history = first["history"]
    assert history == second["history"]
    assert history["num_samples"] == [48, 48]

    twin = Shared()
    twin.load_state_dict(first["weights"])
    x, y = samples().tensors
    logits = twin.eval()(x)
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none").detach()
    # normalization statistics are each rank's own during training; the first rank's are used
    expected = {
        "loss": losses.mean(),
        "same": losses.mean(),
        "worst": losses.max(),
        "least": losses.min(),
        "total": losses.sum(),
        "acc": (logits.argmax(1) == y).float().mean(),
        "mean_of_means": losses.mean(),
    }
    for column, value in expected.items():
        assert history[column][-1] == pytest.approx(value.item(), rel=1e-5), column
    assert float(first["logged"]["train_error/loss"]) == pytest.approx(history["loss"][-1])


class Whole(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weights = trainer.strategy.lightning_module_state_dict()
        buffers = dict(pl_module.named_buffers())
        torch.save([weights, buffers], self.folder / f"rank{trainer.global_rank}.pt")


class Halves(Shared):
    """Cut up by FSDP2."""

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


def fsdp2() -> ForkedModelParallel:
    return ForkedModelParallel(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        process_group_backend="gloo",
    )


STRATEGIES: dict[str, tuple[Any, type[Shared]]] = {
    "ddp": (lambda: "ddp_fork", Shared),
    "fsdp1": (lambda: ForkedSharded(process_group_backend="gloo", state_dict_type="full"), Shared),
    "fsdp2": (fsdp2, Halves),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_of_every_process_are_those_of_a_run_without(strategy: str, tmp_path: Path) -> None:
    build, kind = STRATEGIES[strategy]
    ends = []
    for callbacks in ([], [TrainingErrorMonitor()]):
        pl.seed_everything(0, verbose=False)
        run = trainer(
            *(*callbacks, Whole(tmp_path), Leave()),
            strategy=build(),
            devices=2,
            enable_checkpointing=True,
        )
        run.fit(kind(), loader(shuffle=True), loader())
        ends.append(
            [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
        )
        if callbacks:
            assert len(callbacks[0].history["loss"]) == 2
    for bare, watched in zip(*ends, strict=True):
        for one, other in zip(bare, watched, strict=True):
            assert one.keys() == other.keys()
            assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_step_that_fails_in_one_process_is_used_in_none(tmp_path: Path) -> None:
    monitor = TrainingErrorMonitor()

    class NotValidated(Shared):
        """Its validation would break the run itself."""

    module = NotValidated(breaks_on=1)
    pl.seed_everything(0, verbose=False)
    run = trainer(
        *(monitor, Writes(monitor, tmp_path), Leave()),
        strategy="ddp_fork",
        devices=2,
        enable_checkpointing=True,
        limit_val_batches=0,
    )
    run.fit(module, DataLoader(samples(), 8))
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert first["history"] == second["history"]
    assert "failed in another process" in first["summary"]
    assert "only here" in second["summary"]
    assert list(first["history"])[2:4] == ["error", "loss"]
