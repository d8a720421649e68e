"""How the healthy zoo is trained: a classifier, a GAN, a student with a momentum teacher.

Plain LightningModules such as users write, that know nothing of this package. Each logs
``val_error``, which says whether the run was a good one.
"""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    normalize,
    pad,
)
from torch.optim import Adam, AdamW, Optimizer

Batch = list[Tensor]


class Digit(L.LightningModule):
    """Classifies digits, or draws them again if the network returns pictures."""

    def __init__(
        self, net: nn.Module, learning_rate: float = 1e-3, optimizer: str = "adamw"
    ) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate
        self.optimizer = optimizer

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        output = self(images)
        return cross_entropy(output, labels) if output.ndim == 2 else mse_loss(output, images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        output = self(images)
        if output.ndim == 2:
            self.log("val_error", (output.argmax(1) != labels).float().mean())
        else:
            self.log("val_error", mse_loss(output, images))

    def configure_optimizers(self) -> Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9)
        return AdamW(self.parameters(), self.learning_rate)


class OneUnit(Digit):
    """Tells odd digits from even ones by one output, or draws a line through their numbers.

    ``val_error`` of the line is the mean squared error over the variance.
    """

    def __init__(self, net: nn.Module, *, regresses: bool = False) -> None:
        super().__init__(net)
        self.regresses = regresses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        output = self(images)[:, 0]
        if self.regresses:
            return mse_loss(output, _standardized(labels))
        return binary_cross_entropy_with_logits(output, (labels % 2).float())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        output = self(images)[:, 0]
        if self.regresses:
            self.log("val_error", mse_loss(output, _standardized(labels)))
        else:
            self.log("val_error", ((output > 0) != (labels % 2 == 1)).float().mean())


def _standardized(labels: Tensor) -> Tensor:
    """The numbers of the digits with mean 0 and variance 1."""
    return (labels - 4.5) / 8.25**0.5


class Changing(Digit):
    """Its network changes as the fifth epoch begins: a part comes, or one takes another's place."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 4:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            self.net.change()
            kept = list(self.net.parameters())
            optimizer.param_groups[0]["params"] = kept
            for gone in set(optimizer.state) - set(kept):
                del optimizer.state[gone]


def nearest(distances: Tensor, labels: Tensor) -> Tensor:
    """Return the label of each sample's nearest neighbour among the others."""
    return labels[distances.fill_diagonal_(torch.inf).argmin(1)]


class DCGAN(L.LightningModule):
    """A generator against a discriminator (Radford et al. 2015, 1511.06434), 16 pixels wide.

    ``val_error`` is how often the nearest neighbour tells real from generated digits (Lopez-Paz
    and Oquab 2016, 1610.06545): 0.5 where they cannot be told apart, 1 for noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Unflatten(1, (32, 1, 1)),
            nn.ConvTranspose2d(32, 64, 4, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 1, 0, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return generated pictures, as many as were given."""
        return self.generator(torch.randn(len(images), 32, device=images.device))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, _ = batch
        critic, artist = self.optimizers()  # type: ignore[misc]
        drawn = self(images)
        self.toggle_optimizer(critic)
        critic.zero_grad()
        self.manual_backward(
            0.5 * (self.judge(images, real=True) + self.judge(drawn.detach(), real=False))
        )
        critic.step()
        self.untoggle_optimizer(critic)
        self.toggle_optimizer(artist)
        artist.zero_grad()
        self.manual_backward(self.judge(self(images), real=True))
        artist.step()
        self.untoggle_optimizer(artist)

    def judge(self, images: Tensor, *, real: bool) -> Tensor:
        logits = self.discriminator(images)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, _ = batch
        both = torch.cat([images, self(images)]).flatten(1)
        labels = torch.arange(len(both)) < len(images)
        told = nearest(torch.cdist(both, both), labels) == labels
        self.log("val_error", told.float().mean())

    def configure_optimizers(self) -> list[Optimizer]:
        nets = (self.discriminator, self.generator)
        return [Adam(net.parameters(), 5e-4, betas=(0.5, 0.999)) for net in nets]


class MoCo(L.LightningModule):
    """A student finds its moving average's view of each picture (Chen et al. 2021, 2104.02057).

    ``val_error`` is that of the nearest neighbour by the student's features.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.student = nn.Sequential(encoder, _projector(width))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = _projector(64)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        one, other = view(batch[0]), view(batch[0])
        return self.loss(one, other) + self.loss(other, one)

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        query = normalize(self.predictor(self.student(one)))
        with torch.no_grad():
            key = normalize(self.teacher(other))
        return cross_entropy(query @ key.T / 0.2, torch.arange(len(query)))

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 0.02)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        features = normalize(self.student[0](images))
        wrong = nearest(torch.cdist(features, features), labels) != labels
        self.log("val_error", wrong.float().mean())

    def configure_optimizers(self) -> Optimizer:
        return AdamW([*self.student.parameters(), *self.predictor.parameters()], 1e-3)


def _projector(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))


def view(images: Tensor) -> Tensor:
    """Shift by up to a pixel, change the contrast, add noise."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    size = images.shape[-1]
    moved = pad(images, (1, 1, 1, 1), mode="replicate")[
        ..., down : down + size, right : right + size
    ]
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.7, 1.3)
    return moved * contrast + 0.2 * torch.randn_like(moved)
