"""Which label a module's own loss leaves out."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from lightning_depth.callbacks._ignored import find_ignore_index

VOID = 254


class Holds(pl.LightningModule):
    """Holds what a project hangs on its module."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Written(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(batch[0], batch[1], ignore_index=255)


class Named(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.config = nn.Module()
        self.config.void = 7  # type: ignore[assignment] # a number

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(batch[0], batch[1], ignore_index=self.config.void)  # type: ignore[arg-type] # a number
        return loss + functional.nll_loss(batch[0], batch[1])


class Global(Written):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.nll_loss(batch[0], batch[1], ignore_index=VOID)


class Computed(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(batch[0], batch[1], ignore_index=len(batch))


class Wanted(pl.LightningModule):
    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.save_hyperparameters()


CE = nn.CrossEntropyLoss


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Holds(), None),
        (Holds(loss=CE()), None),
        (Holds(loss=CE(ignore_index=255)), 255),
        (Holds(loss=nn.NLLLoss(ignore_index=-1)), -1),
        (Holds(net=nn.Sequential(nn.Linear(1, 1), CE(ignore_index=0))), 0),
        (Holds(losses=[CE(), CE(ignore_index=255)]), 255),
        (Holds(losses={"seg": CE(ignore_index=255)}), 255),
        (Holds(loss=partial(functional.cross_entropy, ignore_index=255)), 255),
        (Holds(first=CE(ignore_index=255), second=CE(ignore_index=0)), None),
        (Holds(ignore_index=255), 255),
        (Holds(ignore_index=None, loss=CE(ignore_index=3)), 3),
        (Holds(ignore_index=True), None),
        (Wanted(), 255),
        (Wanted(-100), None),
        (Holds(iou=MulticlassJaccardIndex(3, ignore_index=255)), 255),
        (Holds(scores=MetricCollection([MulticlassAccuracy(3, ignore_index=2)])), 2),
        (Holds(loss=CE(), iou=MulticlassJaccardIndex(3, ignore_index=0)), None),
        (Holds(loss=CE(ignore_index=255), iou=MulticlassJaccardIndex(3, ignore_index=0)), 255),
        (Written(), 255),
        (Named(), 7),
        (Global(), VOID),
        (Computed(), None),
        (type("Prompt", (pl.LightningModule,), {})(), None),
    ],
)  # fmt: skip
def test_what_the_loss_leaves_out(module: nn.Module, expected: int | None) -> None:
    assert find_ignore_index(module) == expected
