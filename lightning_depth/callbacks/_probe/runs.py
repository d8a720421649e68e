"""What the probe asks of its arguments and of the run around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch.utils.data.distributed import DistributedSampler

from lightning_depth.callbacks._probe.measures import MEASURES, Measure
from lightning_depth.errors import check_choice, invalid

__all__ = ["check_measures", "check_pairs", "count_repeated", "count_unique", "is_last_pass"]


def check_measures(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the measures, or refuse one that is unknown."""
    for name in measures:
        check_choice("measures", name, MEASURES)
    return tuple(measures)


def check_pairs(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the pairs as whole numbers, or refuse what is no pair of labels."""
    found = []
    for pair in pairs:
        try:
            first, second = (int(label) for label in pair)
        except (TypeError, ValueError):
            raise invalid("class_pairs", "pairs of labels, as in [(4, 9)]", pairs) from None
        if first == second:
            raise invalid("class_pairs", "pairs of two different labels", pairs)
        found.append((first, second))
    return tuple(found)


def is_last_pass(trainer: pl.Trainer) -> bool:
    """Whether no later validation pass is to be expected."""
    last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs > 0
    return bool(last or trainer.should_stop)


def _sampler(trainer: pl.Trainer, dataloader_idx: int) -> Any:
    loaders = trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, Sequence):
        loaders = loaders[dataloader_idx] if dataloader_idx < len(loaders) else None
    batch_sampler = getattr(loaders, "batch_sampler", None)
    return getattr(batch_sampler, "sampler", getattr(loaders, "sampler", None))


def count_unique(trainer: pl.Trainer, dataloader_idx: int) -> int | None:
    """Samples of this process that are not repetitions; None where that cannot be known.

    torch's DistributedSampler fills up with samples from the start of its order, so that all
    processes have as many.
    """
    sampler = _sampler(trainer, dataloader_idx)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    size = len(sampler.dataset)  # type: ignore[arg-type] # a sampler of no length has none
    return max(0, -(-(size - sampler.rank) // sampler.num_replicas))


def count_repeated(trainer: pl.Trainer, dataloader_idx: int) -> int:
    """How many samples may count twice, at most."""
    sampler = _sampler(trainer, dataloader_idx)
    if trainer.world_size == 1 or isinstance(sampler, DistributedSampler):
        return 0
    return trainer.world_size - 1
