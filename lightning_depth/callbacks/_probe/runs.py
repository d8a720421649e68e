"""What the probe asks of its arguments and of the run around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
from torch.utils.data.distributed import DistributedSampler

from lightning_depth.callbacks._probe.measures import MEASURES, Measure
from lightning_depth.errors import check_choice, check_count, invalid

__all__ = [
    "check_label",
    "check_measures",
    "check_pairs",
    "check_seed",
    "check_where",
    "count_repeated",
    "count_unique",
    "from_rank_zero",
    "is_last_pass",
    "why_no_loader",
]

T = TypeVar("T")


def check_label(name: str, label: int | None) -> int | None:
    """Return a label or None, or refuse what is no whole number."""
    if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
        raise invalid(name, "a label, a whole number, or None", label)
    return label


def check_measures(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the measures, or refuse one that is unknown, and none at all."""
    if isinstance(measures, str) or not list(measures):
        raise invalid("measures", "a list of at least one name, as in ['fisher']", measures)
    for name in measures:
        check_choice("measures", name, MEASURES)
    return tuple(measures)


def check_pairs(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the pairs as whole numbers, or refuse what is no pair of labels."""
    found = []
    for pair in pairs:
        try:
            first, second = (index(label) for label in pair)
        except (TypeError, ValueError):
            raise invalid("class_pairs", "pairs of labels, as in [(4, 9)]", pairs) from None
        if first == second:
            raise invalid("class_pairs", "pairs of two different labels", pairs)
        found.append((first, second))
    return tuple(found)


def check_where(name: str, where: Any) -> Any:
    """Return where a label is to be found, or refuse what names no part of a batch."""
    usable = where is None or callable(where) or isinstance(where, (str, int))
    if not usable or isinstance(where, bool):
        raise invalid(name, "a key, a place or a callable that is handed the batch", where)
    return where


def check_seed(seed: int) -> int:
    """Return a seed that torch's generators take, room left for what is added to it."""
    if check_count("seed", seed, 0) >= 2**63:
        raise invalid("seed", "a whole number below 2**63", seed)
    return seed


def why_no_loader(trainer: pl.Trainer, dataloader_idx: int) -> str | None:
    """The sentence that says that the validation loader asked for is not there."""
    count = len(trainer.num_val_batches)
    if dataloader_idx < count:
        return None
    known = f"their numbers are 0 to {count - 1}" if count > 1 else "there is only number 0"
    return f"there is no validation loader {dataloader_idx}, which `dataloader_idx` names; {known}"


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


def from_rank_zero(trainer: pl.Trainer, work: Callable[[], T]) -> T:
    """Return on every rank what rank zero makes; its failure is raised on every rank as well.

    Raises:
        RuntimeError: Rank zero failed; there it is the error itself.
    """
    answer: tuple[T | None, str] = (None, "")
    failed: Exception | None = None
    if trainer.is_global_zero:
        try:
            answer = work(), ""
        except Exception as error:  # told to the others first, and raised below
            failed, answer = error, (None, f"{type(error).__name__}: {error}")
    value, reason = trainer.strategy.broadcast(answer)
    if failed is not None:
        raise failed
    if reason:
        raise RuntimeError(f"rank zero could not do its part: {reason}")
    return cast("T", value)
