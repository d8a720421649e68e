"""A fixed share of the training data, read without touching the loader that training uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, IterableDataset, Subset

__all__ = ["KEPT_BYTES", "CollectedShare", "TrainingShare", "find_loader", "map_style"]

KEPT_BYTES = 64 * 2**20
"""Batches of up to this many bytes are kept in memory instead of being read again each time."""


def find_loader(trainer: pl.Trainer) -> Any:
    """Return ``train_eval_dataloader()`` of the data module or module, else the training loader."""
    for owner in (trainer.datamodule, trainer.lightning_module):  # type: ignore[attr-defined]
        if (offered := getattr(owner, "train_eval_dataloader", None)) is not None:
            return offered()
    return trainer.train_dataloader


def map_style(loader: Any) -> bool:
    """Whether single samples of a loader can be read again, by index."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and isinstance(loader.dataset, Sized)
        and hasattr(loader.dataset, "__getitem__")
        and _batch_size(loader) is not None
    )


class TrainingShare:
    """The same samples of a data set on every reading, split evenly over the ranks.

    Every rank reads the same number of batches, because a sharded network needs all ranks in
    each forward pass: ranks that have a sample less repeat one, and ``num_samples`` leaves it out.

    Args:
        loader: A map-style loader, of which data set, batch size, collate function and number of
            workers are used.
        max_samples: At most this many samples, drawn once with a seed of their own.
        rank: This process.
        world_size: Number of processes.
        first: Draw from this many first samples only; None draws from all.

    Example:
        >>> loader = DataLoader(torch.arange(10.0), batch_size=4, shuffle=True)
        >>> [len(batch) for batch, _ in TrainingShare(loader, max_samples=5)]
        [4, 1]
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        max_samples: int,
        rank: int = 0,
        world_size: int = 1,
        first: int | None = None,
    ) -> None:
        available = len(loader.dataset)  # type: ignore[arg-type]
        chosen = _draw(min(available, first or available), max_samples)
        own = chosen[rank::world_size]
        self.num_samples = len(own)
        each = -(-len(chosen) // world_size)
        self._loader = _plain_loader(loader, own + chosen[: each - len(own)])
        self._kept: list[Any] | None = None

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield batches, each with the number of its samples that count."""
        left = self.num_samples
        size = self._loader.batch_size or 1
        for batch in self._batches():
            yield batch, min(size, left)
            left -= min(size, left)

    def _batches(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Any] = []
        room = KEPT_BYTES
        for batch in self._loader:
            yield batch
            room -= _num_bytes(batch)
            if room >= 0:
                kept.append(batch)
            else:
                kept.clear()
        if room >= 0:
            self._kept = kept


class CollectedShare:
    """The first batches of training, kept for data that cannot be read a second time.

    Args:
        max_samples: Batches are taken until they hold this many samples.

    Example:
        >>> share = CollectedShare(max_samples=3)
        >>> for batch in (torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2, 5)):
        ...     share.offer(batch)
        >>> [count for _, count in share]
        [2, 2]
    """

    def __init__(self, max_samples: int) -> None:
        self._left = max_samples
        self._batches: list[tuple[Any, int]] = []

    @property
    def full(self) -> bool:
        """Whether no further batch is taken."""
        return self._left <= 0

    def offer(self, batch: Any) -> None:
        """Keep a copy of a batch, unless there are enough."""
        if self.full:
            return
        count = extract_batch_size(batch)
        copy = apply_to_collection(batch, torch.Tensor, _copy_to_cpu)
        self._batches.append((copy, count))
        self._left -= count

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield batches, each with the number of its samples."""
        return iter(self._batches)


def _copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _draw(available: int, max_samples: int) -> list[int]:
    if available <= max_samples:
        return list(range(available))
    generator = torch.Generator().manual_seed(0)
    drawn: list[int] = (
        torch.randperm(available, generator=generator)[:max_samples].sort()[0].tolist()
    )
    return drawn


def _plain_loader(loader: DataLoader[Any], indices: Sequence[int]) -> DataLoader[Any]:
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=_batch_size(loader),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
        pin_memory=loader.pin_memory,
    )


def _batch_size(loader: DataLoader[Any]) -> int | None:
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else None


def _num_bytes(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return sum(map(_num_bytes, batch))
    return KEPT_BYTES + 1  # of unknown size: read again each time
