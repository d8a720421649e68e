"""Healthy networks of many families on real digits: what a monitor must stay silent on.

Every case reaches a useful accuracy in the steps given (`python -m tests.benchmarks._zoo` prints
it), so that an alarm on one of them is a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.networks import build_convnet, build_mlp
from tests.benchmarks._zoo_modules import DCGAN, Digit, MoCo
from tests.benchmarks._zoo_nets import (
    Dropped,
    GatedBlock,
    PreNormBlock,
    Routed,
    RowLSTM,
    RowTransformer,
    SideBlock,
    autoencoder,
    block_stack,
    dense_stack,
    small_cnn,
)


@dataclass(frozen=True)
class Case:
    """One healthy run: the module that is trained, on what picture size, and for how long."""

    name: str
    build: Callable[[], L.LightningModule]
    size: int = 8
    epochs: int = 8


def digits_loaders(
    size: int, seed: int, train_samples: int = 1280
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
    train, val = order[:train_samples], order[train_samples:]
    return (
        DataLoader(
            TensorDataset(images[train], labels[train]), 64, shuffle=True, generator=generator
        ),
        DataLoader(TensorDataset(images[val], labels[val]), 256),
    )


def _digit(
    name: str,
    build: Callable[[], nn.Module],
    size: int = 8,
    epochs: int = 8,
    **training: Any,
) -> Case:
    return Case(name, lambda: Digit(build(), **training), size, epochs)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, in_chans=1, num_classes=10, **options)


def _pre_norm_mlp() -> nn.Module:
    return block_stack([PreNormBlock(48) for _ in range(8)])


def _rezero() -> nn.Module:
    return block_stack([GatedBlock(48, torch.zeros(())) for _ in range(12)])


def _layer_scale() -> nn.Module:
    return block_stack([GatedBlock(48, torch.full((48,), 1e-4)) for _ in range(12)])


def _small_scale(size: float) -> nn.Module:
    return block_stack([GatedBlock(48, torch.full((48,), size)) for _ in range(12)])


def _zero_head() -> nn.Module:
    net = dense_stack(nn.GELU, 3)
    nn.init.zeros_(list(net.modules())[-1].weight)
    return net


def _side_branches() -> nn.Module:
    """Gates of 1 to 10^-4, in no order of depth."""
    decades = (-4, 0, -2, -3, -1, -4, -1, -3, 0, -2)
    return block_stack([SideBlock(48, 10.0**decade) for decade in decades])


def _encoder() -> nn.Module:
    return build_convnet("residual", 8, 16, 0, 1)


def classifiers() -> list[Case]:
    """Return the networks that are trained to classify, each as its users train it."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.05}
    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3}
    batchnorm = {"norm": "batchnorm"}
    return [
        _digit("relu-mlp-3", lambda: dense_stack(nn.ReLU, 3)),
        _digit("relu-mlp-6", lambda: dense_stack(nn.ReLU, 6)),
        _digit("tanh-mlp-4", lambda: dense_stack(nn.Tanh, 4)),
        _digit("gelu-mlp-5", lambda: dense_stack(nn.GELU, 5)),
        _digit("residual-mlp-8", _pre_norm_mlp),
        _digit("plain-mlp-bn-8", lambda: build_mlp("plain", 8, 48, 64, 10, batchnorm), **sgd),
        _digit("small-cnn", small_cnn),
        _digit("plain-20", lambda: build_convnet("plain", 20, 8, 10, 1), **sgd),
        _digit("residual-20", lambda: build_convnet("residual", 20, 8, 10, 1), **sgd),
        _digit("residual-56", lambda: build_convnet("residual", 56, 8, 10, 1), **sgd),
        _digit("dense-22", lambda: build_convnet("dense", 22, 8, 10, 1), **sgd),
        _digit("resnet18", _timm("resnet18"), size=32, epochs=3),
        _digit("resnet10t", _timm("resnet10t"), size=32, epochs=4),
        _digit("mobilenetv2", _timm("mobilenetv2_035"), size=32, learning_rate=3e-3),
        _digit("convnext", _timm("convnext_atto", drop_path_rate=0.0), size=32, epochs=1),
        _digit("vit", _timm("vit_tiny_patch16_224", **vit), size=16, epochs=12),
        _digit("transformer", RowTransformer),
        _digit("lstm", RowLSTM, learning_rate=3e-3),
        _digit("highway-20", lambda: build_mlp("highway", 20, 48, 64, 10), epochs=12),
        _digit(
            "wide-resnet-16-2",
            lambda: build_convnet("preactivation", 16, 32, 10, 1, stem_width=16),
            epochs=4,
            **sgd,
        ),
        _digit("rezero-12", _rezero),
        _digit("layer-scale-12", _layer_scale),
        _digit("side-branches-10", _side_branches),
        _digit("layer-drop-8", lambda: Dropped(48, 8)),
        _digit("routed-experts", lambda: Routed(48)),
        _digit("layer-scale-1e-6", lambda: _small_scale(1e-6)),
        _digit("zero-head", _zero_head),
        _digit("solved-mlp-4", lambda: dense_stack(nn.ReLU, 4), epochs=150, learning_rate=2e-3),
    ]


def healthy_cases() -> list[Case]:
    """Return the zoo: the classifiers, and what is trained to something else."""
    return [
        *classifiers(),
        _digit("autoencoder", autoencoder),
        Case("dcgan", DCGAN, size=16, epochs=40),
        Case("moco", lambda: MoCo(_encoder(), 64), epochs=12),
    ]


def fit(case: Case, seed: int, callbacks: list[L.Callback]) -> float:
    """Train one case and return its error on held-out digits, as its module defines it."""
    L.seed_everything(seed, verbose=False)
    train, val = digits_loaders(case.size, seed)
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


if __name__ == "__main__":
    import logging
    import time
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for each in healthy_cases():
        begun = time.perf_counter()
        error = fit(each, 0, [])
        print(f"{each.name:16s} error {error:.3f} in {time.perf_counter() - begun:.1f} s")
