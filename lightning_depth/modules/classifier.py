"""Classification with any network that turns a batch into one score per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lightning_depth.errors import ConfigurationError, check_choice, check_real
from lightning_depth.modules._optimization import (
    l1_norm,
    make_optimizer,
    scale_schedule,
    shrink_after_steps,
)
from lightning_depth.modules._tally import Tally
from lightning_depth.modules.factories import OptimizerFactory, SchedulerFactory, takes_total_steps

__all__ = ["Classifier"]

Batch = Sequence[Tensor]


class Classifier(LightningModule):
    """Trains a network on cross-entropy and logs loss, error and accuracy.

    The keys are ``train/loss``, ``train/error``, ``train/accuracy`` and the same under ``val/`` and
    ``test/``: means over the samples of an epoch, equal for one process and many. Nothing is logged
    or synchronised within a training step. Gradients are clipped by the Trainer
    (`gradient_clip_val`).

    Shape:
        - Batch: inputs ``(B, ...)`` and labels ``(B,)``; further elements are left alone.
        - Output: ``(B, C)``.

    Args:
        network: The network; its output is one score per class.
        optimizer: Makes the optimizer from parameters, as `build_optimizer("SGD", lr=0.1)` does.
        scheduler: Makes a learning-rate scheduler from the optimizer; one that needs
            `total_steps` is told the length of the run. None keeps the learning rate.
        label_smoothing: Share of the label that is spread over all classes.
        l1: Strength of the L1 penalty on weights (not on biases and normalisation layers).
        l1_mode: `proximal` shrinks weights after each step by learning rate times `l1` and gives
            exact zeros; `subgradient` adds the penalty to the loss.
        l2: Strength of the L2 penalty on weights, given to the optimizer as its weight decay in
            place of its own.
        layer_decay: The learning rate is multiplied by it for each layer nearer to the input, by
            timm's layer groups; 1 trains all layers alike.
        interval: How often the scheduler steps, `step` or `epoch`; by default each step if it
            needs `total_steps`, otherwise each epoch.
        monitor: Logged value that a scheduler which waits for a plateau looks at.

    Raises:
        ConfigurationError: An option is out of bounds.

    Example:
        >>> from lightning_depth.modules import build_optimizer
        >>> model = Classifier(nn.Linear(16, 3), build_optimizer("SGD", lr=0.1))
        >>> import torch
        >>> tuple(model(torch.zeros(4, 16)).shape)
        (4, 3)
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        label_smoothing: float = 0.0,
        l1: float = 0.0,
        l1_mode: Literal["proximal", "subgradient"] = "proximal",
        l2: float = 0.0,
        layer_decay: float = 1.0,
        interval: Literal["step", "epoch"] | None = None,
        monitor: str = "val/loss",
    ) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = check_real("label_smoothing", label_smoothing, 0.0, 1.0)
        self.l1 = check_real("l1", l1, 0.0)
        self.l1_mode = check_choice("l1_mode", l1_mode, ("proximal", "subgradient"))
        self.l2 = check_real("l2", l2, 0.0)
        self.layer_decay = check_real("layer_decay", layer_decay, 0.0, 1.0)
        if interval is not None:
            check_choice("interval", interval, ("step", "epoch"))
        self.interval = interval
        self.monitor = monitor
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self.train_tally = Tally()
        self.val_tally = Tally()
        self.test_tally = Tally()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one score per class.

        Args:
            inputs: A batch of inputs.

        Returns:
            The scores.
        """
        logits: Tensor = self.network(inputs)
        return logits

    def predict_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return scores and labels of a batch, as callbacks ask for where it holds more than two.

        Args:
            batch: Inputs, labels, and whatever else.

        Returns:
            One score per class in float32, which spares the loss the rounding of half precision;
            the labels.
        """
        return self(batch[0]).float(), batch[1]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, with an L1 penalty in it where one was asked for.

        Args:
            batch: Inputs and labels.
            batch_idx: Number of the batch in the epoch.

        Returns:
            The loss.
        """
        loss = self._evaluate(batch, self.train_tally)
        if self.l1 and self.l1_mode == "subgradient":
            loss = loss + self.l1 * l1_norm(self.network)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a validation batch to the means.

        Args:
            batch: Inputs and labels.
            batch_idx: Number of the batch in the pass.
        """
        self._evaluate(batch, self.val_tally)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a test batch to the means.

        Args:
            batch: Inputs and labels.
            batch_idx: Number of the batch in the pass.
        """
        self._evaluate(batch, self.test_tally)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the scores of a batch.

        Args:
            batch: Inputs, and labels that are not looked at.
            batch_idx: Number of the batch in the pass.

        Returns:
            One score per class.
        """
        logits: Tensor = self(batch[0])
        return logits

    def on_train_epoch_end(self) -> None:
        """Log the means of the training epoch."""
        self._log_means("train", self.train_tally)

    def on_validation_epoch_end(self) -> None:
        """Log the means of the validation pass."""
        self._log_means("val", self.val_tally)

    def on_test_epoch_end(self) -> None:
        """Log the means of the test pass."""
        self._log_means("test", self.test_tally)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the scheduler in the form that Lightning wants.

        Returns:
            The optimizer alone, or a dictionary with both.
        """
        optimizer = make_optimizer(
            self._make_optimizer, self.network, l2=self.l2, layer_decay=self.layer_decay
        )
        if self.l1 and self.l1_mode == "proximal":
            shrink_after_steps(optimizer, self.l1)
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._schedule(optimizer)}

    def _schedule(self, optimizer: Optimizer) -> dict[str, Any]:
        make: Any = self._make_scheduler
        needs_length = takes_total_steps(make)
        scheduler = make(optimizer, **({"total_steps": self._length()} if needs_length else {}))
        scale_schedule(scheduler, optimizer)
        interval = self.interval or ("step" if needs_length else "epoch")
        return {"scheduler": scheduler, "interval": interval, "monitor": self.monitor}

    def _length(self) -> int:
        epochs, steps = self.trainer.max_epochs, self.trainer.estimated_stepping_batches
        length = steps if self.interval != "epoch" else (epochs or -1)
        if not 0 < length < float("inf"):
            raise ConfigurationError(
                "The scheduler needs the length of the run, but the Trainer does not know it: "
                "give it `max_epochs`."
            )
        return int(length)

    def _evaluate(self, batch: Batch, tally: Tally) -> Tensor:
        logits, targets = self.predict_batch(batch)
        loss = cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        tally.update(loss, logits, targets)
        return loss

    def _log_means(self, stage: str, tally: Tally) -> None:
        # equal in all processes already: Lightning's own reduction changes nothing, but it warns
        # without; a batch size spares it a look at the batch
        means = {f"{stage}/{name}": value for name, value in tally.compute().items()}
        several = self.trainer.world_size > 1
        self.log_dict(means, batch_size=1, prog_bar=stage != "test", sync_dist=several)
        tally.reset()
