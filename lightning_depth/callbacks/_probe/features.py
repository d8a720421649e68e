"""One row of features a sample out of whatever a layer hands on.

Letters: B samples of the batch, D features, T tokens, H and W positions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Pool", "PoolFunction", "Projection", "Rows", "is_channels_last", "pool_rows"]

NONZEROS = 4  # buckets that every feature is added to


class PoolFunction(Protocol):
    """Reduces the output of a layer."""

    def __call__(self, output: Tensor) -> Tensor:
        """Return ``(B, D)`` for an output ``(B, ...)``."""


Pool = Literal["mean", "class_token", "flatten"] | PoolFunction


class Rows(NamedTuple):
    """The rows of a batch that are wanted.

    Args:
        samples: Which samples, ``(M,)``.
        places: Where in each sample, as a share of its height and width ``(M, P)``; None for
            labels that hold for the whole sample.
    """

    samples: Tensor
    places: Tensor | None


def pool_rows(output: Tensor, rows: Rows, pool: Pool, *, channels_last: bool) -> tuple[Tensor, str]:
    """Return the wanted rows ``(M, D)`` and how they were reduced, in a word or two."""
    chosen = output.detach()[rows.samples.to(output.device)]
    if callable(pool):
        return pool(chosen).flatten(1), getattr(pool, "__name__", type(pool).__name__)
    if chosen.ndim <= 2:
        return chosen.flatten(1) if chosen.ndim == 2 else chosen[:, None], "none"
    if rows.places is not None:
        return _at_places(chosen, rows.places, channels_last), "position"
    if pool == "flatten":
        return chosen.flatten(1), "flatten"
    if pool == "class_token" and chosen.ndim == 3 and channels_last:
        return chosen[:, 0], "class token"
    positions = tuple(range(1, chosen.ndim - 1) if channels_last else range(2, chosen.ndim))
    wide = chosen.float() if chosen.dtype in (torch.float16, torch.bfloat16) else chosen
    return wide.mean(positions), "mean"


def is_channels_last(output: Tensor, module: nn.Module) -> bool:
    """Whether the last axis holds the features: told by the widths of the module's weights."""
    if output.ndim < 3:
        return False
    widths, convolves = set(), False
    for part in module.modules():
        convolves |= isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        widths |= {weight.shape[0] for weight in part.parameters(recurse=False) if weight.ndim}
        widths |= {getattr(part, "hidden_size", -1)}
    first, last = output.shape[1] in widths, output.shape[-1] in widths
    if first != last:
        return last
    return output.ndim == 3 and not convolves


class Projection:
    """Sparse seeded random projection to a bounded width; the identity below it.

    Every feature is added with a random sign to four of the buckets, which keeps distances on
    average (Kane and Nelson 2014) and costs one pass over the features.

    Args:
        width: Features that come in.
        max_features: Features that go out at most.
        seed: Which buckets and signs.
    """

    def __init__(self, width: int, max_features: int, seed: int) -> None:
        self.width = width
        self.num_features = min(width, max_features)
        generator = torch.Generator().manual_seed(seed + width)
        shape = (NONZEROS, width if width > max_features else 0)
        self._buckets = torch.randint(self.num_features, shape, generator=generator)
        self._signs = torch.randint(2, shape, generator=generator) * 2.0 - 1.0

    def __call__(self, rows: Tensor) -> Tensor:
        """Return ``(M, num_features)`` for rows ``(M, width)``."""
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if not self._buckets.numel():
            return rows
        projected = rows.new_zeros(len(rows), self.num_features)
        for buckets, signs in zip(self._buckets, self._signs, strict=True):
            projected.index_add_(1, buckets.to(rows.device), rows * signs.to(rows))
        projected *= NONZEROS**-0.5
        return projected


def _at_places(output: Tensor, places: Tensor, channels_last: bool) -> Tensor:
    """The features of one position of each row, the nearest where resolutions differ."""
    if not channels_last:
        output = output.movedim(1, -1)
    sizes = output.shape[1:-1]
    if len(sizes) < places.shape[1]:
        return output.flatten(1, -2).mean(1) if len(sizes) else output
    rows = torch.arange(len(output), device=output.device)
    for axis, size in enumerate(sizes[: places.shape[1]]):
        index = (places[:, axis].to(output.device) * size).long().clamp(max=size - 1)
        output = output[rows, index]  # one axis less
    return output.flatten(1)
