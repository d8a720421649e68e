"""Small networks of the healthy zoo, written as their users write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
        return features + self.branch(features)

    def branch(self, features: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(self.norm(features))))


class GatedBlock(PreNormBlock):
    """Its branch passes a gate: a scalar (ReZero) or one number a channel (LayerScale)."""

    def __init__(self, width: int, gate: Tensor) -> None:
        super().__init__(width)
        self.gate = nn.Parameter(gate)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.gate * self.branch(features)


class Dropped(nn.Module):
    """Pre-norm blocks, each of which is left out of half of the steps (LayerDrop)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
        self.blocks = nn.ModuleList(PreNormBlock(width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                features = block(features)
        return self.head(features)


class Routed(nn.Module):
    """Every picture goes to one of eight experts, of which some seldom have one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.router = nn.Linear(width, 8)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(8)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        shares, chosen = self.router(features).softmax(-1).max(-1)
        mixed = features
        for place, expert in enumerate(self.experts):
            rows = (chosen == place).nonzero()[:, 0]
            if len(rows):
                mixed = mixed.index_add(0, rows, shares[rows, None] * expert(features[rows]))
        return self.head(mixed)


class SideBlock(PreNormBlock):
    """A residual block with a side branch behind a gate of its own."""

    def __init__(self, width: int, gate: float) -> None:
        super().__init__(width)
        self.side = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.branch(features) + self.gate * self.side(features)


def dense_stack(activation: type[nn.Module], depth: int, width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def block_stack(blocks: Sequence[nn.Module], width: int = 48) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *blocks, nn.Linear(width, 10))


def small_cnn() -> nn.Module:
    def stage(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)]

    features = [*stage(1, 16), *stage(16, 32), nn.MaxPool2d(2), *stage(32, 32), nn.Flatten()]
    return nn.Sequential(*features, nn.Dropout(0.25), nn.Linear(32 * 16, 10))


def autoencoder() -> nn.Module:
    encoder = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU()]
    decoder = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Unflatten(1, (1, 8, 8))]
    return nn.Sequential(*encoder, *decoder)
