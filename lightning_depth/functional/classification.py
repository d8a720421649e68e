"""Error and cross-entropy of a classifier as sums, which add exactly over batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["chance_error", "chance_loss", "classification_sums"]

IGNORED = -100
"""Targets of this value do not count, as in ``torch.nn.functional.cross_entropy``."""


def classification_sums(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the number of wrong answers, the summed cross-entropy and the number of answers.

    Shape:
        - logits: ``(N, C, ...)`` with C classes.
        - targets: ``(N, ...)`` with class numbers, -100 where an answer does not count; or
          ``(N, C, ...)`` with the probability of each class.
        - Output: ``(3,)`` in float32.

    Args:
        logits: Outputs of the network before the softmax.
        targets: What it should have said.

    Returns:
        Wrong answers, cross-entropy in nats, answers; not divided by anything.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> classification_sums(logits, torch.tensor([0, 1, 1])).tolist()[::2]
        [1.0, 3.0]
    """
    logits = logits.float()
    soft = targets.is_floating_point()
    losses = functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    classes = targets.argmax(dim=1) if soft else targets
    counts = classes != IGNORED
    wrong = (logits.argmax(dim=1) != classes) & counts
    return torch.stack([wrong.sum().float(), losses.sum(), counts.sum().float()])


def chance_error(class_counts: Sequence[float]) -> float:
    """Return the error of always answering the commonest class.

    Args:
        class_counts: Number of samples of each class.

    Returns:
        Share of wrong answers.

    Example:
        >>> chance_error([30, 10])
        0.25
    """
    return 1 - max(class_counts) / sum(class_counts)


def chance_loss(class_counts: Sequence[float]) -> float:
    """Return the cross-entropy of always answering the shares of the classes.

    Args:
        class_counts: Number of samples of each class.

    Returns:
        Entropy of the labels in nats.

    Example:
        >>> round(chance_loss([10, 10]), 4)
        0.6931
    """
    total = sum(class_counts)
    return -sum(count / total * math.log(count / total) for count in class_counts if count)
