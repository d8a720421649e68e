"""Planted faults that were missed once, or called by another name, with the networks for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_depth.networks import build_convnet, build_mlp
from tests.benchmarks._faults import Apply, cnn, mlp, silence

Planting = tuple[Any, ...]
"""Kind of fault, what should come first, the reason, and the options of each variant."""

_SGD = {"optimizer": "sgd", "learning_rate": 0.05}


def _clamped() -> nn.Module:
    return Apply(lambda features: features.clamp(min=0))


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.0)


def _shrink_gradient(features: Tensor) -> Tensor:
    """Hand a fiftieth of the gradient on."""
    return 0.02 * features + 0.98 * features.detach()


def _shrinking() -> nn.Module:
    return nn.Sequential(nn.ReLU(), Apply(_shrink_gradient))


def _small_weights(net: nn.Module, gain: float) -> nn.Module:
    """Make all weights small, the head's too."""
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(gain)
    return net


class OneBlock(nn.Module):
    """A transformer of one block, whose attention is detached, or only its scores."""

    def __init__(self, width: int, *, scores_only: bool) -> None:
        super().__init__()
        self.scores_only = scores_only
        self.embed = nn.Linear(8, width)
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, 10)

    def attend(self, tokens: Tensor) -> Tensor:
        scores = self.query(tokens) @ self.key(tokens).mT / tokens.shape[-1] ** 0.5
        if self.scores_only:
            scores = scores.detach()
        mixed = self.output(scores.softmax(-1) @ self.value(tokens))
        return mixed if self.scores_only else mixed.detach()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.squeeze(1))
        tokens = tokens + self.attend(self.norm_before(tokens))
        tokens = tokens + self.feed_forward(self.norm_after(tokens))
        return self.head(tokens.mean(1))


class MixedExperts(nn.Module):
    """Experts of which one is cut off from the loss: all are mixed, or one is chosen."""

    def __init__(self, experts: int, *, chooses: bool, width: int = 48) -> None:
        super().__init__()
        self.chooses = chooses
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        shares = self.router(features).softmax(-1)
        if self.chooses:
            shares = shares * (shares == shares.amax(-1, keepdim=True))
        answers = [expert(features) for expert in self.experts]
        answers[1] = answers[1].detach()
        mixed = (torch.stack(answers, -1) * shares[:, None]).sum(-1)
        return self.head(features + mixed)


class ConstantInTime(nn.Module):
    """A sequence with samples on the second axis, of which a layer drops all but the time."""

    def __init__(self, width: int, recurrent: type[nn.RNNBase], *, keeps_time: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.block = nn.Linear(width, width)
        self.recurrent = recurrent(width, width)
        self.head = nn.Linear(width, 10)
        self.position = nn.Parameter(torch.randn(8, 1, width), requires_grad=False)
        self.keeps_time = keeps_time
        self.block.requires_grad_(False)
        nn.init.zeros_(self.block.weight)
        nn.init.ones_(self.block.bias)

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.relu(self.embed(images.squeeze(1).transpose(0, 1)))  # (8, B, D)
        features = self.block(rows) * (self.position if self.keeps_time else 1.0)
        return self.head(self.recurrent(features)[0][-1])


class DetachedGrowth(nn.Module):
    """Grows a block behind the others whose answer is cut off from the loss."""

    def __init__(self, net: nn.Sequential, block: nn.Module, place: int, *, adds: bool) -> None:
        super().__init__()
        self.net, self.place, self.adds = net, place, adds
        self.spare = [block]  # a list hides it until it is grown

    def grow(self) -> nn.Module:
        self.grown = self.spare.pop()
        return self.grown

    def forward(self, images: Tensor) -> Tensor:
        features = self.net[: self.place](images)
        if not self.spare and self.adds:
            features = features + self.grown(features).detach()
        elif not self.spare:
            with torch.no_grad():
                features = self.grown(features)
        return self.net[self.place :](features)


def _momentum(net: nn.Module, momentum: float, scale: float = 1.0) -> nn.Module:
    """Let running statistics stand still, where they are or where data of a scale left them."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_var is not None
            module.momentum = momentum
            module.running_var.mul_(scale**2)
    return net


def missed_faults() -> list[Planting]:
    """Return the kinds, with the variant that checks before the one that is judged.

    A third one is judged in place of a second that showed a mistake.
    """
    batchnorm = {"norm": "batchnorm"}
    grown = nn.Sequential
    return [
        (
            "units dead behind a leak of 0, or a clamp",
            "DEAD",
            "the slope is zero below zero, whatever the activation is called",
            {"build": lambda: silence(mlp(4, _leaky), [3], 1.0, -10.0)},
            {"build": lambda: silence(cnn(4, _clamped), [2, 4], 0.75, -10.0), **_SGD},
        ),
        (
            "three layers that lose their gradient",
            "VANISHING",
            "each layer hands a small part of the gradient on: a sigmoid behind small weights, or "
            "a mixture with a detached copy",
            {
                "build": lambda: _small_weights(mlp(3, nn.Sigmoid), 0.05),
                "optimizer": "sgd",
                "learning_rate": 1e-3,
            },
            {"build": lambda: cnn(3, _shrinking), "learning_rate": 1e-4},
        ),
        (
            "detached attention in one block",
            "NO_GRADIENT",
            "what makes up the attention, or its scores, is cut off from the loss",
            {"build": lambda: OneBlock(32, scores_only=False)},
            {"build": lambda: OneBlock(48, scores_only=True), **_SGD},
        ),
        (
            "an expert that is cut off",
            "NO_GRADIENT",
            "one expert is detached at every step, whether it is chosen or not",
            {"build": lambda: MixedExperts(4, chooses=False), "epochs": 4},
            {"build": lambda: MixedExperts(3, chooses=True, width=32), "epochs": 4, **_SGD},
            {"build": lambda: MixedExperts(5, chooses=True, width=40), "epochs": 4},
        ),
        (
            "a constant block in a sequence, time first",
            "COLLAPSED",
            "its output is the same for every sample, at each step of time",
            {"build": lambda: ConstantInTime(32, nn.LSTM, keeps_time=False)},
            {"build": lambda: ConstantInTime(48, nn.GRU, keeps_time=True), **_SGD},
        ),
        (
            "running statistics that stand still",
            "MODE_GAP",
            "in training mode the statistics of the batch are used, in evaluation mode those from "
            "before training, or of data of another scale",
            {
                "build": lambda: _momentum(build_mlp("plain", 6, 48, 64, 10, batchnorm), 0.0),
                "compares_modes": True,
                "epochs": 8,
                "input_scale": 10.0,
            },
            {
                "build": lambda: _momentum(
                    build_convnet("residual", 14, 8, 10, 1), 5e-4, scale=100.0
                ),
                "compares_modes": True,
                "epochs": 8,
                **_SGD,
            },
        ),
        (
            "a grown block that is detached",
            "NO_GRADIENT",
            "it comes when training is under way, and nothing of the loss reaches it",
            {
                "build": lambda: DetachedGrowth(mlp(5), grown(nn.Linear(64, 64)), 5, adds=True),
                "epochs": 6,
                "grows_at": 2,
            },
            {
                "build": lambda: DetachedGrowth(
                    cnn(4), grown(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), 4, adds=False
                ),
                "epochs": 6,
                "grows_at": 1,
                **_SGD,
            },
        ),
    ]
