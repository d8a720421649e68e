"""Data sets that fit into memory: a batch is one indexing, not a loop over samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_depth.errors import MisuseError, check_count

__all__ = ["InMemoryDataModule", "Splits", "TensorSamples"]

Sample = tuple[Tensor, ...]
_EVALUATION_BATCH = 512


class TensorSamples(Dataset[Sample]):
    """Samples held in tensors; a whole batch is fetched at once.

    Args:
        tensors: Inputs, labels and whatever else a sample has; equal in length.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> Sample:
        """Return one sample, or those of a tensor of indices."""
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> ChosenSamples:
        """Return the samples of a batch: torch's loader prefers this to single samples."""
        return ChosenSamples(self, indices)


class ImageSamples(TensorSamples):
    """Images held in bytes, a quarter of the memory, and normalised when they are fetched.

    Args:
        images: Grey levels from 0 to 255, shape ``(N, C, H, W)``.
        labels: Labels, shape ``(N,)``.
        mean: Grey level that becomes 0.
        std: Difference of grey levels that becomes 1.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: float, std: float) -> None:
        super().__init__(images, labels)
        self._mean = mean
        self._std = std

    def __getitem__(self, index: Any) -> Sample:
        """Return one sample, or those of a tensor of indices."""
        image, label = super().__getitem__(index)
        return (image.float() - self._mean) / self._std, label


class ChosenSamples(Sequence[Sample]):
    """Samples that are looked up one by one, or all at once by who knows that they are tensors.

    Args:
        samples: The data set.
        indices: Which of its samples.
    """

    def __init__(self, samples: TensorSamples, indices: Sequence[int]) -> None:
        self._samples = samples
        self._indices = indices

    def __len__(self) -> int:
        """Return the number of chosen samples."""
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        """Return one of the chosen samples."""
        return self._samples[self._indices[index]]

    def stacked(self) -> Sample:
        """Return the batch that a loader would make of the samples."""
        return self._samples[torch.as_tensor(self._indices)]


@dataclass(frozen=True)
class Splits:
    """The parts of a data set.

    Args:
        train: Samples to train on.
        val: Samples to validate on.
        test: Samples to test on; none where the data set has no such part.
    """

    train: TensorSamples
    val: TensorSamples
    test: TensorSamples | None = None


class InMemoryDataModule(LightningDataModule):
    """Base of the data modules whose samples are all in memory.

    Args:
        batch_size: Samples of one training step.
    """

    num_classes: int
    input_shape: tuple[int, ...]

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = check_count("batch_size", batch_size)
        self._splits: Splits | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Read, split and normalise the data."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data, once.

        Args:
            stage: What Lightning is about to do; all parts are loaded whatever it is.
        """
        if self._splits is None:
            self._splits = self.load()

    @property
    def splits(self) -> Splits:
        """The loaded parts."""
        if self._splits is None:
            raise MisuseError(f"Call `setup()` of {type(self).__name__} before asking for data.")
        return self._splits

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the training samples in a new order each epoch, drawn from torch's global seed."""
        samples = self.splits.train
        return DataLoader(
            samples,
            self.batch_size,
            shuffle=True,
            collate_fn=_collate,
            # BatchNorm cannot train on a batch of one
            drop_last=len(samples) % self.batch_size == 1 < self.batch_size,
        )

    def train_eval_dataloader(self) -> DataLoader[Sample]:
        """Return the training samples in fixed order, as evaluation wants to see them."""
        return self._evaluation_loader(self.splits.train)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation samples."""
        return self._evaluation_loader(self.splits.val)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return the test samples, where the data set has some."""
        if self.splits.test is None:
            raise MisuseError(f"{type(self).__name__} has no test part.")
        return self._evaluation_loader(self.splits.test)

    def _evaluation_loader(self, samples: TensorSamples) -> DataLoader[Sample]:
        # a generator of its own: starting a loader draws a number, and training must not feel it
        generator = torch.Generator().manual_seed(0)
        size = max(self.batch_size, _EVALUATION_BATCH)
        return DataLoader(samples, size, collate_fn=_collate, generator=generator)


def _collate(batch: Any) -> Any:
    return batch.stacked() if isinstance(batch, ChosenSamples) else default_collate(batch)
