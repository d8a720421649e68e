"""A fixed share of the training data, as training itself sees it and without disturbing it.

The batches are copies of those that the first epoch reads: whatever chooses, orders, limits or
finishes them (samplers, limits, subclasses of DataLoader, streams, workers, combined loaders) has
then been at work, and the loader is read by nobody else. A second iterator over the loader would
draw from its sampler's generator and restart persistent workers, and a stream has no second
reading. Copies are taken before anything of the module or the Trainer touches the batch, so that
each measurement can send them down the whole path that a validation batch takes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_depth.callbacks._memory import own_random_numbers

__all__ = ["KEPT_BYTES", "Batches", "Share", "copied", "count_samples", "gather_share", "listen"]

KEPT_BYTES = 256 * 2**20
"""Batches of up to this many bytes are kept in memory, and always one."""
STORED_BYTES = 2**20
"""A share of up to this many bytes travels with a checkpoint, so that a resumed run has it too."""


def gather_share(trainer: pl.Trainer, max_samples: int) -> Share:
    """Return a share read from ``train_eval_dataloader()``, or an empty one for training to fill.

    Args:
        trainer: The Trainer.
        max_samples: At most about this many samples over all ranks.
    """
    each = math.ceil(max_samples / trainer.world_size)
    with own_random_numbers(include_cuda=False):
        torch.default_generator.manual_seed(0)  # random transforms draw the same in every run
        loader = _find_loader(trainer)
        if loader is None:
            return Share(each, _planned_batches(trainer), _batch_size(trainer.train_dataloader))
        share = Share(each, batch_size=_batch_size(loader))
        for batch in loader:
            share.offer(batch)
            if share.full:
                break
        share.close()
    return share


def _find_loader(trainer: pl.Trainer) -> Any:
    for owner in (trainer.datamodule, trainer.lightning_module):  # type: ignore[attr-defined]
        if (offered := getattr(owner, "train_eval_dataloader", None)) is not None:
            # under several ranks each reads its own part, as in validation
            connector: Any = trainer._data_connector
            return connector._prepare_dataloader(offered(), shuffle=False, mode="validate")
    return None


def _planned_batches(trainer: pl.Trainer) -> float:
    """How many batches this epoch will have, as far as anyone knows."""
    left = math.inf
    if trainer.max_steps >= 0:
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
    return max(1, min(trainer.num_training_batches, left))


def _batch_size(loader: Any) -> int | None:
    size = getattr(loader, "batch_size", None)
    if size is None:
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) else None


class Batches:
    """Kept batches, handed out as copies: a step may change what it is given.

    Args:
        kept: Pairs of a batch and the number of its samples.
    """

    def __init__(self, kept: list[tuple[Any, int]]) -> None:
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return ((copied(batch), count) for batch, count in self._kept)


class Share:
    """Copies of training batches, spread over the first epoch.

    Args:
        max_samples: Batches are taken until they hold this many samples, or ``KEPT_BYTES``.
        planned: How many batches the epoch will have; infinite where nobody knows, and then the
            first ones are taken.
        batch_size: Samples of a whole batch, where the loader says it.

    Example:
        >>> share = Share(max_samples=4, planned=6)
        >>> for number in range(6):
        ...     share.offer(torch.full((2, 1), float(number)))
        >>> [batch[0].item() for batch, _ in share.first(2)]
        [0.0, 3.0]
    """

    def __init__(
        self, max_samples: int, planned: float = math.inf, batch_size: int | None = None
    ) -> None:
        self._max_samples = max_samples
        self._planned = planned
        self._batch_size = batch_size
        self._kept: list[tuple[Any, int]] = []
        self._seen = self._stride = 0
        self._room = KEPT_BYTES
        self._closed = False

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def full(self) -> bool:
        """Whether no further batch is taken."""
        return self._closed or self.num_samples >= self._max_samples or self._room < 0

    @property
    def num_samples(self) -> int:
        """Samples kept so far."""
        return sum(count for _, count in self._kept)

    def offer(self, batch: Any) -> None:
        """Keep a copy of a batch if its turn has come.

        Args:
            batch: What the loader gave.
        """
        if not self._kept:
            self._plan(batch)
        due, self._seen = self._seen % self._stride == 0, self._seen + 1
        if not due or self.full:
            return
        self._room -= _num_bytes(batch)
        if self._room >= 0 or not self._kept:
            self._kept.append((copied(batch), count_samples(batch, self._batch_size)))

    def close(self) -> None:
        """Take no further batch."""
        self._closed = True

    def first(self, number: int) -> Batches:
        """Return the first batches, which can be read again and again."""
        return Batches(self._kept[:number])

    def state_dict(self) -> dict[str, Any] | None:
        """Return a small share of plain batches as it is, None where a checkpoint would swell."""
        small = sum(_num_bytes(batch) for batch, _ in self._kept) <= STORED_BYTES
        if not small or not all(_is_plain(batch) for batch, _ in self._kept):
            return None
        kept = [[batch, count] for batch, count in self._kept]
        return {"kept": kept, "seen": self._seen, "stride": self._stride, "closed": self._closed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned.

        Args:
            state: The state of a share.
        """
        self._kept = [(batch, count) for batch, count in state["kept"]]
        self._seen, self._stride = state["seen"], state["stride"]
        self._closed = state["closed"]

    def batches_for(self, num_samples: float) -> int:
        """Return how many batches hold this many samples, or all if they do not."""
        count = read = 0
        while read < num_samples and count < len(self._kept):
            read += self._kept[count][1]
            count += 1
        return count

    def _plan(self, batch: Any) -> None:
        """Choose the distance between batches such that they cover the epoch."""
        wanted = math.ceil(self._max_samples / count_samples(batch, self._batch_size))
        wanted = min(wanted, max(1, KEPT_BYTES // max(1, _num_bytes(batch))))
        self._stride = max(1, int(self._planned // wanted)) if math.isfinite(self._planned) else 1


class Tap:
    """Stands in for a precision plugin's ``convert_input``, the first to be handed a batch.

    It belongs to no module, so that no copy of the user's module takes it along.

    Args:
        trainer: Only batches of its training are handed on.
        plugin: Its precision plugin.
    """

    def __init__(self, trainer: pl.Trainer, plugin: Any) -> None:
        self._trainer = trainer
        self._convert = plugin.convert_input
        self.listeners: list[Callable[[Any], None]] = []

    def __call__(self, data: Any) -> Any:
        if self._trainer.training:
            for listener in self.listeners:
                listener(data)
        return self._convert(data)


def listen(trainer: pl.Trainer, listener: Callable[[Any], None]) -> Callable[[], None]:
    """Have a function called with each training batch as the loader gave it.

    Args:
        trainer: The Trainer.
        listener: Is handed the batch.

    Returns:
        A function that ends it, and may be called twice.
    """
    plugin: Any = trainer.precision_plugin
    tap = vars(plugin).get("convert_input")
    if not isinstance(tap, Tap):
        tap = plugin.convert_input = Tap(trainer, plugin)
    tap.listeners.append(listener)

    def end() -> None:
        if listener in tap.listeners:
            tap.listeners.remove(listener)
        if not tap.listeners:
            vars(plugin).pop("convert_input", None)

    return end


def copied(batch: Any) -> Any:
    """Return a copy on the host that shares no memory with the batch.

    Args:
        batch: Anything that a loader gives.

    Returns:
        The same structure.
    """
    if isinstance(batch, torch.Tensor):
        return batch.detach().to("cpu", copy=True)
    if type(batch) in (list, tuple):
        return type(batch)(copied(part) for part in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(copied(part) for part in batch))
    if type(batch) is dict:
        return {key: copied(part) for key, part in batch.items()}
    return copy.deepcopy(batch)


def count_samples(batch: Any, batch_size: int | None = None) -> int:
    """Return how many samples a batch holds, by its first tensor.

    Args:
        batch: Anything that a loader gives.
        batch_size: No more than this: graphs and tokens have more rows than samples.

    Returns:
        The number, 1 where nothing tells it.

    Example:
        >>> count_samples({"x": torch.zeros(40, 3)}, batch_size=8)
        8
    """
    tensor = next((each for each in _tensors(batch) if each.ndim), None)
    rows = 1 if tensor is None else max(1, len(tensor))
    return min(rows, batch_size) if batch_size else rows


def _tensors(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth:
        for part in _parts(value):
            yield from _tensors(part, depth - 1)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    return list(vars(value).values()) if hasattr(value, "__dict__") else []


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) in (torch.Tensor, bool, int, float, str)


def _num_bytes(batch: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(batch))
