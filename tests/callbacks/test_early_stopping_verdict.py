"""The verdict at the end of a run, and runs of Trainers by the older name."""

from __future__ import annotations

import pickle
import re
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import EarlyStopping, TrainingErrorMonitor
from lightning_depth.findings import FindingKind
from tests.callbacks.stopping_models import (
    QUIET,
    SCRIPT,
    ScriptedModule,
    differing,
    loader,
    tensors_of,
)


class Digits(pl.LightningModule):
    def __init__(self, lr: float, width: int = 64) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.net(inputs)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


def run(
    *, lr: float, samples: int, epochs: int, shuffled: bool = False, monitor: bool = True
) -> list[Any]:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    inputs, targets = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
    train, val = slice(0, samples), slice(1200, None)
    given = targets[train][torch.randperm(samples)] if shuffled else targets[train]
    stopping = EarlyStopping("val_loss", patience=1000, on_finding="log")
    callbacks: list[Any] = [stopping, TrainingErrorMonitor()] if monitor else [stopping]
    trainer = pl.Trainer(**QUIET, max_epochs=epochs, callbacks=callbacks)
    trainer.fit(
        Digits(lr),
        DataLoader(TensorDataset(inputs[train], given), 50, shuffle=True),
        DataLoader(TensorDataset(inputs[val], targets[val]), 600),
    )
    assert len(callbacks) == 1 or callbacks[1].findings == []
    return stopping.findings


def test_shuffled_labels_do_not_generalise() -> None:
    (finding,) = run(lr=0.01, samples=100, epochs=30, shuffled=True)
    assert finding.kind is FindingKind.OVERFITTING


def test_too_small_a_learning_rate_is_underfitting() -> None:
    (finding,) = run(lr=1e-5, samples=400, epochs=6)
    assert finding.kind is FindingKind.UNDERFITTING
    assert "more regularization would make it worse" in finding.suggestion
    expected = (
        r"Neither is much better than chance \(2\.\d+\) at the end: train_error/loss went from "
    )
    assert re.match(expected, finding.message)


def test_where_chance_is_not_known_nothing_is_said_of_it() -> None:
    assert run(lr=1e-5, samples=400, epochs=6, monitor=False) == []


class Autoencoder(Digits):
    """Its training monitor may take the pixels that it returns for logits; it learns well."""

    def __init__(self) -> None:
        super().__init__(3e-3)
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = 64 * nn.functional.mse_loss(self(batch[0]), batch[0])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 64 * nn.functional.mse_loss(self(batch[0]), batch[0]))


def fit_digits(module: Digits, *callbacks: Any, epochs: int) -> None:
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16).float(), torch.tensor(labels)
    trainer = pl.Trainer(**QUIET, max_epochs=epochs, callbacks=list(callbacks))
    trainer.fit(
        module,
        DataLoader(TensorDataset(inputs[:1200], targets[:1200]), 50, shuffle=True),
        DataLoader(TensorDataset(inputs[1200:], targets[1200:]), 600),
    )


def test_an_autoencoder_is_not_held_against_chance_of_its_labels() -> None:
    torch.manual_seed(0)
    stopping = EarlyStopping("val_loss", patience=1000, on_finding="log")
    fit_digits(Autoencoder(), stopping, TrainingErrorMonitor(), epochs=8)
    kinds = {finding.kind for finding in stopping.findings}
    assert kinds <= {FindingKind.STILL_IMPROVING}


def test_a_fine_tuning_that_is_flat_and_low_is_healthy() -> None:
    torch.manual_seed(0)
    module = Digits(1e-2)
    fit_digits(module, epochs=12)
    module.lr = 1e-6
    stopping = EarlyStopping("val_loss", patience=1000, on_finding="log")
    fit_digits(module, stopping, epochs=8)
    assert stopping.findings == []


class Constant(Digits):
    """Answers without looking, and begins far from chance: sure of the first class."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.bias = nn.Parameter(torch.tensor([20.0] + 9 * [0.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.bias + 0.0 * self.net(inputs)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.2)


def test_a_network_that_ends_at_chance_is_not_over_fitted() -> None:
    torch.manual_seed(0)
    module, data = Constant(), torch.zeros(600, 64)
    stopping = EarlyStopping("val_loss", patience=1000, on_finding="log")
    trainer = pl.Trainer(**QUIET, max_epochs=20, callbacks=[stopping, TrainingErrorMonitor()])
    trainer.fit(
        module,
        DataLoader(TensorDataset(data, torch.arange(600) % 10), 50, shuffle=True),
        DataLoader(TensorDataset(data, torch.zeros(600).long()), 600),  # the first class only
    )
    scores = stopping.history["score"]
    assert scores[0] < scores[-1]
    (finding,) = stopping.findings
    assert finding.kind is FindingKind.UNDERFITTING


class Fitted(Digits):
    """Tells the class of training data from the first step on."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = 50.0 * nn.functional.one_hot(inputs[:, 0].long(), 10) * self.scale
        return logits

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_err", (self(batch[0]).argmax(1) != batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.scale], 0.0)


@pytest.mark.parametrize("monitor", ["val_err", "val_loss"])
def test_one_class_that_is_always_right_ends_no_run(monitor: str) -> None:
    inputs, labels = torch.full((40, 64), 3.0), torch.full((40,), 3)
    stopping = EarlyStopping(monitor, patience=1000, on_finding="log")
    training = TrainingErrorMonitor(on_finding="log")
    trainer = pl.Trainer(**QUIET, max_epochs=6, callbacks=[training, stopping])
    trainer.fit(
        Fitted(),
        DataLoader(TensorDataset(inputs, labels), 20),
        DataLoader(TensorDataset(inputs, labels + 1), 20),
    )
    assert len(stopping.history["score"]) == 6
    assert stopping.findings == []


# Trainers of pytorch_lightning.


class OldModule(pytorch_lightning.LightningModule):
    """Logs its metric where only callbacks known to the Trainer see it in the same epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.scripted = ScriptedModule()
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.scripted.count.add_(1)
        return nn.functional.mse_loss(self.scripted(batch[0]), batch[1])

    def on_train_epoch_end(self) -> None:
        self.log("metric", SCRIPT[min(self.current_epoch, 6)])
        self.seen.append(tensors_of(self))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.scripted.parameters(), lr=0.05, momentum=0.9)


def test_trainer_by_the_older_name_treats_it_as_its_own() -> None:
    module = OldModule()
    stopping: Any = EarlyStopping(
        "metric", restore_best_weights=True, check_on_train_epoch_end=True
    )
    trainer = pytorch_lightning.Trainer(**QUIET, max_epochs=20, callbacks=[stopping])
    trainer.fit(module, loader())
    assert (stopping.best_epoch, stopping.stopped_epoch) == (2, 5)
    assert stopping.history["score"] == [3.0, 2.0, 1.0, 5.0, 5.0, 5.0]
    assert differing(module, module.seen[2]) == []
    assert type(stopping) is EarlyStopping  # afterwards


class PicklesItself(pytorch_lightning.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        (stopping,) = [cb for cb in trainer.callbacks if isinstance(cb, EarlyStopping)]
        assert isinstance(stopping, pytorch_lightning.callbacks.EarlyStopping)
        assert trainer.early_stopping_callback is stopping
        assert type(pickle.loads(pickle.dumps(stopping))) is EarlyStopping
        assert stopping.state_key == "EarlyStopping{'monitor': 'metric', 'mode': 'min'}"


def test_it_can_be_pickled_while_such_a_trainer_runs() -> None:
    stopping: Any = EarlyStopping("metric", check_on_train_epoch_end=True)
    callbacks: list[Any] = [stopping, PicklesItself()]
    trainer = pytorch_lightning.Trainer(**QUIET, max_epochs=2, callbacks=callbacks)
    trainer.fit(OldModule(), loader())
    assert len(stopping.history["score"]) == 2


def test_training_monitor_under_the_older_name() -> None:
    monitor: Any = TrainingErrorMonitor(predict="answer")

    class Classifies(OldModule):
        def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
            value = self.scripted(batch[0])
            return torch.cat([value, -value], 1), (batch[1][:, 0] < 0).long()

    trainer = pytorch_lightning.Trainer(**QUIET, max_epochs=2, callbacks=[monitor])
    trainer.fit(Classifies(), loader())
    assert monitor.history["num_samples"] == [8, 8]
