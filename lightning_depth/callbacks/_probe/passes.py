"""A finished pass as one process sees it, or as all of them together do.

Letters: N samples, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import all_gather_object, all_reduce, get_world_size
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_depth.callbacks._probe.collector import Collector, LayerInfo
from lightning_depth.callbacks._probe.moments import LayerMoments
from lightning_depth.callbacks._probe.samples import Samples
from lightning_depth.functional.reservoir import balanced_quota, rank_in_class

__all__ = ["FinishedPass", "finish_pass"]

T = TypeVar("T")


@dataclass
class FinishedPass:
    """What a pass left: the sample in an order that does not depend on the processes.

    Args:
        samples: The samples kept, by class and key.
        features: Features of each layer ``(N, D)``, in order of first execution.
        filled: Whether each sample was measured at each layer ``(N,)``.
        infos: How each layer was reduced.
        moments: Sums of each layer over its cells, for a pass that was measured whole.
        cells: Class and nuisance label of each cell.
        counts: Samples of each class that were seen.
        reason: Why nothing can be measured, None where something can.
        dropped: Layers that were left out, with the reason.
        mismatch: Rows that a layer handed on and labels of that batch, where they differed.
        unread: Layers of which nothing was read, with the reason.
        negative: Labels below zero that were left out without anybody's word.
    """

    samples: Samples
    features: dict[str, Tensor]
    filled: dict[str, Tensor]
    infos: dict[str, LayerInfo]
    moments: dict[str, LayerMoments]
    cells: list[tuple[int, int]]
    counts: dict[int, int]
    reason: str | None
    dropped: dict[str, str] = field(default_factory=dict)
    mismatch: tuple[int, int] | None = None
    unread: dict[str, str] = field(default_factory=dict)
    negative: list[int] = field(default_factory=list)


class _Share(NamedTuple):
    """What this process has of one layer."""

    features: Tensor
    filled: Tensor
    moments: LayerMoments | None


def finish_pass(collector: Collector, world_size: int, device: torch.device) -> FinishedPass:
    """Return the pass of all processes; every one of them must call this.

    Raises:
        RuntimeError: Another process could not do its own part.
    """
    everyone = _exchange(lambda: _about(collector), world_size)
    finished, index, owner = _merge(everyone, collector.store.capacity)
    own = index[owner == collector.rank]
    mine: dict[str, _Share] = {}

    def gather_own() -> None:
        for name, info in finished.infos.items():
            mine[name] = _share_of(collector, name, own, info.num_features, finished.cells)

    _exchange(gather_own, world_size)
    for name, (features, filled, moments) in mine.items():
        finished.features[name], finished.filled[name] = (
            _gather_rows(features, filled, owner, device) if world_size > 1 else (features, filled)
        )
        if moments is not None:
            if world_size > 1:
                _reduce(moments, device)
            finished.moments[name] = moments
    return finished


def _exchange(work: Callable[[], T], world_size: int) -> list[T]:
    """What every process made of its own part; where one fails all do, and none waits for it."""
    if world_size == 1:
        return [work()]
    failed: Exception | None = None
    mine: tuple[T | None, str] = (None, "")
    try:
        mine = work(), ""
    except Exception as error:  # told to the others first, and raised below
        failed, mine = error, (None, f"{type(error).__name__}: {error}")
    everyone = [mine] * get_world_size()
    all_gather_object(everyone, mine)
    if failed is not None:
        raise failed
    for rank, (_, reason) in enumerate(everyone):
        if reason:
            raise RuntimeError(f"process {rank} could not do its part: {reason}")
    return [cast("T", value) for value, _ in everyone]


def _merge(everyone: list[dict[str, Any]], capacity: int) -> tuple[FinishedPass, Tensor, Tensor]:
    """The pass without its features, and the slot and the process of each sample that is kept."""
    counts: Counter[int] = Counter()
    infos: dict[str, LayerInfo] = {}
    for about in everyone:
        counts.update(about["counts"])
        infos = {**about["infos"], **infos}
    infos = {name: infos[name] for name in max((a["infos"] for a in everyone), key=len)} | infos
    dropped = {name: why for about in everyone for name, why in about["dropped"].items()}
    infos = {name: info for name, info in infos.items() if name not in dropped}
    index, samples, owner = _choose(everyone, counts, capacity)
    unread = {name: why for about in everyone for name, why in about["unread"].items()}
    finished = FinishedPass(
        samples, {}, {}, infos, {}, sorted({cell for about in everyone for cell in about["cells"]}),
        dict(counts), _first_reason(everyone), dropped,
        next((about["mismatch"] for about in everyone if about["mismatch"]), None),
        {name: why for name, why in unread.items() if name not in infos | dropped},
        sorted(set().union(*(about["negative"] for about in everyone))),
    )  # fmt: skip
    return finished, index, owner


def _about(collector: Collector) -> dict[str, Any]:
    """What the other processes must know before any features travel."""
    slots = (collector.store.samples.labels >= 0).nonzero()[:, 0]
    return {
        "rank": collector.rank,
        "slots": slots,
        "samples": collector.store.samples.at(slots),
        "counts": collector.store.counts,
        "infos": dict(collector.infos),
        "cells": list(collector.moments.cells) if collector.moments is not None else [],
        "dropped": dict(collector.dropped),
        "mismatch": collector.mismatch,
        "unread": collector.unread(),
        "negative": collector.negative,
        "reason": collector.reason,
    }


def _choose(
    everyone: list[dict[str, Any]], counts: Counter[int], capacity: int
) -> tuple[Tensor, Samples, Tensor]:
    """The slots of the samples that all processes together keep, in order of class and key."""
    slots = torch.cat([about["slots"] for about in everyone])
    samples = everyone[0]["samples"].join(*(about["samples"] for about in everyone[1:]))
    owner = torch.cat([torch.full_like(about["slots"], about["rank"]) for about in everyone])
    quota = balanced_quota(torch.tensor(list(counts.values())), capacity)
    keep = (rank_in_class(samples.keys, samples.labels) < quota).nonzero()[:, 0]
    keep = keep[torch.argsort(samples.keys[keep], stable=True)]
    keep = keep[torch.argsort(samples.labels[keep], stable=True)]
    return slots[keep], samples.at(keep), owner[keep]


def _share_of(
    collector: Collector, name: str, slots: Tensor, width: int, cells: list[tuple[int, int]]
) -> _Share:
    features, filled = _own_rows(collector, name, slots, width)
    if collector.moments is None:
        return _Share(features, filled, None)
    return _Share(features, filled, _moments(collector, name, width, cells))


def _own_rows(collector: Collector, name: str, slots: Tensor, width: int) -> tuple[Tensor, Tensor]:
    if name in collector.store.layers():
        found = collector.store.rows_of(name, slots)
        collector.store.forget(name)  # or both would lie in memory until the last layer
        return found
    return torch.zeros(len(slots), width), torch.zeros(len(slots), dtype=torch.bool)


def _gather_rows(
    features: Tensor, filled: Tensor, owner: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    parts = gather_all_tensors(features.to(device))
    masks = gather_all_tensors(filled.to(device=device, dtype=torch.uint8))
    gathered = features.new_zeros(len(owner), features.shape[1])
    known = torch.zeros(len(owner), dtype=torch.bool)
    for rank, (part, mask) in enumerate(zip(parts, masks, strict=True)):
        gathered[owner == rank] = part.cpu()
        known[owner == rank] = mask.cpu().bool()
    return gathered, known


def _moments(
    collector: Collector, name: str, width: int, cells: list[tuple[int, int]]
) -> LayerMoments:
    if collector.moments is not None and collector.moments.has(name):
        return collector.moments.arranged(name, cells)
    zeros = torch.zeros(len(cells), dtype=torch.float64)
    return LayerMoments(
        zeros, zeros.new_zeros(len(cells), width), zeros.clone(), zeros.new_zeros(width, width)
    )


def _reduce(moments: LayerMoments, device: torch.device) -> None:
    for name in ("counts", "sums", "squares", "moment"):
        value = getattr(moments, name).to(device)
        all_reduce(value)
        setattr(moments, name, value.cpu())


def _first_reason(everyone: list[dict[str, Any]]) -> str | None:
    return next((about["reason"] for about in everyone if about["reason"] is not None), None)
