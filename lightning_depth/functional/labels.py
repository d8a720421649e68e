"""Class numbers out of the forms in which labels arrive."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_depth.errors import ConfigurationError

__all__ = ["class_indices"]


def class_indices(target: Tensor, num_classes: int) -> Tensor:
    """Return one class number a sample, -1 where there is none.

    Shape:
        - target: ``(N,)``, ``(N, 1)`` or one-hot ``(N, C)``
        - output: ``(N,)``

    Args:
        target: Class numbers of any integer type or as whole floats, or one-hot rows of any type.
            Negative numbers, numbers that are not whole and rows without a single one have no
            class.
        num_classes: Number of classes C.

    Returns:
        Class numbers, int64, -1 for samples without a class.

    Raises:
        ConfigurationError: The shape is none of the three, or a label is not below ``num_classes``.

    Example:
        >>> class_indices(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), num_classes=2).tolist()
        [1, 0]
    """
    if target.ndim == 2 and target.shape[1] == num_classes and num_classes > 1:
        return _from_one_hot(target)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        raise ConfigurationError(
            f"`target` must have the shape (N,), (N, 1) or (N, {num_classes}), "
            f"but got {tuple(target.shape)}."
        )
    return _from_numbers(target, num_classes)


def _from_one_hot(target: Tensor) -> Tensor:
    rows = target.double() if target.is_floating_point() else target.long()
    single = ((rows == 1).sum(1) == 1) & ((rows == 0).sum(1) == rows.shape[1] - 1)
    return torch.where(single, rows.argmax(1), -1)


def _from_numbers(target: Tensor, num_classes: int) -> Tensor:
    if target.is_floating_point():
        whole = torch.isfinite(target) & (target == target.round())
        labels = torch.where(whole, target, -1.0).long()
    else:
        labels = target.long()
    if labels.numel() and (largest := int(labels.max())) >= num_classes:
        raise ConfigurationError(
            f"`target` must hold labels below `num_classes` (={num_classes}), but got {largest}."
        )
    return labels.clamp(min=-1)
