"""Healthy networks of many families on real digits: what a monitor must stay silent on.

Every case reaches a useful accuracy in the steps given (`python -m tests.benchmarks._zoo` prints
it), so that an alarm on one of them is a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lightning_depth.networks import build_convnet, build_mlp

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One healthy network: how it is built, on what picture size, and how it is trained."""

    name: str
    build: Callable[[], nn.Module]
    size: int = 8
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
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


class Digit(L.LightningModule):
    """A plain LightningModule such as users write, that knows nothing of this package."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.net = case.build()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        output = self(images)
        return cross_entropy(output, labels) if output.ndim == 2 else mse_loss(output, images)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = self(images)
        if output.ndim == 2:
            self.log("val_error", (output.argmax(1) != labels).float().mean())
        else:
            self.log("val_error", mse_loss(output, images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.case.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.case.learning_rate, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), self.case.learning_rate)


class RowLSTM(nn.Module):
    """Reads a picture row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.squeeze(1))  # (B, 8, 64)
        return self.head(states[:, -1])


class RowTransformer(nn.Module):
    """Attends to the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.position = nn.Parameter(torch.randn(1, 8, 48) * 0.02)
        layer = nn.TransformerEncoderLayer(
            48, 4, 96, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.squeeze(1)) + self.position  # (B, 8, 48)
        return self.head(self.encoder(tokens).mean(1))


class PreNormBlock(nn.Module):
    """One residual block of a pre-normalised MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.narrow(torch.relu(self.wide(self.norm(features))))


def _dense_stack(activation: type[nn.Module], depth: int, width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _pre_norm_mlp() -> nn.Module:
    blocks = [PreNormBlock(48) for _ in range(8)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *blocks, nn.Linear(48, 10))


def _small_cnn() -> nn.Module:
    def stage(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)]

    features = [*stage(1, 16), *stage(16, 32), nn.MaxPool2d(2), *stage(32, 32), nn.Flatten()]
    return nn.Sequential(*features, nn.Dropout(0.25), nn.Linear(32 * 16, 10))


def _autoencoder() -> nn.Module:
    encoder = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU()]
    decoder = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8))]
    return nn.Sequential(*encoder, *decoder)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, in_chans=1, num_classes=10, **options)


def healthy_cases() -> list[Case]:
    """Return the zoo: at least fifteen families, each trained as its users train it."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.05}
    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3}
    return [
        Case("relu-mlp-3", lambda: _dense_stack(nn.ReLU, 3)),
        Case("relu-mlp-6", lambda: _dense_stack(nn.ReLU, 6)),
        Case("tanh-mlp-4", lambda: _dense_stack(nn.Tanh, 4)),
        Case("gelu-mlp-5", lambda: _dense_stack(nn.GELU, 5)),
        Case("residual-mlp-8", _pre_norm_mlp),
        Case(
            "plain-mlp-bn-8",
            lambda: build_mlp("plain", 8, 48, 64, 10, {"norm": "batchnorm"}),
            **sgd,
        ),
        Case("small-cnn", _small_cnn),
        Case("plain-20", lambda: build_convnet("plain", 20, 8, 10, 1), **sgd),
        Case("residual-20", lambda: build_convnet("residual", 20, 8, 10, 1), **sgd),
        Case("residual-56", lambda: build_convnet("residual", 56, 8, 10, 1), **sgd),
        Case("dense-22", lambda: build_convnet("dense", 22, 8, 10, 1), **sgd),
        Case("resnet18", _timm("resnet18"), size=32, epochs=3),
        Case("resnet10t", _timm("resnet10t"), size=32, epochs=4),
        Case("mobilenetv2", _timm("mobilenetv2_035"), size=32, epochs=8, learning_rate=3e-3),
        Case("convnext", _timm("convnext_atto", drop_path_rate=0.0), size=32, epochs=1),
        Case("vit", _timm("vit_tiny_patch16_224", **vit), size=16, epochs=12),
        Case("transformer", RowTransformer),
        Case("lstm", RowLSTM, learning_rate=3e-3),
        Case("autoencoder", _autoencoder),
    ]


def fit(case: Case, seed: int, callbacks: list[L.Callback]) -> float:
    """Train one case and return its error on held-out digits (mean squared for autoencoders)."""
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
    trainer.fit(Digit(case), train, val)
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
