"""What a healthy run is, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks._zoo_modules import Digit

__all__ = ["Case", "digit", "digits_loaders", "fit"]


@dataclass(frozen=True)
class Case:
    """One healthy run: the module that is trained, on what picture size, and for how long.

    ``compares_modes`` asks for a TrainingErrorMonitor beside the others; ``shuffles`` gives every
    picture the label of another.
    """

    name: str
    build: Callable[[], L.LightningModule]
    size: int = 8
    epochs: int = 8
    batch_size: int = 64
    compares_modes: bool = False
    shuffles: bool = False


def digit(
    name: str,
    build: Callable[[], nn.Module],
    size: int = 8,
    epochs: int = 8,
    **training: Any,
) -> Case:
    """Return a case of a network that is trained to classify."""
    return Case(name, lambda: Digit(build(), **training), size, epochs)


def digits_loaders(
    size: int,
    seed: int,
    train_samples: int = 1280,
    batch_size: int = 64,
    *,
    shuffle_labels: bool = False,
) -> tuple[DataLoader, DataLoader]:
    """Return training and validation loaders of normalised digits, enlarged to `size` pixels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    if size != images.shape[-1]:
        images = interpolate(images, size=(size, size), mode="bilinear")
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if shuffle_labels:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    train, val = order[:train_samples], order[train_samples:]
    data = TensorDataset(images[train], labels[train])
    return (
        DataLoader(data, batch_size, shuffle=True, generator=generator),
        DataLoader(TensorDataset(images[val], labels[val]), 256),
    )


def fit(case: Case, seed: int, callbacks: list[L.Callback]) -> float:
    """Train one case and return its error on held-out digits, as its module defines it."""
    L.seed_everything(seed, verbose=False)
    train, val = digits_loaders(
        case.size, seed, batch_size=case.batch_size, shuffle_labels=case.shuffles
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=case.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(case.build(), train, val)
    return float(trainer.callback_metrics.get("val_error", torch.tensor(math.nan)))
