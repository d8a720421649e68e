"""From what one batch showed on the device to numbers a layer on the host, in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from lightning_depth.callbacks._activity import Activity, Parts
from lightning_depth.functional.activations import rank_of_gram

__all__ = ["HostActivity", "bring"]


@dataclass(frozen=True)
class HostActivity:
    """What one batch showed, on the host and over all ranks."""

    samples: int
    maxima: dict[str, Tensor]
    means: dict[str, Tensor]
    saturated: dict[str, float]
    rms: dict[str, float]
    rank: dict[str, float]
    """Centered effective rank of a layer's output."""
    variety: dict[str, float]
    """Share of a layer's output that differs between samples."""
    features: dict[str, int]
    """Outputs of a layer for one sample."""


def bring(activity: Activity, *, ranks: int = 1) -> HostActivity:
    """Return what a batch showed, in one copy from the device, and over all ranks in one gather.

    Args:
        activity: What was recorded.
        ranks: How many processes recorded the same places on samples of their own.
    """
    maxima, means = _merged(activity.maxima, largest=True), _merged(activity.means)
    saturated, squares = _merged(activity.saturated), _merged(activity.squares)
    groups: list[dict[str, Tensor]] = [maxima, means, saturated, squares, activity.grams]
    tensors = [tensor for group in groups for tensor in group.values()]
    if not tensors:
        return HostActivity(0, {}, {}, {}, {}, {}, {}, {})
    home = tensors[0].device
    vector = torch.cat([tensor.to(home, torch.float32).flatten() for tensor in tensors])
    copies = _gather(vector, ranks).cpu()
    parts = iter(copies.split([tensor.numel() for tensor in tensors], dim=1))
    read = [{name: next(parts) for name in group} for group in groups]
    grams = {
        name: part.view(len(copies), *activity.grams[name].shape) for name, part in read[4].items()
    }
    return HostActivity(
        samples=activity.samples * len(copies),
        maxima={name: part.amax(0) for name, part in read[0].items()},
        means={name: part.mean(0) for name, part in read[1].items()},
        saturated={name: part.mean().item() for name, part in read[2].items()},
        rms={name: math.sqrt(part.mean().item()) for name, part in read[3].items()},
        rank=_ranks(grams),
        variety={
            name: gram.diagonal(dim1=1, dim2=2).sum(1).mean().item() for name, gram in grams.items()
        },
        features=activity.features,
    )


def _merged(parts: Parts, *, largest: bool = False) -> dict[str, Tensor]:
    """Merge what several runs of a layer in one step showed: views and siamese pairs."""
    return {
        place: runs[0] if len(runs) == 1 else _merge(runs, largest) for place, runs in parts.items()
    }


def _merge(runs: Sequence[Tensor], largest: bool) -> Tensor:
    alike = torch.stack([run for run in runs if run.shape == runs[0].shape])
    return alike.amax(0) if largest else alike.mean(0)


def _gather(vector: Tensor, ranks: int) -> Tensor:
    """One row a rank; only this rank's where the ranks ran different layers."""
    if ranks == 1:
        return vector[None]
    sizes = [torch.zeros(1, dtype=torch.long, device=vector.device) for _ in range(ranks)]
    own = torch.tensor([vector.numel()], device=vector.device)
    torch.distributed.all_gather(sizes, own)
    if len({int(size) for size in sizes}) > 1:
        return vector[None]
    rows = [torch.empty_like(vector) for _ in range(ranks)]
    torch.distributed.all_gather(rows, vector)
    return torch.stack(rows)


def _ranks(grams: dict[str, Tensor]) -> dict[str, float]:
    """The effective rank of each layer, those of one size in one call."""
    found: dict[str, float] = {}
    for size in {gram.shape[-1] for gram in grams.values()}:
        names = [name for name, gram in grams.items() if gram.shape[-1] == size]
        stack = torch.stack([grams[name] for name in names])  # (L, ranks, n, n)
        finite = stack.isfinite().all(-1).all(-1)
        ranks = rank_of_gram(torch.where(finite[..., None, None], stack, 0.0).flatten(0, 1))
        ranks = torch.where(finite, ranks.view(finite.shape), math.nan).mean(1)
        found.update(zip(names, ranks.tolist(), strict=True))
    return found
