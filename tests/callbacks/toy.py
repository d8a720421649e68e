"""A small module on fixed numbers, and the same training written out without Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_depth.callbacks import GradientFlowMonitor

Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


BLOCKS = {
    "net.0": "0",
    **{f"net.{place}": f"{place}.linear" for place in range(1, 5)},
    "net.5": "5",
}


def fixed_init(module: nn.Module) -> nn.Module:
    """Fill parameters with a sine of their own scale, so that numbers do not hang on a seed."""
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            ramp = torch.arange(parameter.numel(), dtype=torch.float32)
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.copy_((torch.sin(1.7 * ramp + place) * 1.4 * scale).view_as(parameter))
    return module


class Block(nn.Module):
    """A linear layer with what follows it: the repeated part of a network."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


def make_net(
    depth: int = 4, width: int = 6, activation: Callable[[], nn.Module] = nn.Tanh
) -> nn.Sequential:
    blocks = [Block(width, activation()) for _ in range(depth)]
    net = nn.Sequential(nn.Linear(width, width), *blocks, nn.Linear(width, 3))
    fixed_init(net)
    return net


def make_batches(count: int = 4, size: int = 8, width: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, width, generator=generator),
            torch.randint(0, 3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


class Toy(pl.LightningModule):
    """Cross-entropy on whatever network it is given; a rank takes its share of every batch."""

    def __init__(
        self, net: nn.Module | None = None, optimizer: MakeOptimizer = sgd, batches: int = 4
    ) -> None:
        super().__init__()
        self.net = make_net() if net is None else net
        self.make_optimizer = optimizer
        self.batches = batches

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        return nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        shares = [(x[rank::world], y[rank::world]) for x, y in make_batches(self.batches)]
        return DataLoader(shares, batch_size=None)  # type: ignore[arg-type]


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 1, **options})
    trainer.fit(module)
    return trainer


def reference(
    net: nn.Module,
    windows: Iterable[list[Batch]],
    optimizer: MakeOptimizer = sgd,
    divisor: int = 1,
) -> Iterator[dict[str, float]]:
    """Train without Lightning in float32, and yield what a monitor should have seen.

    Every window is one optimizer step; its losses are divided by ``divisor`` as Lightning does.
    """
    chosen = optimizer(net.parameters())
    for window in windows:
        chosen.zero_grad()
        for x, y in window:
            (nn.functional.cross_entropy(net(x), y) / divisor).backward()
        weights = {name: p.detach().clone() for name, p in net.named_parameters()}
        seen = {f"grad/{name}": _rms(p.grad) for name, p in net.named_parameters()}
        squares = sum(p.grad.double().square().sum() for p in net.parameters())
        chosen.step()
        for name, p in net.named_parameters():
            seen[f"weight/{name}"] = _rms(weights[name])
            seen[f"update/{name}"] = _rms(p.detach() - weights[name]) / _rms(weights[name])
        yield {"norm": math.sqrt(squares), **seen}


def _rms(tensor: Tensor | None) -> float:
    assert tensor is not None
    return tensor.double().square().mean().sqrt().item()


def rows(history: dict[str, list[Any]], column: str) -> list[dict[str, Any]]:
    """Return one dictionary a step, from layer to value."""
    steps = sorted(set(history["step"]))
    return [
        {
            layer: value
            for layer, value, at in zip(
                history["layer"], history[column], history["step"], strict=True
            )
            if at == step
        }
        for step in steps
    ]


def compare(
    history: dict[str, list[Any]],
    totals: dict[str, list[Any]],
    expected: list[dict[str, float]],
    rel: float = 1e-5,
    paths: dict[str, str] = BLOCKS,
) -> None:
    """Hold a monitor's numbers against those of ``reference``."""
    assert totals["norm"] == pytest.approx([seen["norm"] for seen in expected], rel=rel)
    # differences of float32 weights keep about four digits of a step of a thousandth
    for column, key, near in (
        ("grad_rms", "grad", rel),
        ("weight_rms", "weight", rel),
        ("update_to_weight", "update", max(rel, 1e-4)),
    ):
        for step, seen in zip(rows(history, column), expected, strict=True):
            wanted = {layer: seen[f"{key}/{path}.weight"] for layer, path in paths.items()}
            assert step == pytest.approx(wanted, rel=near)


def assert_equals_reference(
    monitor: GradientFlowMonitor, expected: list[dict[str, float]], rel: float = 1e-5
) -> None:
    compare(monitor.history, monitor.totals, expected, rel)
