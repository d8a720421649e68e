"""Class error and loss as a step of validation, for modules whose own step cannot tell them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_depth.callbacks._evaluation import Entry
from lightning_depth.callbacks._ignored import find_ignore_index
from lightning_depth.errors import LightningDepthError
from lightning_depth.functional.classification import IGNORED, classification_sums

__all__ = ["ClassStep", "NotClassesError"]


class NotClassesError(LightningDepthError, ValueError):
    """Outputs and targets are not scores of classes and their numbers."""


class ClassStep:
    """Adds up wrong answers, loss and answers; called like ``validation_step``.

    Args:
        module: The user's module.
        predict: Name of its method that returns outputs and targets of a batch; by default
            ``module(x)`` is asked, of batches ``(x, y)`` with one label a sample.
        loss: Module that takes outputs and targets and returns their mean loss.
        error: Metric that takes outputs and targets.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        predict: str | None = None,
        loss: nn.Module | None = None,
        error: Metric | None = None,
    ) -> None:
        self._module = module
        self._answer: Callable[[Any], Any] = (
            getattr(module, predict) if predict is not None else self._ask
        )
        self._by_sample = predict is None
        self._loss, self._error = loss, error
        self._ignored = find_ignore_index(module)
        self._sums: dict[str, list[Tensor]] = {}
        self._counts: list[Tensor] = []
        if error is not None:
            error.to(module.device).reset()

    def __call__(self, batch: Any, batch_idx: int) -> None:
        """Add one batch."""
        outputs, targets = self._answer(batch)
        if self._loss is not None:
            self._add("loss", self._loss(outputs, targets) * len(targets), len(targets))
        if self._error is not None:
            self._error.update(outputs, targets)
        try:
            self._add_classes(outputs, targets)
        except NotClassesError:
            if self._loss is None and self._error is None:
                raise

    def entries(self) -> dict[str, Entry]:
        """Return error and loss of what went through, on this rank, as far as they are known."""
        entries = {
            name: Entry("mean", *torch.stack(sums).sum(0).tolist())
            for name, sums in self._sums.items()
        }
        if self._error is not None:
            entries["error"] = Entry("mean", float(self._error.compute()), 1.0)
        return entries

    def class_counts(self) -> list[float]:
        """Return how often each class is the answer, on this rank; empty where unknown."""
        return torch.stack(self._counts).sum(0).tolist() if self._counts else []

    def _ask(self, batch: Any) -> tuple[Any, Any]:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise NotClassesError(f"a batch is a {_name(batch)} and not (x, y)")
        return self._module(batch[0]), batch[1]

    def _add(self, name: str, value: Any, weight: Any) -> None:
        pair = [torch.as_tensor(number).detach().cpu().double() for number in (value, weight)]
        self._sums.setdefault(name, []).append(torch.stack(pair))

    def _add_classes(self, outputs: Any, targets: Any) -> None:
        """Add wrong answers and cross-entropy, of anything that is classes."""
        _check_classes(outputs, targets, by_sample=self._by_sample)
        if targets.is_floating_point():
            counts = targets.double().sum(0)
        else:
            targets = self._as_numbers(targets, outputs.shape[1])
            counts = torch.bincount(targets[targets != IGNORED], minlength=outputs.shape[1])
        self._counts.append(counts.cpu().double())
        wrong, entropy, answers = classification_sums(outputs, targets)
        if self._error is None:
            self._add("error", wrong, answers)
        if self._loss is None:
            self._add("loss", entropy, answers)

    def _as_numbers(self, targets: Tensor, classes: int) -> Tensor:
        targets = targets.long()
        if self._ignored is not None:
            targets = targets.masked_fill(targets == self._ignored, IGNORED)
        strange = targets[(targets != IGNORED) & ((targets < 0) | (targets >= classes))]
        if len(strange):
            raise NotClassesError(
                f"label {int(strange[0])} is none of the {classes} classes of the output"
            )
        return targets


def _check_classes(outputs: Any, targets: Any, *, by_sample: bool) -> None:
    """Raise unless these are scores ``(N, C, ...)`` and labels ``(N, ...)``.

    Only whoever names a method knows that further axes are positions and not scores.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        raise NotClassesError(f"outputs are a {_name(outputs)} and targets a {_name(targets)}")
    shapes = f"outputs of shape {tuple(outputs.shape)} and targets of {tuple(targets.shape)}"
    if targets.is_floating_point() or targets.dtype == torch.bool:
        if by_sample or not _is_distribution(outputs, targets):
            raise NotClassesError(f"targets are of {targets.dtype} and no class numbers")
        return
    fits = outputs.ndim >= 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    if not fits or (by_sample and targets.ndim != 1) or not outputs.is_floating_point():
        raise NotClassesError(f"{shapes} are no scores (B, C) and labels (B,)")
    if outputs.shape[1] < 2:
        raise NotClassesError("there is one logit a sample and not a score a class")


def _is_distribution(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets are the probabilities of classes, one row a sample."""
    if targets.dtype == torch.bool or targets.ndim != 2 or targets.shape != outputs.shape:
        return False
    one = (targets.float().sum(1) - 1).abs().max() < 1e-3 if len(targets) else True
    return targets.shape[1] > 1 and bool((targets >= 0).all()) and bool(one)


def _name(value: Any) -> str:
    return type(value).__name__
