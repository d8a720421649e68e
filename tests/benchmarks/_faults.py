"""Faults planted into networks that would train, with what a monitor should say of each and why.

Every kind has two variants that differ in architecture, size or optimizer. Thresholds were set on
the first variants; the second ones are judged. The expectations were written down before any of
the judged runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.benchmarks._zoo import digits_loaders

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Fault:
    """One planted fault: the network, how it is trained, and the findings that name it."""

    kind: str
    variant: str
    expected: tuple[str, ...]
    reason: str
    build: Build
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    epochs: int = 2
    size: int = 8
    loss_scale: float = 1.0
    input_scale: float = 1.0
    half: bool = False
    compares_modes: bool = False
    """Whether a TrainingErrorMonitor stands beside the others."""
    grows_at: int | None = None
    """The epoch at whose start the network grows."""


class FaultyDigit(L.LightningModule):
    """A plain LightningModule around a faulty network."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.net = fault.build()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images * self.fault.input_scale)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self(images).float(), labels) * self.fault.loss_scale

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.fault.grows_at:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.add_param_group({"params": list(self.net.grow().parameters())})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.fault.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.fault.learning_rate, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), self.fault.learning_rate)


def run_fault(fault: Fault, seed: int, callbacks: list[L.Callback]) -> None:
    """Train one faulty network."""
    L.seed_everything(seed, verbose=False)
    train, _ = digits_loaders(fault.size, seed)
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=fault.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[scaler] if fault.half else None,
    )
    trainer.fit(FaultyDigit(fault), train)


def rescale(net: nn.Module, gain: float) -> nn.Module:
    """Multiply He-initialised weights of every layer but the last by a gain, with zero biases."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            layer.weight.mul_(gain)
    for layer in layers:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return net


def mlp(depth: int, activation: Build = nn.ReLU, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(depth: int, activation: Build = nn.ReLU, width: int = 16) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), activation()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(width, width, 3, padding=1), activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


class _Residual(nn.Module):
    """A residual branch without normalisation, in front of which a fault may be put."""

    def __init__(self, width: int, before: nn.Module | None = None) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.wide = nn.Linear(width, width)
        self.narrow = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.narrow(torch.relu(self.wide(self.before(features))))


def residual(blocks: int, width: int = 64) -> nn.Sequential:
    parts = [_Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *parts, nn.Linear(width, 10))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features)


class _Without(nn.Module):
    """A module that runs under ``no_grad``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(features)


class Forgotten(nn.Module):
    """A network with a branch that is built and never called."""

    def __init__(self, net: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.branch = branch

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class PixelRNN(nn.Module):
    """Reads a picture pixel by pixel, with recurrent weights that shrink the state every step."""

    def __init__(self, recurrent: nn.RNN | nn.RNNCell, gain: float) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(recurrent.hidden_size, 10)
        for name, weight in recurrent.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(weight, gain)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)[..., None]
        if isinstance(self.recurrent, nn.RNN):
            return self.head(self.recurrent(pixels)[0][:, -1])
        state = None
        for pixel in pixels.unbind(1):
            state = self.recurrent(pixel, state)
        return self.head(state)


def insert(
    net: nn.Sequential, place: int, function: nn.Module | Callable[[Tensor], Tensor]
) -> nn.Sequential:
    """Put a function between two layers."""
    parts = list(net)
    module = function if isinstance(function, nn.Module) else Apply(function)
    return nn.Sequential(*parts[:place], module, *parts[place:])


def wrap(net: nn.Sequential, place: int) -> nn.Sequential:
    parts = list(net)
    parts[place] = _Without(parts[place])
    return nn.Sequential(*parts)


def silence(
    net: nn.Sequential, places: Iterable[int], share: float, bias: float = -30.0
) -> nn.Sequential:
    """Give a share of the units of some layers a bias from which they do not come back."""
    for place in places:
        layer = net[place]
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        assert layer.bias is not None
        with torch.no_grad():
            layer.bias[: round(share * len(layer.bias))] = bias
    return net


def stretch(net: nn.Sequential, gain: float) -> nn.Sequential:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(gain)
    return net


def flatten_layer(net: nn.Sequential, place: int, *, constant: bool) -> nn.Sequential:
    """Make one layer give the same output for every sample, or one direction only."""
    layer = net[place]
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    with torch.no_grad():
        if constant:
            layer.weight.zero_()
            nn.init.ones_(layer.bias)
        else:
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight).clone())
            layer.bias.copy_(layer.bias[:1].expand_as(layer.bias).clone())
    layer.requires_grad_(False)
    return net


class SelfDivision(nn.Module):
    """Normalises by a norm whose gradient is not finite at zero."""

    def forward(self, features: Tensor) -> Tensor:
        spread = features - features.detach()
        return features + spread.square().sum(-1, keepdim=True).sqrt()
