"""Modules whose metric follows a script, for the tests of early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SCRIPT = (3.0, 2.0, 1.0, 5.0, 5.0, 5.0, 5.0)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def loader(num_samples: int = 8, batch_size: int = 4) -> DataLoader[Any]:
    """Return a fixed regression set in fixed order."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_samples, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size)


class ScriptedModule(pl.LightningModule):
    """A net with buffers, tied and frozen weights, whose ``val_loss`` is read from a script.

    ``seen`` holds a copy of all tensors at each validation.
    """

    count: Tensor

    def __init__(self, script: Sequence[float] = SCRIPT, key: str = "val_loss") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
        self.net[2].weight = self.net[0].weight
        self.head.bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.script, self.key, self.checks = list(script), key, 0
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(self.net(inputs))
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.count.add_(1)
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        self.log(self.key, self.script[min(self.checks, len(self.script) - 1)])
        self.checks += 1

    def on_validation_end(self) -> None:
        self.seen.append(tensors_of(self))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by name."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def differing(module: nn.Module, expected: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not bit-identical with the expected ones."""
    current = tensors_of(module)
    assert current.keys() == expected.keys()
    return [name for name, tensor in current.items() if not torch.equal(tensor, expected[name])]
