"""A class-balanced sample of a pass, of bounded size: which samples, and their features by layer.

Letters: M samples at hand, D features.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_depth.functional.reservoir import balanced_quota, rank_in_class

__all__ = ["Plan", "SampleStore", "Samples"]

FIRST_ROWS = 4096  # room that a layer is given at once, so that the usual sample never moves


class Samples(NamedTuple):
    """Samples with what is known of each.

    Args:
        keys: Seeded hash of the input ``(M,)``; the smallest of each class are kept.
        labels: Class ``(M,)``.
        nuisance: Second label ``(M,)``, -1 where there is none.
    """

    keys: Tensor
    labels: Tensor
    nuisance: Tensor

    def at(self, index: Tensor) -> Samples:
        """The samples at some places."""
        return Samples(*(value[index] for value in self))

    def join(self, *others: Samples) -> Samples:
        """These samples and others after them."""
        return Samples(*(torch.cat(parts) for parts in zip(self, *others, strict=True)))


class Plan(NamedTuple):
    """Which rows of a batch are kept, and where.

    Args:
        rows: Rows of the batch ``(M,)``.
        slots: Rows of the store: a slice where they follow each other, else ``(M,)``.
    """

    rows: Tensor
    slots: Tensor | slice


class SampleStore:
    """Features of a class-balanced sample, one buffer a layer.

    Args:
        capacity: Samples kept at most, unless there are more classes than that.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        none = torch.zeros(0, dtype=torch.long)
        self._samples = Samples(none, none, none)
        self._seen: Counter[int] = Counter()
        self._buffers: dict[str, Tensor] = {}
        self._batches = none  # number of the batch that each slot was filled from
        self._num_batches = 0
        self._measured: dict[str, list[int]] = {}  # the batches that were measured at each layer

    @property
    def counts(self) -> dict[int, int]:
        """Samples of each class that were seen."""
        return dict(self._seen)

    @property
    def samples(self) -> Samples:
        """The samples kept, in order of their slots; a free slot has the label -1."""
        return self._samples

    def plan(self, arriving: Samples) -> Plan:
        """Choose among the samples kept and those of a batch; call ``put`` for each layer next."""
        self._seen.update(arriving.labels.tolist())
        quota = balanced_quota(torch.tensor(list(self._seen.values())), self.capacity)
        kept = self._samples.labels >= 0
        old = kept.nonzero()[:, 0]
        keys = torch.cat([self._samples.keys[old], arriving.keys])
        labels = torch.cat([self._samples.labels[old], arriving.labels])
        stays = rank_in_class(keys, labels) < quota
        self._samples.labels[old[~stays[: len(old)]]] = -1
        rows = stays[len(old) :].nonzero()[:, 0]
        free = (self._samples.labels < 0).nonzero()[:, 0]
        size = len(self._samples.labels)
        fresh = torch.arange(max(0, len(rows) - len(free))) + size
        slots = torch.cat([free[: len(rows)], fresh])
        self._write(slots, arriving.at(rows))
        return Plan(rows, slots if len(free) else slice(size, size + len(rows)))

    def put(self, layer: str, features: Tensor, slots: Tensor | slice) -> None:
        """Keep the features of planned rows at one layer.

        Args:
            layer: Name of the layer.
            features: ``(M, D)``, in the order of the plan.
            slots: Where, as planned.
        """
        buffer = self._buffers.get(layer)
        if buffer is None or len(buffer) < len(self._samples.labels):
            buffer = self._grow(layer, features)
        if isinstance(slots, slice):  # copied five times as fast
            buffer[slots] = features
        else:
            buffer.index_copy_(0, slots, features.to(device="cpu", dtype=buffer.dtype))
        self._measured.setdefault(layer, []).append(self._num_batches)

    def rows_of(self, layer: str, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a layer at some slots and whether each was measured."""
        filled = torch.isin(self._batches[slots], torch.tensor(self._measured[layer]))
        buffer = self._buffers[layer]  # which ends early where the layer ran in early batches only
        return buffer[slots.clamp(max=len(buffer) - 1)], filled

    def layers(self) -> dict[str, int]:
        """The layers that were measured and how wide they are."""
        return {name: buffer.shape[1] for name, buffer in self._buffers.items()}

    def forget(self, layer: str) -> None:
        """Keep nothing of a layer."""
        self._buffers.pop(layer, None)
        self._measured.pop(layer, None)

    def _write(self, slots: Tensor, samples: Samples) -> None:
        grow = int(slots.max()) + 1 - len(self._samples.labels) if len(slots) else 0
        if grow > 0:
            blank = torch.full((grow,), -1)
            self._samples = self._samples.join(Samples(blank, blank, blank))
            self._batches = torch.cat([self._batches, blank])
        for mine, theirs in zip(self._samples, samples, strict=True):
            mine[slots] = theirs
        self._num_batches += 1
        self._batches[slots] = self._num_batches

    def _grow(self, layer: str, like: Tensor) -> Tensor:
        """Make room at a layer for all slots; memory that is not written costs nothing."""
        needed = len(self._samples.labels)
        size = max(needed, min(max(2 * needed, FIRST_ROWS), self.capacity + len(like)))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        buffer = torch.empty(size, like.shape[1], dtype=dtype)
        if layer in self._buffers:
            buffer[: len(self._buffers[layer])] = self._buffers[layer]
        self._buffers[layer] = buffer
        return buffer
