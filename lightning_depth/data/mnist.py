"""Handwritten digits of MNIST, from files in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from lightning_depth import _extras
from lightning_depth.data._files import cache_folder, data_folder, unpack_gzip
from lightning_depth.data._memory import ImageSamples, InMemoryDataModule, Splits
from lightning_depth.errors import ConfigurationError, check_count, check_real

__all__ = ["MNIST"]

_NUM_TRAIN, _NUM_TEST, _PIXELS = 60_000, 10_000, 28 * 28
_IMAGE_HEADER, _LABEL_HEADER = 16, 8
_FILES = {
    "train-images-idx3-ubyte": _IMAGE_HEADER + _NUM_TRAIN * _PIXELS,
    "train-labels-idx1-ubyte": _LABEL_HEADER + _NUM_TRAIN,
    "t10k-images-idx3-ubyte": _IMAGE_HEADER + _NUM_TEST * _PIXELS,
    "t10k-labels-idx1-ubyte": _LABEL_HEADER + _NUM_TEST,
}


class MNIST(InMemoryDataModule):
    """70,000 handwritten digits of 28 by 28 pixels (LeCun, Cortes and Burges 1998).

    Files are read as torchvision lays them out, `MNIST/raw/train-images-idx3-ubyte` and three more,
    each with or without `.gz`; nothing is downloaded. The 60,000 training images are split into
    training and validation, stratified and seeded; the test part is the official one. Pixels are
    normalised by the mean and the standard deviation of the training images alone.

    Shape:
        - Batch: ``(B, 1, 28, 28)`` float32 and ``(B,)`` int64.

    Args:
        root: Folder that holds `MNIST/raw`; None takes the environment variable
            `LIGHTNING_DEPTH_DATA`.
        batch_size: Samples of one training step.
        val_fraction: Share of the 60,000 training images that is kept for validation.
        seed: Seed of the split.
        cache: Folder into which compressed files are unpacked (55 MB); None takes
            `LIGHTNING_DEPTH_CACHE`, then `XDG_CACHE_HOME`, then `~/.cache`.

    Raises:
        ConfigurationError: An argument is out of bounds; on loading, a file is wrong or missing.

    Example:
        >>> MNIST("somewhere", batch_size=128).input_shape
        (1, 28, 28)
    """

    num_classes = 10
    input_shape = (1, 28, 28)

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        *,
        val_fraction: float = 1 / 12,
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(batch_size)
        self.root = root
        self.val_fraction = check_real("val_fraction", val_fraction, 0.0, 1.0, exclusive=True)
        self.seed = check_count("seed", seed, minimum=0)
        self.cache = cache

    def prepare_data(self) -> None:
        """Unpack the files once per machine, where they are compressed."""
        self._unpacked()

    def load(self) -> Splits:
        """Read the images, split them and measure their grey levels."""
        folder = self._unpacked()
        images, labels = _read(folder, train=True)
        train, val = _extras.sklearn("model_selection").train_test_split(
            torch.arange(_NUM_TRAIN).numpy(),
            test_size=self.val_fraction,
            random_state=self.seed,
            stratify=labels.numpy(),
        )
        counts = images[train].flatten().bincount(minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64)
        mean = float(counts @ levels / counts.sum())
        std = float((counts @ (levels - mean).square() / counts.sum()).sqrt())
        parts = [(images[train], labels[train]), (images[val], labels[val])]
        parts.append(_read(folder, train=False))
        return Splits(*(ImageSamples(*part, mean, std) for part in parts))

    def _unpacked(self) -> Path:
        """Return the folder that holds the four files unpacked."""
        root = data_folder("MNIST", self.root)
        raw = root / "MNIST" / "raw"
        if all((raw / name).is_file() for name in _FILES):
            return root
        cache = cache_folder(self.cache)
        for name, num_bytes in _FILES.items():
            archive = raw / f"{name}.gz"
            if not archive.is_file():
                raise ConfigurationError(
                    f"MNIST must have the file {str(raw / name)!r}, with or without '.gz', "
                    f"but there is none: `root` must be the folder that holds 'MNIST/raw'."
                )
            unpack_gzip(archive, cache / "MNIST" / "raw" / name, num_bytes)
        return cache


def _read(folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    try:
        dataset = _extras.torchvision("datasets").MNIST(folder, train=train)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"The files in {str(folder / 'MNIST' / 'raw')!r} cannot be read as MNIST: {error}."
        ) from error
    expected = _NUM_TRAIN if train else _NUM_TEST
    if len(dataset.data) != expected or len(dataset.targets) != expected:
        raise ConfigurationError(
            f"MNIST must have {expected:,} {'training' if train else 'test'} images with labels, "
            f"but {str(folder / 'MNIST' / 'raw')!r} has {len(dataset.data):,} images "
            f"and {len(dataset.targets):,} labels."
        )
    return dataset.data.unsqueeze(1), dataset.targets
