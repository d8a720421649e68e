"""Small runs on which every callback of the package is tried."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import lightning.pytorch as lightning_pytorch
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_depth.callbacks
from lightning_depth.callbacks._base import DepthCallback

Factory = Callable[[], DepthCallback]

NUM_BATCHES, BATCH_SIZE, NUM_CLASSES = 6, 8, 3

OPTIONS: dict[str, dict[str, Any]] = {
    "ActivationMonitor": {"every_n_steps": 1},
    "EarlyStopping": {"monitor": "val/loss", "patience": 100},
    "GradientFlowMonitor": {"every_n_steps": 1},
    "LayerSeparabilityProbe": {},
    "TrainingErrorMonitor": {},
}
"""How each public callback is made so that it measures something in a run of a few steps."""

FOR_UNKNOWN_BATCHES: dict[str, dict[str, Any]] = {
    "LayerSeparabilityProbe": {"labels": "y"},
    "TrainingErrorMonitor": {"predict": "predict_batch"},
}
"""What those that look into batches must be told, where these are not pairs."""


def public_callbacks() -> list[str]:
    room = lightning_depth.callbacks
    return [
        name
        for name in room.__all__
        if isinstance(getattr(room, name), type) and issubclass(getattr(room, name), Callback)
    ]


def make(name: str, **options: Any) -> DepthCallback:
    """Return a public callback that measures as often as it can and keeps findings to itself."""
    defaults = {"on_finding": "log", **OPTIONS[name]}
    return getattr(lightning_depth.callbacks, name)(**{**defaults, **options})  # type: ignore[no-any-return]


def observers() -> list[str]:
    """Those that never change a run."""
    return [name for name in public_callbacks() if name != "EarlyStopping"]


every_callback = pytest.mark.parametrize("name", public_callbacks())
every_observer = pytest.mark.parametrize("name", observers())
every_layer_watcher = pytest.mark.parametrize(
    "name", [name for name in observers() if name != "TrainingErrorMonitor"]
)


def table(callback: DepthCallback) -> pd.DataFrame:
    return pd.DataFrame(callback.history)


def watched(callback: DepthCallback) -> set[str]:
    """Names of the layers; the probe has the network's input as layer 0."""
    return set(callback.history.get("layer", ())) - {"input"}


def samples(num_batches: int = NUM_BATCHES) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(num_batches * BATCH_SIZE) % NUM_CLASSES
    x = torch.randn(len(y), 6, generator=generator) + y[:, None]
    return TensorDataset(x, y)


class Batch:
    """A batch of a type that Lightning knows nothing of."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        return Batch(self.x.to(*args, **kwargs), self.y.to(*args, **kwargs))


def as_batch(rows: list[tuple[Tensor, Tensor]]) -> Batch:
    return Batch(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*samples().tensors, strict=True)


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x)))


def network(dropout: float = 0.1) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), Block(), Block(), Block(), nn.Dropout(dropout), nn.Linear(8, NUM_CLASSES)
    )


class Toy(LightningModule):
    """A user's module: nothing in it knows of the package."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net if net is not None else network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def predict_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = (batch.x, batch.y) if hasattr(batch, "x") else batch
        return self(x), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(*self.predict_batch(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(*self.predict_batch(batch))
        if not self.trainer.barebones:  # where Lightning warns of it
            self.log("val/loss", loss, batch_size=BATCH_SIZE, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(samples(), batch_size=BATCH_SIZE, **options)


def trainer(*callbacks: Any, package: ModuleType = lightning_pytorch, **options: Any) -> Trainer:
    """Return a quiet Trainer for two short epochs on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    if options.get("barebones"):
        for name in ("logger", "enable_checkpointing", "log_every_n_steps"):
            defaults.pop(name)
        defaults.pop("enable_progress_bar"), defaults.pop("enable_model_summary")
    return package.Trainer(callbacks=list(callbacks), **{**defaults, **options})  # type: ignore[no-any-return]


def fit(
    *callbacks: Any, seed: int = 0, module: LightningModule | None = None, **options: Any
) -> Toy:
    """Train a toy from a seed and return it."""
    lightning_pytorch.seed_everything(seed, verbose=False)
    toy: Any = module if module is not None else Toy()
    trainer(*callbacks, **options).fit(toy, loader(shuffle=True), loader())
    return toy  # type: ignore[no-any-return]


def num_hooks(module: nn.Module) -> int:
    """Hooks of every kind on a module, its parts and its parameters."""
    kinds = (
        *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
        *("_state_dict_hooks", "_load_state_dict_pre_hooks"),
    )
    on_modules = sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)
    on_parameters = sum(
        len(getattr(parameter, kind, None) or ())
        for parameter in module.parameters()
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )
    return on_modules + on_parameters


def toy_of(package: str) -> tuple[ModuleType, Any]:
    """Return a Lightning package and the toy module built on it."""
    pl = importlib.import_module(package)
    if pl is lightning_pytorch:
        return pl, Toy()
    body = {name: value for name, value in vars(Toy).items() if name != "__init__"}
    kind = type("Toy", (pl.LightningModule,), {k: v for k, v in body.items() if k[:2] != "__"})
    toy = kind()
    toy.net = network()
    return pl, toy
