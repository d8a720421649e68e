"""Healthy networks by which a monitor was misled once, or may well be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torchvision.models import VisionTransformer

from tests.benchmarks._case import Case, digit
from tests.benchmarks._zoo_modules import Changing, Digit, OneUnit, view
from tests.benchmarks._zoo_nets import PreNormBlock, dense_stack


class IndexedTransformer(nn.Module):
    """One block, and a table of positions that is read along an axis that holds no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.position = nn.Embedding(8, 48)
        self.block = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.squeeze(1)  # (B, 8, 8)
        tokens = self.embed(rows) + self.position(torch.arange(8, device=rows.device))
        return self.head(self.block(tokens).mean(1))


class Prescaled(nn.Module):
    """Every input has a layer of its own, with one number in and eight out."""

    def __init__(self) -> None:
        super().__init__()
        self.scalers = nn.ModuleList(nn.Linear(1, 8) for _ in range(16))
        self.mix = nn.Sequential(nn.ELU(), nn.Linear(16 * 8, 48), nn.ELU())
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        inputs = avg_pool2d(images, 2).flatten(1)  # (B, 16)
        columns = inputs.split(1, 1)
        scaled = [scale(one) for scale, one in zip(self.scalers, columns, strict=True)]
        return self.head(self.mix(torch.cat(scaled, 1)))


class ZeroGamma(nn.Module):
    """A residual branch whose norm starts at zero, written without a block around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.wide, self.narrow = nn.Linear(48, 96), nn.Linear(96, 48)
        self.norm = nn.BatchNorm1d(48)
        self.head = nn.Linear(48, 10)
        nn.init.zeros_(self.norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.stem(images.flatten(1)))
        features = features + self.norm(self.narrow(torch.relu(self.wide(features))))
        return self.head(features)


class TimeFirst(nn.Module):
    """Rows of a picture as a sequence, with the samples on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.recurrent = nn.GRU(32, 48)
        self.mix = nn.Linear(48, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.squeeze(1).transpose(0, 1)  # (8, B, 8)
        states, _ = self.recurrent(torch.relu(self.embed(rows)))
        return self.head(torch.relu(self.mix(states))[-1])


class LayerDropTransformer(nn.Module):
    """Leaves one block in five out of a step (Fan et al. 2020, 1909.11556)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.position = nn.Parameter(torch.randn(1, 8, 48) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True, norm_first=True)
            for _ in range(6)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.squeeze(1)) + self.position
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.2:
                tokens = block(tokens)
        return self.head(tokens.mean(1))


class RareExperts(nn.Module):
    """Every picture goes to two of six experts; two of them are hardly ever asked."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.router = nn.Linear(width, 6)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(6)
        )
        self.head = nn.Linear(width, 10)
        with torch.no_grad():
            self.router.bias[4:] -= 0.5  # so that few pictures, and in few of the steps, go there

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        weights, chosen = self.router(features).topk(2)
        mixed = features.clone()
        for place, expert in enumerate(self.experts):
            rows, ranks = (chosen == place).nonzero(as_tuple=True)
            if len(rows):
                share = weights.softmax(-1)[rows, ranks, None]
                mixed = mixed.index_add(0, rows, share * expert(features[rows]))
        return self.head(mixed)


class LongLSTM(nn.Module):
    """Reads a picture by four pixels, with gates that begin open (Jozefowicz et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 48, batch_first=True)
        self.head = nn.Linear(48, 10)
        with torch.no_grad():
            self.lstm.bias_hh_l0[48:96] = 3.0

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images.flatten(1).unflatten(1, (-1, 4)))
        return self.head(states[:, -1])


class PackedLSTM(nn.Module):
    """Rows of pictures that end early, packed; each part hands a packed sequence on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.LSTM(width, 48, batch_first=True) for width in (8, 48))
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.squeeze(1)
        lengths = 8 - (rows[:, -1].amax(1) < 0).long()  # without a last row that is empty
        packed = pack_padded_sequence(rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states: PackedSequence = self.first(packed)[0]
        _, (last, _) = self.second(states)
        return self.head(last[-1])


@dataclass
class Hidden:
    """What a block returns."""

    features: Tensor
    gate: Tensor


class RecordBlock(nn.Module):
    """A gated residual block that takes and returns a record."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, hidden: Hidden) -> Hidden:
        signal, gate = self.wide(self.norm(hidden.features)).chunk(2, -1)
        opened = torch.sigmoid(gate)
        return Hidden(hidden.features + self.narrow(torch.tanh(signal) * opened), opened)


class Records(nn.Module):
    """Blocks that hand records on."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(RecordBlock(width) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images.flatten(1))
        hidden = Hidden(features, torch.ones_like(features))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.features)


class Stack(nn.Module):
    """Residual blocks that can be added to, or have one put in another's place."""

    def __init__(self, *, grows: bool, width: int = 48) -> None:
        super().__init__()
        self.grows = grows
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(PreNormBlock(width) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def change(self) -> None:
        fresh = PreNormBlock(self.stem.out_features)
        if self.grows:
            self.blocks.append(fresh)
        else:
            self.blocks[1] = fresh

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images.flatten(1))
        for block in self.blocks:
            features = block(features)
        return self.head(features)


class Augmented(nn.Module):
    """Batch norms and much dropout, on pictures that are shifted and noisy in training."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 32, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(view(images) if self.training else images))


def _grown_convnext() -> nn.Module:
    """Layer scales of 10^-6 that a high rate lets grow until they are near one."""
    return ConvNeXt(1, 10, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), patch_size=4)


def _mixer() -> nn.Module:
    return MlpMixer(10, 16, 1, patch_size=4, num_blocks=4, embed_dim=48)


def _zero_headed_vit() -> nn.Module:
    thrice = nn.Conv2d(1, 3, 1)
    return nn.Sequential(thrice, VisionTransformer(16, 4, 4, 3, 48, 96, num_classes=10))


def _convnet_with_one_unit() -> nn.Module:
    parts = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128, 1))


def _mlp_with_one_unit() -> nn.Module:
    return nn.Sequential(*list(dense_stack(nn.SiLU, 4))[:-1], nn.Linear(64, 1))


def misleading_classifiers() -> list[Case]:
    """Return those that are trained to tell the ten digits apart."""
    return [
        digit("position-table", IndexedTransformer),
        digit("prescalers", Prescaled, epochs=12, learning_rate=3e-3),
        digit("zero-gamma-norm", ZeroGamma),
        digit("time-first-gru", TimeFirst, learning_rate=3e-3),
        digit("layer-drop-transformer", LayerDropTransformer),
        digit("rare-experts", RareExperts),
        digit("convnext-grown-scales", _grown_convnext, 32, 40, learning_rate=2e-3),
        digit("mixer-zero-head", _mixer, size=16),
        digit("vit-zero-head", _zero_headed_vit, size=16),
        digit("long-lstm", LongLSTM, size=20, epochs=16, learning_rate=5e-3),
        digit("leaky-mlp-5", lambda: dense_stack(nn.LeakyReLU, 5)),
        digit("sigmoid-mlp-3", lambda: dense_stack(nn.Sigmoid, 3), epochs=12, learning_rate=3e-3),
        digit("packed-lstm", PackedLSTM, learning_rate=3e-3),
        digit("record-blocks", Records),
    ]


def misleading_cases() -> list[Case]:
    """Return them all."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.05}
    return [
        *misleading_classifiers(),
        Case("one-unit-binary", lambda: OneUnit(_convnet_with_one_unit())),
        Case("one-unit-regression", lambda: OneUnit(_mlp_with_one_unit(), regresses=True)),
        Case("grown-block", lambda: Changing(Stack(grows=True))),
        Case("replaced-block", lambda: Changing(Stack(grows=False))),
        Case(
            "batchnorm-dropout-augmented",
            lambda: Digit(Augmented(), **sgd),
            epochs=30,
            batch_size=256,
            compares_modes=True,
        ),
    ]
