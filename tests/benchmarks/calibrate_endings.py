"""How often the verdict on how training ended is right: 20 seeds of each kind of run.

    python tests/benchmarks/calibrate_endings.py [first seed] [part of a run's name] [seeds]

Thresholds were set on seeds 100 to 119; the table in docs/calibration.md is of seeds 0 to 19.
Prints a Markdown table.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.callbacks import EarlyStopping, TrainingErrorMonitor
from lightning_depth.functional.curves import judge_curves

SEEDS = 20


class Net(pl.LightningModule):
    """An MLP with the optimizer and schedule of the case."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.net(inputs)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_error", (logits.argmax(1) != batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class Autoencoder(Net):
    """A variational autoencoder, whose batches bring labels all the same."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__(nn.Identity(), optimizer)
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.decoder(self.encoder(inputs)[:, :8])
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean, log_variance = self.encoder(batch[0]).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        pixels = nn.functional.binary_cross_entropy_with_logits(self.decoder(code), batch[0])
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        loss: Tensor = 64 * pixels + divergence
        self.log("train_loss" if self.training else "val_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)


class Unfinite(Net):
    """Monitors a number that never is one; training is as it should be."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_ratio", torch.tensor(0.0) / 0)


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return an MLP on digits."""
    sizes = [64, *widths]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def sgd(lr: float, decay: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer factory."""
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=decay)


def adam(lr: float) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer factory."""
    return lambda parameters: torch.optim.Adam(parameters, lr)


def at_chance() -> nn.Sequential:
    """Return an MLP whose hidden units are dead and whose answer is wrong and sure."""
    net = mlp(64)
    hidden, answer = (layer for layer in net if isinstance(layer, nn.Linear))
    nn.init.constant_(hidden.bias, -10.0)
    nn.init.normal_(answer.bias, std=8.0)
    return net


MONITORS = ("val_loss", "val_error")


@dataclass(frozen=True)
class Case:
    """A kind of run on digits.

    ``fitted`` epochs come before those that are judged, at a higher rate; ``alone`` is without a
    training monitor.
    """

    expected: str
    size: int
    wrong: float
    epochs: int
    build: Callable[[], nn.Module]
    optimizer: Any
    module: Callable[..., Net] = Net
    monitors: Sequence[str] = MONITORS
    fitted: int = 0
    alone: bool = False


# what is expected, training samples, share of wrong training labels, epochs, net, optimizer
CASES: dict[str, Case] = {
    "over-fits: 200 samples, 30 % wrong labels": Case(
        "OVERFITTING", 200, 0.3, 60, lambda: mlp(128, 128), adam(3e-3)),
    "over-fits: 100 samples, 20 % wrong labels, deep": Case(
        "OVERFITTING", 100, 0.2, 60, lambda: mlp(64, 64, 64, 64), adam(5e-3)),
    "under-fits: learning rate 1,000 times too small": Case(
        "UNDERFITTING", 800, 0.0, 15, lambda: mlp(64), sgd(1e-4)),
    "under-fits: ten sigmoid layers": Case(
        "UNDERFITTING", 800, 0.0, 15, lambda: mlp(*[32] * 10, activation=nn.Sigmoid), sgd(0.05)),
    "under-fits: one unit wide": Case("UNDERFITTING", 800, 0.0, 20, lambda: mlp(1), sgd(0.02)),
    "under-fits: weight decay 0.3": Case(
        "UNDERFITTING", 800, 0.0, 15, lambda: mlp(64, 64), sgd(0.02, 0.3)),
    "labels shuffled": Case("OVERFITTING", 200, 1.0, 60, lambda: mlp(256), adam(3e-3)),
    "healthy: weight decay 0.001, 1,200 samples": Case(
        "-", 1200, 0.0, 25, lambda: mlp(64, 64), sgd(0.05, 1e-3)),
    "stopped too early": Case("STILL_IMPROVING", 1200, 0.0, 6, lambda: mlp(64), sgd(0.01)),
    "ends at chance after a bad start": Case(
        "UNDERFITTING", 800, 0.0, 20, at_chance, sgd(0.1)),
    "healthy: variational autoencoder": Case(
        "-", 1200, 0.0, 60, nn.Identity, adam(2e-3),
        lambda _, optimizer: Autoencoder(optimizer), ("val_loss",)),
    "healthy: fine-tuning, flat and low": Case(
        "-", 1200, 0.0, 8, lambda: mlp(64), adam(1e-5), fitted=20),
    "healthy: fine-tuning, flat and low, no training monitor": Case(
        "-", 1200, 0.0, 8, lambda: mlp(64), adam(1e-5), fitted=20, alone=True),
    "healthy: no training error from the first check on": Case(
        "-", 200, 0.0, 8, lambda: mlp(128), adam(1e-5), fitted=60),
    "healthy: a monitor that never is finite": Case(
        "-", 1200, 0.0, 6, lambda: mlp(64, 64), sgd(0.05, 1e-3), Unfinite, ("val_ratio",)),
}  # fmt: skip


def run(name: str, seed: int) -> list[str]:
    """Return the kind of the first finding of a run, "-" without one, by each metric."""
    case = CASES[name]
    pl.seed_everything(seed, verbose=False)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels))
    inputs, targets = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
    train, val = slice(0, case.size), slice(1200, None)
    noisy = targets[train].clone()
    changed = torch.rand(case.size) < case.wrong
    noisy[changed] = noisy[changed][torch.randperm(int(changed.sum()))]
    stopping = [
        EarlyStopping(monitor, patience=1000, check_finite=False) for monitor in case.monitors
    ]
    module = case.module(case.build(), case.optimizer)
    loaders = (
        DataLoader(TensorDataset(inputs[train], noisy), 50, shuffle=True),
        DataLoader(TensorDataset(inputs[val], targets[val]), 600),
    )
    if case.fitted:
        module.optimizer = adam(3e-3)
        quiet_trainer(case.fitted, []).fit(module, *loaders)
        module.optimizer = case.optimizer
    monitors: list[Any] = [] if case.alone else [TrainingErrorMonitor()]
    quiet_trainer(case.epochs, [*monitors, *stopping]).fit(module, *loaders)
    found = [callback.findings for callback in stopping]
    return [findings[0].kind.value if findings else "-" for findings in found]


def quiet_trainer(epochs: int, callbacks: list[Any]) -> pl.Trainer:
    """Return a Trainer on the CPU that writes nothing."""
    return pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip


def flat(seed: int, correlation: float) -> str:
    """Return the verdict on a flat validation curve with noise of 5 %, while training falls."""
    draw, noise, curve = random.Random(seed), 0.0, []
    for _ in range(30):
        fresh = draw.gauss(0, 0.05 * (1 - correlation**2) ** 0.5)
        noise = correlation * noise + fresh
        curve.append(1 + noise)
    verdict = judge_curves(curve, [0.9**epoch for epoch in range(30)], chance=2.3)
    return "-" if verdict is None else verdict.kind


def row(name: str, expected: str, kinds: list[str]) -> str:
    """Return a line of the table; the verdict box of each run goes to standard output too."""
    others = Counter(kind for kind in kinds if kind != expected)
    told = ", ".join(f"{kind} {count}" for kind, count in others.items()) or "none"
    return f"| {name} | {expected} | {kinds.count(expected)} of {len(kinds)} | {told} |"


def main() -> None:
    """Print the table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    seeds = range(first, first + (int(sys.argv[3]) if len(sys.argv) > 3 else SEEDS))
    print("| run | expected | right | others |\n| --- | --- | --- | --- |")
    for correlation in (0.0, 0.5):
        name = f"flat curve of 30 checks, noise 5 %, correlation {correlation}"
        print(row(name, "-", [flat(seed, correlation) for seed in seeds]))
    for name, case in CASES.items():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        columns = zip(*(run(name, seed) for seed in seeds), strict=True)
        for monitor, kinds in zip(case.monitors, columns, strict=True):
            print(row(f"{name} ({monitor})", case.expected, list(kinds)), flush=True)


if __name__ == "__main__":
    main()
