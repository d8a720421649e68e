"""A network that is good in training mode and bad in evaluation mode on the same data."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import EarlyStopping, TrainingErrorMonitor
from lightning_depth.callbacks._measuring import Measured
from lightning_depth.callbacks._mode_gap import Losses, ModeGap, find_gap_key, is_settled
from lightning_depth.findings import FindingKind, Severity
from tests.callbacks._runs import fit, trainer

CLASSES, WIDTH, NUM = 4, 16, 256


def data(size: int = 16, *, shuffle: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (NUM,), generator=generator)
    inputs = centers[labels] + torch.randn(NUM, WIDTH, generator=generator)
    return DataLoader(TensorDataset(inputs + 30, labels), size, shuffle=shuffle)  # off the origin


class Classifies(pl.LightningModule):
    def __init__(self, net: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def normalized(momentum: float | None = 0.1, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.BatchNorm1d(WIDTH, momentum=momentum)]
    for _ in range(3):
        layers += [
            nn.Linear(WIDTH, WIDTH),
            nn.BatchNorm1d(WIDTH, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(dropout),
        ]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def watch(
    module: pl.LightningModule, *others: Any, size: int = 16, epochs: int = 8
) -> TrainingErrorMonitor:
    pl.seed_everything(0, verbose=False)
    monitor = TrainingErrorMonitor(on_finding="log")
    run = trainer(monitor, *others, max_epochs=epochs)
    run.fit(module, data(size), data(size, shuffle=False))
    return monitor


def test_statistics_that_never_move_are_found() -> None:
    stopping = EarlyStopping("val/loss", patience=99, on_finding="log")
    monitor = watch(Classifies(normalized(momentum=0.0)), stopping)
    (finding,) = monitor.findings
    assert finding.kind is FindingKind.MODE_GAP
    assert "running statistics" in finding.message
    assert "4 of 4 normalization layers have a momentum below 0.001" in finding.suggestion
    assert finding.layers == ("net.0", "net.2", "net.6", "net.10")
    assert monitor.mode_gap is not None
    assert monitor.mode_gap > 3
    assert f"is {monitor.history['loss'][finding.step // 16 - 1]:.3g} with the running" in (  # type: ignore[operator]
        finding.message
    )


def test_a_layer_that_keeps_up_only_in_training_is_found() -> None:
    monitor = watch(Classifies(normalized(momentum=1e-4)))
    assert [finding.kind for finding in monitor.findings] == [FindingKind.MODE_GAP]


class TeacherForced(nn.Module):
    """Looks at its input in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = normalized()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.training else torch.zeros_like(x))  # type: ignore[no-any-return]


def test_statistics_that_did_not_follow_by_the_end_are_told_then() -> None:
    monitor = watch(Classifies(normalized(momentum=0.002)))  # 128 steps, and 2,500 are needed
    (finding,) = monitor.findings
    assert finding.kind is FindingKind.MODE_GAP
    assert "(epoch 7)" in finding.message


HEALTHY: dict[str, tuple[Any, dict[str, Any]]] = {
    "batch normalization": (lambda: Classifies(normalized()), {}),
    "cumulative statistics": (lambda: Classifies(normalized(momentum=None)), {}),
    "dropout": (lambda: Classifies(normalized(dropout=0.7)), {}),
    "few steps an epoch": (lambda: Classifies(normalized()), {"size": 128, "epochs": 30}),
    "small batches": (lambda: Classifies(normalized()), {"size": 4, "epochs": 4}),
    "slow statistics": (lambda: Classifies(normalized(momentum=0.03)), {"epochs": 20}),
    "no normalization": (lambda: Classifies(nn.Linear(WIDTH, CLASSES), lr=1e-4), {}),
    "a branch of its own": (lambda: Classifies(TeacherForced()), {}),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_nothing_else_that_differs_by_mode_is_taken_for_it(kind: str) -> None:
    build, options = HEALTHY[kind]
    monitor = watch(build(), **options)
    assert [each for each in monitor.findings if each.kind is FindingKind.MODE_GAP] == []
    assert monitor.mode_gap is None


def test_frozen_statistics_are_no_gap() -> None:
    module = Classifies(normalized(momentum=0.0))

    class Freeze(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            for part in pl_module.modules():
                if isinstance(part, nn.BatchNorm1d):
                    part.eval()

    monitor = watch(module, Freeze())
    assert monitor.mode_gap is None


def test_it_is_measured_on_the_module_as_it_was() -> None:
    runs = []
    for callbacks in ([], [TrainingErrorMonitor()]):
        pl.seed_everything(0, verbose=False)
        module = Classifies(normalized(dropout=0.3))
        trainer(*callbacks, max_epochs=3).fit(module, data(), data(shuffle=False))
        runs.append(module.state_dict())
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


# How it is judged.

WIDE, NARROW = Losses(9.0, 1.0, 1.0), Losses(1.1, 1.0)


def test_three_wide_gaps_in_a_row_are_needed() -> None:
    gap, told = ModeGap(), []
    for losses in (WIDE, WIDE, NARROW, WIDE, WIDE, WIDE):
        gap.take(losses, settled=True)
        told.append(gap.lasts)
    assert told == [False, False, False, False, False, True]
    assert gap.settled == 3


@pytest.mark.parametrize(
    "losses",
    [
        Losses(2.9, 1.0, 1.0),
        Losses(1e-3, 1e-5, 1e-5),
        Losses(-3.0, -9.0, -9.0),
        Losses(math.nan, 1.0, 1.0),
        Losses(5.0, math.nan, 1.0),
        Losses(20.0, 1.4, 0.01),
    ],
    ids=["narrow", "small", "negative", "no number", "no reference", "bad either way"],
)
def test_other_gaps_do_not_count(losses: Losses) -> None:
    gap = ModeGap()
    gap.take(NARROW, settled=True)
    for _ in range(5):
        gap.take(losses, settled=True)
    assert not gap.lasts


def test_an_infinite_loss_in_evaluation_mode_counts() -> None:
    gap = ModeGap()
    for _ in range(3):
        gap.take(Losses(math.inf, 1.0, 1.0), settled=True)
    assert gap.lasts


@pytest.mark.parametrize(
    ("momentum", "step", "settled"),
    [
        (0.1, 49, False),
        (0.1, 50, True),
        (0.01, 499, False),
        (0.01, 500, True),
        (0.0001, 50, True),
        (0.0, 50, True),
        (None, 50, True),
    ],
)
def test_statistics_get_the_time_that_their_momentum_needs(
    momentum: float | None, step: int, settled: bool
) -> None:
    layers: dict[str, nn.Module] = {"norm": nn.BatchNorm1d(2, momentum=momentum)}
    assert is_settled(layers, step) is settled


def test_a_loss_is_looked_for() -> None:
    assert find_gap_key(["acc", "kl_loss", "loss"]) == "loss"
    assert find_gap_key(["acc", "kl_loss"]) == "kl_loss"
    assert find_gap_key(["acc"]) is None


@pytest.mark.parametrize(
    ("wide", "told"), [(4, []), (11, [Severity.INFO]), (20, [Severity.WARNING])]
)
def test_statistics_that_lag_for_a_few_epochs_are_no_gap(
    wide: int, told: list[Severity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that learns fast is bad in evaluation mode for a few epochs; what closes is no fault."""
    passes = {"running": 0}

    def scripted(*args: Any, batch_statistics: Any = (), **kwargs: Any) -> Measured:
        passes["running"] += not batch_statistics
        lags = passes["running"] <= wide
        return Measured({"val/loss": 0.7 if lags and not batch_statistics else 0.1}, 48)

    monkeypatch.setattr("lightning_depth.callbacks.training_error.measure", scripted)
    monkeypatch.setattr("lightning_depth.callbacks.training_error.UPDATES", 0)
    monkeypatch.setattr("lightning_depth.callbacks.training_error.is_settled", lambda *_: True)
    monitor = TrainingErrorMonitor(on_finding="log")
    fit(monitor, max_epochs=12)
    assert [finding.severity for finding in monitor.findings] == told
    assert all(finding.kind is FindingKind.MODE_GAP for finding in monitor.findings)
