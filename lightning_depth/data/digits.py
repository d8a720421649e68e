"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lightning_depth import _extras
from lightning_depth.data._memory import InMemoryDataModule, Splits, TensorSamples
from lightning_depth.data._split import check_seed, stratified_split
from lightning_depth.errors import check_real

__all__ = ["Digits"]

_LEVELS = 16.0  # a pixel counts the dark dots of a 4 x 4 cell


class Digits(InMemoryDataModule):
    """1,797 handwritten digits of 8 by 8 pixels, embedded in scikit-learn (Alpaydin, Kaynak 1998).

    The split is stratified and seeded. Pixels are shifted and scaled by the mean and the standard
    deviation of all training pixels; nothing of the validation samples enters.

    Shape:
        - Batch: ``(B, 1, 8, 8)`` float32 and ``(B,)`` int64.

    Args:
        batch_size: Samples of one training step.
        val_fraction: Share of the samples that is kept for validation.
        seed: Seed of the split, at most 32 bits.

    Raises:
        ConfigurationError: An argument is out of bounds.

    Example:
        >>> data = Digits(batch_size=32)
        >>> data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> tuple(images.shape), len(data.splits.train), len(data.splits.val)
        ((32, 1, 8, 8), 1437, 360)
    """

    num_classes = 10
    input_shape = (1, 8, 8)

    def __init__(self, batch_size: int = 64, val_fraction: float = 0.2, seed: int = 0) -> None:
        super().__init__(batch_size)
        self.val_fraction = check_real("val_fraction", val_fraction, 0.0, 1.0, exclusive=True)
        self.seed = check_seed(seed)

    def load(self) -> Splits:
        """Split the digits and normalise them by what the training samples say."""
        images, labels = _read()
        train, val = stratified_split(labels, self.val_fraction, self.seed)
        mean, std = images[train].mean(), images[train].std(correction=0)
        images = ((images - mean) / std).float()
        return Splits(
            TensorSamples(images[train], labels[train]), TensorSamples(images[val], labels[val])
        )


@lru_cache(maxsize=1)
def _read() -> tuple[Tensor, Tensor]:
    data, target = _extras.sklearn("datasets").load_digits(return_X_y=True)
    images = torch.from_numpy(data / _LEVELS).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(target).long()
