"""Layers beside the blocks, and those of bare parameters, in every callback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_depth.callbacks import (
    ActivationMonitor,
    GradientFlowMonitor,
    LayerSeparabilityProbe,
)
from lightning_depth.callbacks._reading import Watched
from lightning_depth.findings import FindingKind
from lightning_depth.layers import Layer
from tests.callbacks.toy import Toy, fit, fixed_init, make_batches

WIDTH = 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x).tanh())  # type: ignore[no-any-return]


class Block(nn.Module):
    """Its attention is cut off from the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x).detach())
        return torch.add(x, self.feed(x))


class OneBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList([Block()])
        self.out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)  # type: ignore[no-any-return]


def test_detached_attention_of_a_single_block_is_found() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    fit(Toy(fixed_init(OneBlock())), monitor)
    (finding,) = [each for each in monitor.findings if each.kind is FindingKind.NO_GRADIENT]
    assert finding.layers == ("net.blocks.0.attention",)


class Tokens(nn.Module):
    """Rectified layers in a net that owns a large token, which is no step of its depth."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, WIDTH))
        self.scale = nn.Parameter(torch.ones(1, WIDTH))
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.dead = nn.ReLU()
        self.head = nn.Bilinear(WIDTH, WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x * self.scale + self.token)
        return self.head(x, self.dead(x - 100.0))  # type: ignore[no-any-return]


class Validated(Toy):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(make_batches(4, 16), batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", ["block", "leaf"])
@pytest.mark.parametrize("signal", ["weights", "activations"])
def test_gradient_of_bare_parameters_has_a_row(granularity: Any, signal: Any) -> None:
    monitor = GradientFlowMonitor(granularity, every_n_steps=1, signal=signal, on_finding="log")
    module = Toy(fixed_init(Tokens()), batches=1)
    fit(module, monitor)
    history = monitor.history
    assert history["layer"] == ["net", "net.layers.0", "net.layers.2", "net.head"]
    assert history["depth"] == [1, 2, 3, 4]

    net = fixed_init(Tokens())
    ((x, y),) = make_batches(1)
    nn.functional.cross_entropy(net(x), y).backward()
    gradients = [
        weight.grad for name, weight in net.named_parameters() if name in ("token", "scale")
    ]
    expected = torch.cat([grad for grad in gradients if grad is not None]).square().mean().sqrt()
    assert history["grad_rms"][0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("granularity", ["block", "leaf"])
def test_bare_parameters_have_no_activation_and_own_no_unit(granularity: Any) -> None:
    monitor = ActivationMonitor(granularity, every_n_steps=1, min_samples=1, on_finding="log")
    fit(Toy(fixed_init(Tokens()), batches=1), monitor)
    dead = dict(zip(monitor.history["layer"], monitor.history["dead"], strict=True))
    assert list(dead) == ["net.layers.0", "net.layers.2", "net.head"]
    assert dead["net.layers.2"] == 1.0  # the activation of the net itself follows this layer


@pytest.mark.parametrize("granularity", ["block", "leaf"])
def test_bare_parameters_are_not_probed(granularity: Any) -> None:
    probe = LayerSeparabilityProbe(granularity, on_finding="log")
    fit(Validated(fixed_init(Tokens()), batches=1), probe)
    assert probe.history["layer"] == ["input", "net.layers.0", "net.layers.2", "net.head"]


def _watched(*layers: tuple[str, bool]) -> list[str]:
    """The names of the layers in the trend, of matrices with a role and maybe without an output."""
    made = tuple(
        Layer(str(place), place, nn.Linear(1, 1), role, has_output)  # type: ignore[arg-type]
        for place, (role, has_output) in enumerate(layers)
    )
    watched = Watched(made, (True,) * len(made), {})
    return [watched.names[place] for place in watched.trend]


def test_bare_matrices_are_in_no_trend() -> None:
    assert _watched(("leaf", False), ("leaf", True), ("leaf", True), ("leaf", False)) == ["1", "2"]


def test_trend_is_that_of_the_blocks_where_there_are_enough() -> None:
    roles = ("stem", "block", "between", "block", "between", "block", "head")
    assert _watched(*((role, True) for role in roles)) == ["1", "3", "5"]
