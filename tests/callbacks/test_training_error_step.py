"""The module's own validation step on training data: what it says, and what it leaves behind."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score

from lightning_depth.callbacks import EarlyStopping, TrainingErrorMonitor
from tests.callbacks._runs import BATCH_SIZE, NUM_CLASSES, Toy, loader, samples, trainer

UNEVEN = 5
"""A batch size that leaves a last batch of another size: 48 = 9 * 5 + 3."""


def uneven() -> DataLoader[Any]:
    return DataLoader(samples(), batch_size=UNEVEN)


class Logs(Toy):
    """Logs in every way that Lightning knows."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.best = MaxMetric()
        self.several = MetricCollection(
            {
                "f1": MulticlassF1Score(NUM_CLASSES, average="macro"),
                "auroc": MulticlassAUROC(NUM_CLASSES),
            },
            prefix="val/",
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits, y = self.predict_batch(batch)
        loss = nn.functional.cross_entropy(logits, y)
        self.acc(logits, y)
        self.several.update(logits, y)
        self.log("val_loss", loss, prog_bar=True)
        self.log("val_both", loss, on_step=True, on_epoch=True)
        self.log("val_step_only", loss, on_step=True, on_epoch=False)
        self.log("val_acc", self.acc)
        self.log("val_biggest", loss, reduce_fx="max")
        self.log("val_smallest", loss, reduce_fx=torch.min)
        self.log("val_sum", loss, reduce_fx="sum")
        self.log("val_alone", loss, batch_size=1)
        self.log_dict({"valid/one": loss * 2, "valid/number": float(len(y))})

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.several.compute())
        self.best(self.acc.compute())
        self.log("val_acc_best", self.best.compute())
        self.several.reset()


def validated(module: pl.LightningModule, data: Any) -> dict[str, float]:
    """What Lightning's own validation says of data."""
    run = trainer()
    (found,) = run.validate(module, data, verbose=False)
    return dict(found)


def test_every_logged_value_is_what_lightning_says_of_the_same_data() -> None:
    pl.seed_everything(0, verbose=False)
    module, monitor = Logs(), TrainingErrorMonitor()
    trainer(monitor).fit(module, uneven(), loader())
    expected = validated(module, uneven())
    history = monitor.history
    assert history["num_samples"] == [48, 48]
    named = {
        "loss": "val_loss",
        "both": "val_both_epoch",
        "acc": "val_acc",
        "biggest": "val_biggest",
        "smallest": "val_smallest",
        "sum": "val_sum",
        "alone": "val_alone",
        "one": "valid/one",
        "number": "valid/number",
        "f1": "val/f1",
        "auroc": "val/auroc",
        "acc_best": "val_acc_best",
    }
    for column, key in named.items():
        assert history[column][-1] == pytest.approx(expected[key], rel=1e-5), column
    assert set(history) - set(named) == {
        *("epoch", "step", "num_samples"),
        *(f"val/{column}" for column in named if history[f"val/{column}"][0] is not None),
    }


def test_validation_of_the_same_epoch_stands_beside_it() -> None:
    module, monitor = Logs(), TrainingErrorMonitor()
    run = trainer(monitor, check_val_every_n_epoch=2, max_epochs=4)
    run.fit(module, loader(), uneven())
    column = monitor.history["val/loss"]
    assert column[0] is None
    assert column[2] is None
    assert column[3] == pytest.approx(float(run.callback_metrics["val_loss"]))


@pytest.mark.parametrize(
    ("monitored", "column"),
    [
        ("val_loss", "loss"),
        ("val_loss/dataloader_idx_1", "loss"),
        ("val_both_epoch", "both"),
        ("valid/one", "one"),
        ("train_loss", None),
        ("val_step_only", None),
    ],
)
def test_twin_is_what_the_same_line_logs(monitored: str, column: str | None) -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor, max_epochs=1).fit(Logs(), loader(), loader())
    assert monitor.twin_of(monitored) == column


# Nothing is left behind.


class Keeps(Logs):
    """A module whose validation changes all that a module can hold, and speaks to everyone."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(2))
        self.outputs: list[Tensor] = []
        self.alias = self.outputs
        self.nested: dict[str, Any] = {"seen": deque([1, 2], maxlen=3), "names": {"a"}}
        self.calls = 0
        self.plain = torch.zeros(3)
        self.array = np.zeros(3)
        self.meter = SimpleNamespace(total=0.0, parts=[])
        self.draws = np.random.default_rng(0)
        self.generator = torch.Generator().manual_seed(3)
        self.words = random.Random(5)
        self.mean = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.mean.update(torch.rand(1, generator=self.generator))  # halfway through an epoch
        noise = 1e-3 * float(self.draws.random() + self.words.random() + random.random())
        return super().training_step(batch, batch_idx) * (1 + noise)

    def on_validation_epoch_start(self) -> None:
        self.outputs = []
        self.started = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        logits, _ = self.predict_batch(batch)
        self.outputs.append(logits.mean())
        self.alias.append(logits)
        self.nested["seen"].append(batch_idx)
        self.nested["names"].add(str(batch_idx))
        self.nested["new"] = 1
        self.calls += 1
        self.running.data.add_(1)
        self.plain += 1
        self.array += 1
        self.meter.total += 1
        self.meter.parts.append(1)
        self.draws.random(), self.words.random(), random.random(), np.random.rand()
        torch.rand(2, generator=self.generator), torch.rand(2)
        self.mean.update(1.0)
        self.net[-2].p = 0.9
        for each in self.trainer.loggers:
            each.log_metrics({"pictures": 1.0}, step=self.calls)
            if hasattr(each.experiment, "add_scalar"):
                each.experiment.add_scalar("direct", 1.0)
        with torch.enable_grad():
            nn.functional.cross_entropy(*self.predict_batch(batch)).backward()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val/mean_output", torch.stack(self.outputs).mean())
        self.log("val/mean", self.mean.compute())
        self.mean.reset()
        self.outputs.clear()
        self.optimizers().param_groups[0]["lr"] *= 0.5  # type: ignore[union-attr]
        self.trainer.should_stop = self.trainer.should_stop or self.last_of_three()

    def last_of_three(self) -> bool:
        return False


class KeepsInTraining(Keeps):
    """The same without validation, so that all that its step changes is the monitor's doing."""

    def last_of_three(self) -> bool:
        return True


def everything(module: Any) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    metrics = {
        f"{name}.{key}": copy.deepcopy(value)
        for name, part in module.named_modules()
        if hasattr(part, "metric_state")
        for key, value in part.metric_state.items()
    }
    rest = {
        "outputs": len(module.outputs),
        "alias": len(module.alias),
        "same": module.alias is module.outputs,
        "nested": copy.deepcopy(module.nested),
        "calls": module.calls,
        "plain": module.plain.clone(),
        "array": module.array.tolist(),
        "meter": copy.deepcopy(vars(module.meter)),
        "draws": module.draws.bit_generator.state,
        "generator": module.generator.get_state(),
        "words": module.words.getstate(),
        "modes": [part.training for part in module.modules()],
        "dropout": module.net[-2].p,
        "started": hasattr(module, "started"),
        "own": sorted(vars(module)),
        "gradients": [
            None if each.grad is None else each.grad.clone() for each in module.parameters()
        ],
        "rng": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),  # type: ignore[index]
    }
    return {**state, **metrics, **rest}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


class Remembers(pl.Callback):
    """State after each batch and at the end of each epoch, after the callbacks before it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        self.seen.append(everything(pl_module))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append({**everything(pl_module), "lr": learning_rate})


def watched_run(kind: type[Keeps], folder: Path, *callbacks: Any) -> tuple[list[Any], Any]:
    pl.seed_everything(11, verbose=False)
    remembers = Remembers()
    loggers = [CSVLogger(folder / "csv"), TensorBoardLogger(folder / "board")]
    run = trainer(*callbacks, remembers, logger=loggers, max_epochs=3)
    validation = loader() if kind is Keeps else None
    run.fit(kind(), loader(shuffle=True), validation)
    return remembers.seen, run


@pytest.mark.parametrize("kind", [Keeps, KeepsInTraining])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_the_whole_state_is_that_of_a_run_without(kind: type[Keeps], tmp_path: Path) -> None:
    bare, bare_run = watched_run(kind, tmp_path / "bare")
    monitor = TrainingErrorMonitor()
    watched, run = watched_run(kind, tmp_path / "watched", monitor)
    assert len(monitor.history["loss"]) == 3
    assert len(bare) == len(watched)
    for number, (one, other) in enumerate(zip(bare, watched, strict=True)):
        differing = [key for key in one if not same(one[key], other.get(key))]
        assert differing == [], number
    own = {key: value for key, value in run.callback_metrics.items() if "train_error" not in key}
    assert same(own, bare_run.callback_metrics)
    assert run.progress_bar_metrics == bare_run.progress_bar_metrics


def test_only_the_monitors_own_rows_reach_a_logger(tmp_path: Path) -> None:
    watched_run(Keeps, tmp_path / "bare")
    watched_run(Keeps, tmp_path / "watched", TrainingErrorMonitor())
    tables = [
        next((tmp_path / name).rglob("metrics.csv")).read_text() for name in ("bare", "watched")
    ]
    rows = [
        [
            {
                key: value
                for key, value in zip(text.splitlines()[0].split(","), row.split(","), strict=True)
                if value and "train_error" not in key
            }
            for row in text.splitlines()[1:]
        ]
        for text in tables
    ]
    kept = [[row for row in table if set(row) - {"step", "epoch"}] for table in rows]
    assert kept[0] == kept[1]


def test_what_a_step_prints_or_sends_to_wandb_does_not_arrive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Any] = []
    run = SimpleNamespace(log=sent.append)
    fake = SimpleNamespace(run=run, log=run.log)
    monkeypatch.setitem(sys.modules, "wandb", fake)

    class Speaks(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            fake.log({"picture": 1})
            fake.run.log({"picture": 2})
            sys.stdout.write("speaks")

    module, monitor = Speaks(), TrainingErrorMonitor()
    trainer(monitor, limit_val_batches=0).fit(module, loader(), loader())
    assert len(monitor.history["loss"]) == 2
    assert sent == []
    assert "speaks" not in capsys.readouterr().out
    fake.log("after")
    assert sent == ["after"]


class LoggersOfItsOwn(Toy):
    def __init__(self, written: list[Any]) -> None:
        super().__init__()
        self.writer = SimpleWriter(written)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.writer.add_scalar("x", 1.0, batch_idx)
        assert self.logger is None or self.logger.log_dir
        assert len(self.trainer.val_dataloaders) == self.trainer.num_val_batches[0]


class SimpleWriter:
    def __init__(self, written: list[Any]) -> None:
        self.written = written

    def add_scalar(self, *arguments: Any) -> None:
        self.written.append(arguments)


def test_a_writer_on_the_module_stays_silent(tmp_path: Path) -> None:
    written: list[Any] = []
    monitor = TrainingErrorMonitor()
    run = trainer(monitor, limit_val_batches=0, logger=CSVLogger(tmp_path))
    run.fit(LoggersOfItsOwn(written), loader(), loader())
    assert len(monitor.history["loss"]) == 2
    assert written == []


class ChangesWeights(Toy):
    """Clips its weights when validation begins, which no later pass could put back."""

    def on_validation_epoch_start(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.data.mul_(0.5)


def test_a_step_that_changes_weights_is_not_used() -> None:
    pl.seed_everything(0, verbose=False)
    bare = ChangesWeights()
    trainer(limit_val_batches=0).fit(bare, loader(), loader())
    pl.seed_everything(0, verbose=False)
    module, monitor = ChangesWeights(), TrainingErrorMonitor()
    trainer(monitor, limit_val_batches=0).fit(module, loader(), loader())
    assert same(bare.state_dict(), module.state_dict())
    assert "it changes the weights" in monitor._summary()
    assert monitor.twin_of("val/loss") is None


class Swaps(Toy):
    """Validates with other weights and puts its own back, as averages of weights are used."""

    def on_validation_epoch_start(self) -> None:
        self.backup = [parameter.detach().clone() for parameter in self.parameters()]
        for parameter in self.parameters():
            parameter.data.zero_()

    def on_validation_epoch_end(self) -> None:
        for parameter, saved in zip(self.parameters(), self.backup, strict=True):
            parameter.data.copy_(saved)


def test_a_step_that_validates_other_weights_is_measured_with_them() -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor).fit(Swaps(), loader(), loader())
    assert monitor.history["loss"] == pytest.approx([float(np.log(NUM_CLASSES))] * 2)


def keep_the_first(average: Tensor, current: Tensor, count: Tensor) -> Tensor:
    return average


def test_averaged_weights_are_measured_where_validation_measures_them() -> None:
    pl.seed_everything(0, verbose=False)
    averaging = WeightAveraging(avg_fn=keep_the_first)
    module, monitor = Toy(), TrainingErrorMonitor()
    trainer(monitor, averaging, max_epochs=3).fit(module, loader(), loader())
    assert monitor.history["loss"] == pytest.approx(monitor.history["val/loss"], rel=1e-5)
    pl.seed_everything(0, verbose=False)
    bare = Toy()
    trainer(WeightAveraging(avg_fn=keep_the_first), max_epochs=3).fit(bare, loader(), loader())
    assert same(bare.state_dict(), module.state_dict())


# How steps are written.


class OnlyBatch(Toy):
    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        super().validation_step(batch, 0)


class WithLoaderNumber(Toy):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # type: ignore[override]
        assert self.trainer.val_dataloaders[dataloader_idx] is not None
        super().validation_step(batch, batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:  # type: ignore[override]
        assert dataloader_idx in (0, 1)


@pytest.mark.parametrize("kind", [OnlyBatch, WithLoaderNumber])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_every_signature_is_called_as_lightning_calls_it(kind: type[Toy]) -> None:
    module, monitor = kind(), TrainingErrorMonitor()
    trainer(monitor).fit(module, loader(), [loader(), loader()] if kind is not OnlyBatch else None)
    logits, labels = module.eval()(samples().tensors[0]), samples().tensors[1]
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert monitor.history["loss"][-1] == pytest.approx(loss, rel=1e-5)


class SeesValidation(Toy):
    """A module that does in validation what it does not do in training."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return (x + 100 if self.trainer.training else x), y

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self.trainer.validating
        assert not self.trainer.sanity_checking
        assert not torch.is_grad_enabled()
        assert not self.training
        super().validation_step(batch, batch_idx)


def test_the_trainer_says_that_it_validates() -> None:
    module, monitor = SeesValidation(), TrainingErrorMonitor()
    trainer(monitor, limit_val_batches=0).fit(module, loader(), loader())
    expected = validated(module, loader())["val/loss"]
    assert monitor.history["loss"][-1] == pytest.approx(expected)


class FailsAtTheEnd(Toy):
    def on_validation_epoch_end(self) -> None:
        raise KeyError("only of validation data")


def test_an_end_of_the_epoch_that_fails_is_left_out() -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor, limit_val_batches=0).fit(FailsAtTheEnd(), loader(), loader())
    assert len(monitor.history["loss"]) == 2
    assert "only of validation data" in monitor._summary()


class FailsLater(Toy):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("another form")
        super().validation_step(batch, batch_idx)


def test_a_step_that_fails_later_ends_the_measuring_and_not_the_run() -> None:
    monitor = TrainingErrorMonitor()
    run = trainer(monitor, limit_val_batches=0, max_epochs=3)
    with pytest.warns(UserWarning, match="^TrainingErrorMonitor measures nothing: it failed in ep"):
        run.fit(FailsLater(), loader(), loader())
    assert run.current_epoch == 3
    assert monitor.history["epoch"] == [0]
    assert monitor._summary() == (
        "TrainingErrorMonitor measured nothing: it failed in epoch 1 (RuntimeError: another form)."
    )


def test_loss_can_be_monitored_on_training_data() -> None:
    stopping = EarlyStopping("train_error/loss", patience=1, check_on_train_epoch_end=True)
    monitor = TrainingErrorMonitor()
    trainer(stopping, monitor, max_epochs=3).fit(Toy(), loader(), loader())
    assert stopping.history["score"] == pytest.approx(monitor.history["loss"], rel=1e-6)


def test_chance_is_known_where_the_step_logs_what_classes_give() -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor).fit(Logs(), loader(), loader())
    shares = torch.as_tensor(samples().tensors[1]).bincount() / len(samples())
    assert monitor.chance_loss == pytest.approx(float(-(shares * shares.log()).sum()))
    assert monitor.chance_error == pytest.approx(1 - float(shares.max()))


class Squares(Toy):
    """Logs a loss that is no cross-entropy of its classes."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits, y = self.predict_batch(batch)
        target = nn.functional.one_hot(y, NUM_CLASSES).float()
        self.log("val_loss", nn.functional.mse_loss(logits, target))


def test_chance_is_not_known_of_another_loss() -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor).fit(Squares(), loader(), loader())
    assert (monitor.chance_error, monitor.chance_loss) == (None, None)


def test_figure_has_a_curve_for_training_and_validation_and_chance(tmp_path: Path) -> None:
    monitor = TrainingErrorMonitor()
    trainer(monitor).fit(Logs(), loader(), loader())
    figure, axes = monitor.plot()
    assert axes.get_xlim()[0] <= 0
    labels = {
        line.get_label(): line
        for each in figure.axes
        if each.get_ylabel() == "loss"
        for line in each.lines
    }
    curve = labels["training data, evaluation mode"]
    assert np.asarray(curve.get_ydata()).tolist() == monitor.history["loss"]
    assert np.asarray(curve.get_xdata()).tolist() == [0, 1]
    assert np.asarray(labels["validation"].get_ydata()).tolist() == monitor.history["val/loss"]
    assert float(np.asarray(labels["chance"].get_ydata())[0]) == monitor.chance_loss


def test_a_batch_size_of_the_loader_is_the_samples(tmp_path: Path) -> None:
    monitor = TrainingErrorMonitor(max_samples=20)
    trainer(monitor, max_epochs=1).fit(Toy(), loader(), loader())
    assert monitor.history["num_samples"] == [3 * BATCH_SIZE]
