"""Error and loss on the training data in evaluation mode.

The training loss that a loop logs is measured on changing weights, with dropout, batch statistics
and augmentation on. Only the same data in evaluation mode tells a deep network that overfits from
one that never trained (He et al. 2015, arXiv:1512.03385, figure 1).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_depth import _extras
from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._curves_figure import draw_curve
from lightning_depth.callbacks._ending import find_untrained
from lightning_depth.callbacks._training_samples import (
    CollectedShare,
    TrainingShare,
    find_loader,
    map_style,
)
from lightning_depth.errors import ConfigurationError, check_count
from lightning_depth.findings import Finding
from lightning_depth.functional.classification import (
    IGNORED,
    chance_error,
    chance_loss,
    classification_sums,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TrainingErrorMonitor"]


class TrainingErrorMonitor(DepthCallback):
    """Measure error and loss on a fixed share of the training data, in evaluation mode.

    The samples come from ``train_eval_dataloader()`` of the data module (or of the module) where
    it exists: training data in fixed order without augmentation. Otherwise they are read from the
    data set of the training loader, with its transforms, always the same draws; data that cannot
    be indexed is covered by its first batches. Training is not disturbed: modes, random number
    generators, BatchNorm statistics and the training loader are left as found.

    Batches are pairs ``(x, y)`` and ``module(x)`` gives logits of shape ``(N, classes, ...)``, or
    ``predict`` says how to get there.

    Args:
        max_samples: At most this many training samples are looked at, drawn once; the same ones
            each time, spread over the processes.
        every_n_epochs: Measure at the end of each n-th epoch.
        predict: Name of a method of the LightningModule that takes a whole batch and returns
            outputs and targets, for batches that are not ``(x, y)``.
        loss: Module that takes outputs and targets and returns their mean loss; default:
            cross-entropy.
        error: Metric that takes outputs and targets; default: the share of wrong classes.
        prefix: First part of the logged keys ``error`` and ``loss``.
        on_finding: What happens when something is found, see the other callbacks.
        figures: Whether figures are logged, or written where no logger takes them: at most one an
            epoch and for at most a hundredth of the time, and one at the end.

    Raises:
        ConfigurationError: An argument cannot be used as given, or the module has no method
            named as ``predict``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = TrainingErrorMonitor(max_samples=500)
        >>> len(Trainer(callbacks=[monitor], logger=False).callbacks) > 0
        True
    """

    def __init__(
        self,
        max_samples: int = 2000,
        every_n_epochs: int = 1,
        *,
        predict: str | None = None,
        loss: nn.Module | None = None,
        error: Metric | None = None,
        prefix: str = "train_error",
        on_finding: OnFinding = "warn",
        figures: bool = True,
    ) -> None:
        super().__init__(prefix=prefix, on_finding=on_finding, figures=figures)
        self.max_samples = check_count("max_samples", max_samples)
        self.every_n_epochs = check_count("every_n_epochs", every_n_epochs)
        self.predict = predict
        self.loss = loss
        self.error = error
        self._share: TrainingShare | CollectedShare | None = None
        self._class_counts: list[float] | None = None

    @property
    def chance_error(self) -> float | None:
        """Error of always answering the commonest class; None before the first measurement."""
        return chance_error(self._class_counts) if self._class_counts else None

    @property
    def chance_loss(self) -> float | None:
        """Cross-entropy of always answering the shares of the classes, in nats."""
        return chance_loss(self._class_counts) if self._class_counts else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the module can do what is asked of it.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
            stage: What begins; only "fit" matters here.
        """
        super().setup(trainer, pl_module, stage)
        if self.predict is not None and not callable(getattr(pl_module, self.predict, None)):
            raise ConfigurationError(
                f"`predict` must be the name of a method of {type(pl_module).__name__}, "
                f"but got {self.predict!r}."
            )
        self._share = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batches of data that cannot be read again.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
            batch: A training batch.
            batch_idx: Its number in the epoch.
        """
        if self._share is None:
            self._share = self._choose_share(trainer)
            if self.predict is None:
                _pair(batch)
        if isinstance(self._share, CollectedShare):
            self._share.offer(batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and log.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
        """
        if (trainer.current_epoch + 1) % self.every_n_epochs or self._share is None:
            return
        if not self._agree(trainer):
            return
        error, loss, num_samples = self._measure(trainer, pl_module)
        self._history.append(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            error=error,
            loss=loss,
            num_samples=num_samples,
        )
        self._log(pl_module, {"error": error, "loss": loss}, epoch_end=True)
        self._log_figure(trainer)

    def plot(self) -> tuple[Figure, Axes]:
        """Draw error and loss over the epochs, one above the other.

        Returns:
            The figure and its upper axes, which show the error.
        """
        table = self.history
        figure = _extras.matplotlib_figure().Figure(figsize=(6, 5), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        for axes, name in ((upper, "error"), (lower, "loss")):
            draw_curve(axes, table.get("epoch", []), table.get(name, []), name)
            axes.set_ylabel(name)
        upper.set_title("Training data in evaluation mode")
        lower.set_xlabel("epoch")
        return figure, upper

    def _choose_share(self, trainer: pl.Trainer) -> TrainingShare | CollectedShare:
        with isolate_rng(include_cuda=False):
            loader = find_loader(trainer)
        if not map_style(loader):
            return CollectedShare(-(-self.max_samples // trainer.world_size))
        first = None
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            first = int(trainer.num_training_batches) * int(loader.batch_size or 1)
        return TrainingShare(
            loader, self.max_samples, trainer.global_rank, trainer.world_size, first
        )

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[float, float, int]:
        """Return error, loss and the number of samples, the same on every rank."""
        assert self._share is not None
        sums: list[Tensor] = []
        if self.error is not None:
            self.error.to(pl_module.device).reset()
        with _undisturbed(pl_module), trainer.precision_plugin.val_step_context():
            for batch, count in self._share:
                moved = trainer.strategy.batch_to_device(batch)
                outputs, targets = self._answer(pl_module, moved)
                sums.append(self._compare(outputs[:count], targets[:count], count))
        wrong, loss, answers, num_samples, *class_counts = _total(trainer, sums)
        self._class_counts = self._class_counts or class_counts
        error = wrong / answers if self.error is None else float(self.error.compute())
        return error, loss / answers, int(num_samples)

    def _answer(self, pl_module: pl.LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
        if self.predict is not None:
            outputs, targets = getattr(pl_module, self.predict)(batch)
            return outputs, targets
        inputs, targets = _pair(batch)
        return pl_module(inputs), targets

    def _compare(self, outputs: Tensor, targets: Tensor, count: int) -> Tensor:
        """Return wrong answers, loss, answers, samples and, the first time, samples per class."""
        samples = outputs.new_tensor([count], dtype=torch.float32)
        if self.error is not None:
            self.error.update(outputs, targets)
        if self.loss is not None:
            loss = self.loss(outputs, targets).float().reshape(1) * count
            return torch.cat([torch.zeros_like(loss), loss, samples, samples])
        sums = torch.cat([classification_sums(outputs, targets), samples])
        if self._class_counts is not None or targets.is_floating_point():
            return sums
        known = targets[targets != IGNORED]
        return torch.cat([sums, torch.bincount(known, minlength=outputs.shape[1]).float()])

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        """Whether the network fitted its training data; early stopping, if there, knows more."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        judged = any(hasattr(callback, "_judges_ending") for callback in callbacks)
        errors = self._history.table().get("error", [])
        return [] if judged or self.error is not None else find_untrained(errors, self.chance_error)

    def _summary(self) -> str:
        table = self._history.table()
        if not table:
            return ""
        error, loss, epoch = table["error"][-1], table["loss"][-1], table["epoch"][-1]
        return f"Training error in evaluation mode: {error:.3g} (loss {loss:.3g}, epoch {epoch})."

    def _extra_state(self) -> dict[str, Any]:
        return {"class_counts": self._class_counts}

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self._class_counts = state["class_counts"]

    def _detach(self) -> None:
        self._share = None


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise ConfigurationError(
        "`TrainingErrorMonitor` needs batches (x, y) with a tensor y, but got a "
        f"{type(batch).__name__}: name a method of the LightningModule that takes the batch and "
        "returns outputs and targets, as `TrainingErrorMonitor(predict='my_method')`."
    )


def _total(trainer: pl.Trainer, sums: list[Tensor]) -> list[float]:
    """Add over batches on the host, in float64, and over ranks; one copy to the host."""
    total = torch.stack(sums).cpu().double().sum(0)
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        total = trainer.strategy.reduce(total.to(device), reduce_op="sum").cpu()
    numbers: list[float] = total.tolist()
    return numbers


@contextmanager
def _undisturbed(pl_module: pl.LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients, with random numbers of its own, and all of it put back.

    A compiled network is run as written: other batch sizes would have it compiled again.
    """
    training = [module for module in pl_module.modules() if module.training]
    try:
        with (
            isolate_rng(include_cuda=pl_module.device.type == "cuda"),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            torch.manual_seed(0)  # random transforms of the data set draw the same each time
            np.random.seed(0)
            random.seed(0)
            pl_module.eval()
            yield
    finally:
        for module in training:
            module.training = True
