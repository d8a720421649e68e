"""Handwritten digits of MNIST, from files in a folder."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from lightning_depth import _extras
from lightning_depth.data._files import cache_folder, data_folder, unpack_gzip
from lightning_depth.data._memory import ImageSamples, InMemoryDataModule, Splits
from lightning_depth.data._split import check_seed, stratified_split
from lightning_depth.errors import ConfigurationError, check_real

__all__ = ["MNIST"]

_NUM_TRAIN, _NUM_TEST = 60_000, 10_000
_SHAPES = {
    "train-images-idx3-ubyte": (_NUM_TRAIN, 28, 28),
    "train-labels-idx1-ubyte": (_NUM_TRAIN,),
    "t10k-images-idx3-ubyte": (_NUM_TEST, 28, 28),
    "t10k-labels-idx1-ubyte": (_NUM_TEST,),
}
_BYTES = 0x800  # first number of an IDX file of bytes, less its number of axes


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
        seed: Seed of the split, at most 32 bits.
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
        self.seed = check_seed(seed)
        self.cache = cache

    def prepare_data(self) -> None:
        """Unpack the files once per machine, where they are compressed."""
        for name in _SHAPES:
            self._unpacked(name)

    def load(self) -> Splits:
        """Read the images, split them and measure their grey levels."""
        images, labels = self._read("train")
        train, val = stratified_split(labels, self.val_fraction, self.seed)
        counts = images[train].flatten().bincount(minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64)
        mean = float(counts @ levels / counts.sum())
        std = float((counts @ (levels - mean).square() / counts.sum()).sqrt())
        parts = [(images[train], labels[train]), (images[val], labels[val])]
        parts.append(self._read("t10k"))
        return Splits(*(ImageSamples(*part, mean, std) for part in parts))

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        reader = _extras.torchvision("datasets.mnist")
        images = reader.read_image_file(str(self._unpacked(f"{part}-images-idx3-ubyte")))
        name = f"{part}-labels-idx1-ubyte"
        labels = reader.read_label_file(str(self._unpacked(name)))
        _check_digits(labels, self._source(name))
        return images.unsqueeze(1), labels

    def _source(self, name: str) -> Path:
        """Return the file that the user gave, unpacked or compressed."""
        path = data_folder("MNIST", self.root) / "MNIST" / "raw" / name
        archive = path.with_name(f"{name}.gz")
        if not path.is_file() and not archive.is_file():
            raise ConfigurationError(
                f"MNIST must have the file {str(path)!r}, with or without '.gz', "
                f"but there is none: `root` must be the folder that holds 'MNIST/raw'."
            )
        return path if path.is_file() else archive

    def _unpacked(self, name: str) -> Path:
        """Return the file unpacked, known to be of the expected kind and size."""
        shape = _SHAPES[name]
        header = struct.pack(f">{1 + len(shape)}I", _BYTES + len(shape), *shape)
        num_bytes = len(header) + math.prod(shape)
        path = source = self._source(name)
        if source.suffix == ".gz":
            path = unpack_gzip(source, cache_folder(self.cache), num_bytes)
        with path.open("rb") as file:
            found = file.read(len(header))
        size = path.stat().st_size
        if (found, size) != (header, num_bytes):
            raise ConfigurationError(
                f"The file {str(source)!r} must hold {' x '.join(f'{n:,}' for n in shape)} bytes "
                f"in IDX format, {num_bytes:,} in all that begin with {header.hex()}, "
                f"but has {size:,} that begin with {found.hex()}."
            )
        return path


def _check_digits(labels: Tensor, source: Path) -> None:
    """Refuse labels that no split could share out over its parts."""
    counts = labels.bincount(minlength=10)
    rare = (counts[:10] < 2).nonzero().flatten().tolist()
    other = (counts[10:].nonzero().flatten() + 10).tolist()
    if rare or other:
        found = [f"too few of {', '.join(map(str, rare))}"] if rare else []
        found += [f"also {', '.join(map(str, other[:10]))}"] if other else []
        raise ConfigurationError(
            f"The labels in {str(source)!r} must be the digits 0 to 9, each of them at least "
            f"twice, but there are {' and '.join(found)}."
        )
