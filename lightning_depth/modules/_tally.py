"""Loss, error and accuracy of a pass, added up sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Tally"]


class Tally(Metric):
    """Means over samples: an uneven last batch and unequal processes count as what they are.

    One metric instead of three, because it is updated in every training step.
    """

    is_differentiable = False
    full_state_update = False
    loss_sum: Tensor
    num_errors: Tensor
    num_samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("loss_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_errors", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("num_samples", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            loss: Mean loss of the batch.
            logits: Scores of the classes, shape ``(B, C)``.
            targets: Right classes, shape ``(B,)``.
        """
        num_samples = targets.shape[0]
        self.loss_sum += loss.detach().float() * num_samples
        self.num_errors += (logits.detach().argmax(dim=1) != targets).sum()
        self.num_samples += num_samples

    def compute(self) -> dict[str, Tensor]:
        """Return the means over all samples, NaN where there were none."""
        error = self.num_errors / self.num_samples
        return {"loss": self.loss_sum / self.num_samples, "error": error, "accuracy": 1.0 - error}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move to another device, but keep the sum in float32 when the module goes to half."""
        moved = super()._apply(*args, **kwargs)
        self.loss_sum = self.loss_sum.float()
        self._defaults["loss_sum"] = torch.zeros_like(self.loss_sum)
        return moved
