"""From what one batch showed on the device to numbers a layer on the host, in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from lightning_depth.callbacks._activity import Activity, Parts
from lightning_depth.functional.activations import gram_matrix, rank_of_gram

__all__ = ["ENOUGH_RANK", "HostActivity", "bring"]

ENOUGH_RANK = 2.0
"""Effective rank of an input from which a layer could make more than one direction."""
_FED = "given to "


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
    fed_rank: dict[str, float]
    """Centered effective rank of what a layer was given, where that of its output is low."""
    fed_variety: dict[str, float]
    """Share of what a layer was given that differs between samples."""
    widths: dict[str, int]
    """Units of a layer's output."""


def bring(
    activity: Activity, *, ranks: int = 1, device: torch.device | None = None
) -> HostActivity:
    """Return what a batch showed, in one copy from the device, and over all ranks in one gather.

    Args:
        activity: What was recorded.
        ranks: How many processes recorded the same places on samples of their own.
        device: Where numbers are gathered if this process recorded none; the CPU by default.
    """
    maxima, means = _merged(activity.maxima, largest=True), _merged(activity.means)
    saturated = _merged(activity.saturated)
    norms = {name: torch.stack(parts).norm() for name, parts in _several(activity.norms)}
    norms = {name: norms.get(name, parts[0]) for name, parts in activity.norms.items()}
    fed = {f"{_FED}{name}": t for name, t in activity.fed.items() if isinstance(t, Tensor)}
    shapes, grams = _grams(activity.kept | fed)
    groups = (maxima.values(), means.values(), saturated.values(), norms.values(), grams)
    home = next((tensor.device for group in groups for tensor in group), device)
    home = torch.device("cpu") if home is None else home
    flat = [_flat(list(group), home) for group in groups]
    vector, sizes = torch.cat(flat), [len(part) for part in flat]
    copies = _gather(vector, ranks).cpu()
    read = torch.split(copies, sizes, dim=1)
    spectra = _spectra(shapes, read[4])
    fed_rank, fed_variety = _fed(activity, spectra)
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
        rank={name: spectra[name].rank for name in activity.kept},
        variety={name: spectra[name].variety for name in activity.kept},
        fed_rank=fed_rank,
        fed_variety=fed_variety,
        widths=activity.widths,
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


class _Spectrum(NamedTuple):
    """The inner products of a few rows, with what is read of them."""

    gram: Tensor
    variety: float
    rank: float = math.nan


def _spectra(shapes: dict[tuple[int, ...], list[str]], grams: Tensor) -> dict[str, _Spectrum]:
    """The effective rank of each layer's output, and the share of it and its input that differs."""
    found: dict[str, _Spectrum] = {}
    start = 0
    for (size, _), names in shapes.items():
        stop = start + len(names) * size * size
        gram = grams[:, start:stop].view(-1, len(names), size, size)
        start = stop
        variety = gram.diagonal(dim1=2, dim2=3).sum(-1).mean(0).tolist()
        outputs = sum(not name.startswith(_FED) for name in names)  # they stand before the inputs
        rank = [*_ranks(gram[:, :outputs]), *[math.nan] * (len(names) - outputs)]
        rows = zip(names, gram.unbind(1), variety, rank, strict=True)
        found.update({name: _Spectrum(*spectrum) for name, *spectrum in rows})
    return found


def _fed(
    activity: Activity, spectra: dict[str, _Spectrum]
) -> tuple[dict[str, float], dict[str, float]]:
    """Rank and variety of what each layer was given; the rank, which is dear, where it matters."""
    sources = {
        name: spectra[f"{_FED}{name}" if isinstance(given, Tensor) else given]
        for name, given in activity.fed.items()
    }
    low = {name: source for name, source in sources.items() if spectra[name].rank < ENOUGH_RANK}
    ranks = {name: _ranks(source.gram[:, None])[0] for name, source in low.items()}
    return ranks, {name: source.variety for name, source in sources.items()}


def _ranks(grams: Tensor) -> list[float]:
    """The effective rank of each layer, over all ranks; not-a-number where a row is not finite."""
    if not grams.shape[1]:
        return []
    finite = grams.diagonal(dim1=2, dim2=3).sum(-1).isfinite()  # one bad element spoils its row
    if not finite.all():
        grams = torch.where(finite[..., None, None], grams, 0.0)
    ranks: list[float] = torch.where(finite, rank_of_gram(grams), math.nan).mean(0).tolist()
    return ranks


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
