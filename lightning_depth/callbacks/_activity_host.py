"""From what one batch showed on the device to numbers a layer on the host, in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from lightning_depth.callbacks._activity import Activity, Parts
from lightning_depth.functional.activations import gram_matrix, rank_of_gram

__all__ = ["HostActivity", "bring"]


@dataclass(frozen=True)
class HostActivity:
    """What one batch showed, on the host and over all ranks."""

    samples: int
    units: dict[str, int]
    """By place, how many rectified units it has; the two tensors hold them in this order."""
    maxima: Tensor
    means: Tensor
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
    saturated = _merged(activity.saturated)
    norms = {name: torch.stack(parts).norm() for name, parts in _several(activity.norms)}
    norms = {name: norms.get(name, parts[0]) for name, parts in activity.norms.items()}
    shapes, grams = _grams(activity.kept)
    groups = (maxima.values(), means.values(), saturated.values(), norms.values(), grams)
    home = next((tensor.device for group in groups for tensor in group), None)
    if home is None:
        return HostActivity(0, {}, torch.empty(0), torch.empty(0), {}, {}, {}, {}, {})
    flat = [_flat(list(group), home) for group in groups]
    vector, sizes = torch.cat(flat), [len(part) for part in flat]
    copies = _gather(vector, ranks).cpu()
    read = torch.split(copies, sizes, dim=1)
    rank, variety = _spectra(shapes, read[4])
    return HostActivity(
        samples=activity.samples * len(copies),
        units={place: tensor.numel() for place, tensor in maxima.items()},
        maxima=read[0].amax(0),
        means=read[1].mean(0),
        saturated=dict(zip(saturated, read[2].mean(0).tolist(), strict=True)),
        rms={
            name: norm / math.sqrt(activity.numels[name])
            for name, norm in zip(norms, read[3].square().mean(0).sqrt().tolist(), strict=True)
        },
        rank=rank,
        variety=variety,
        features=activity.features,
    )


def _several(parts: Parts) -> list[tuple[str, list[Tensor]]]:
    return [(name, runs) for name, runs in parts.items() if len(runs) > 1]


def _grams(kept: dict[str, Tensor]) -> tuple[dict[tuple[int, ...], list[str]], list[Tensor]]:
    """The layers of each shape, and the inner products of all layers of one shape in one call."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, features in kept.items():
        shapes.setdefault(tuple(features.shape), []).append(name)
    grams = [gram_matrix(torch.stack([kept[name] for name in names])) for names in shapes.values()]
    return shapes, grams


def _flat(tensors: list[Tensor], home: torch.device) -> Tensor:
    """All numbers of some tensors in one vector."""
    if any(tensor.device != home for tensor in tensors):
        tensors = [tensor.to(home) for tensor in tensors]
    if not tensors:
        return torch.empty(0, device=home)
    if tensors[0].ndim != 1:
        tensors = [tensor.reshape(-1) for tensor in tensors]
    joined = torch.cat(tensors)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def _spectra(
    shapes: dict[tuple[int, ...], list[str]], grams: Tensor
) -> tuple[dict[str, float], dict[str, float]]:
    """The effective rank of each layer, and the share of its output that differs."""
    rank: dict[str, float] = {}
    variety: dict[str, float] = {}
    start = 0
    for (size, _), names in shapes.items():
        stop = start + len(names) * size * size
        gram = grams[:, start:stop].view(-1, len(names), size, size)
        start = stop
        traces = gram.diagonal(dim1=2, dim2=3).sum(-1)
        finite = traces.isfinite()  # one bad element makes every sum of its row bad
        if not finite.all():
            gram = torch.where(finite[..., None, None], gram, 0.0)
        ranks = torch.where(finite, rank_of_gram(gram), math.nan).mean(0)
        rank.update(zip(names, ranks.tolist(), strict=True))
        variety.update(zip(names, traces.mean(0).tolist(), strict=True))
    return rank, variety


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
