"""One row of features a sample out of whatever a layer hands on.

Letters: B samples of the batch, D features, T tokens, H and W positions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_depth.errors import ConfigurationError

__all__ = ["Pool", "PoolFunction", "Projection", "Rows", "pool_rows"]

NONZEROS = 4  # buckets that every feature is added to
FEW = 2  # one of so many samples is few
SMALL = 16  # positions of a small map
EXTRA_TOKENS = 2  # that may stand before those of the positions: of the class, of distillation


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
        grid: Height and width of the labels, P sizes.
    """

    samples: Tensor
    places: Tensor | None
    grid: tuple[int, ...] = ()

    def at(self, index: Tensor) -> Rows:
        """Some of these rows."""
        places = None if self.places is None else self.places[index]
        return Rows(self.samples[index], places, self.grid)


def pool_rows(
    output: Tensor,
    rows: Rows,
    pool: Pool,
    *,
    channels_last: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, str]:
    """Return the wanted rows ``(M, D)`` and how they were reduced, in a word or two.

    Where more than few samples are wanted the whole output is reduced before they are picked: a
    mean reads the maps once, where a copy of the wanted ones costs several times as much.

    Args:
        output: What a layer hands on, samples in front.
        rows: Which rows are wanted.
        pool: How a sample becomes one row.
        channels_last: Whether its features lie along the last axis.
        lengths: Steps of each sequence ``(B,)`` where those beyond are padding.
    """
    output = output.detach()
    samples = rows.samples.to(output.device)
    if lengths is not None and pool == "mean" and rows.places is None:
        wide = torch.float64 if output.dtype == torch.float64 else torch.float32
        averages = output.sum(1, dtype=wide) / lengths.to(output.device)[:, None]
        return averages.index_select(0, samples), "mean"
    if output.is_nested:  # sequences without padding
        if pool == "mean" and rows.places is None:
            means = [tokens.float().mean(0) for tokens in output.unbind()]
            return torch.stack(means).index_select(0, samples), "mean"
        output = output.to_padded_tensor(0.0)
    if rows.places is not None and output.ndim > 2 and not callable(pool):
        return _at_places(output, rows, channels_last)
    if FEW * len(samples) <= len(output):
        return _reduce(output.index_select(0, samples), pool, channels_last)
    reduced, how = _reduce(output, pool, channels_last)
    return reduced.index_select(0, samples), how


def _reduce(output: Tensor, pool: Pool, channels_last: bool) -> tuple[Tensor, str]:
    """One row a sample ``(B, D)``, and how."""
    if callable(pool):
        return _as_rows(pool(output), output), getattr(pool, "__name__", type(pool).__name__)
    if output.ndim <= 2:
        return output if output.ndim == 2 else output[:, None], "none"
    if pool == "flatten":
        return output.flatten(1), "flatten"
    if pool == "class_token" and output.ndim == 3 and channels_last:
        return output[:, 0], "class token"
    return _mean(output, channels_last), "mean"


def _as_rows(pooled: object, output: Tensor) -> Tensor:
    """What a user's function returned, as ``(B, D)``."""
    if isinstance(pooled, Tensor) and pooled.ndim and len(pooled) == len(output):
        return pooled.reshape(len(pooled), -1)
    got = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
    raise ConfigurationError(
        f"`pool` must return one row a sample, (B, D), but it returned {got} for an output of "
        f"shape {tuple(output.shape)}."
    )


def _mean(output: Tensor, channels_last: bool) -> Tensor:
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    if channels_last:
        return output.mean(tuple(range(1, output.ndim - 1)), dtype=wide)
    count = output.shape[2:].numel()
    if 0 < count <= SMALL and output.is_contiguous():
        # up to four times as fast as torch's mean of few positions
        shares = torch.full((count,), 1 / count, dtype=wide, device=output.device)
        return torch.mv(output.to(wide).reshape(-1, count), shares).reshape(output.shape[:2])
    return output.mean(tuple(range(2, output.ndim)), dtype=wide)


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
        self._narrows = width > max_features
        generator = torch.Generator().manual_seed(seed + width)
        shape = (NONZEROS, width if self._narrows else 0)
        buckets = torch.randint(self.num_features, shape, generator=generator).flatten()
        signs = torch.randint(2, shape, generator=generator).flatten() * 2.0 - 1.0
        # as bags of features, one a bucket: summed three times as fast as added one by one
        order = buckets.argsort(stable=True)
        self._members = order % max(1, shape[1])
        self._signs = signs[order] * NONZEROS**-0.5
        self._starts = torch.searchsorted(buckets[order], torch.arange(self.num_features))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return ``(M, num_features)`` for rows ``(M, width)``."""
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if not self._narrows:
            return rows
        rows = rows.cpu() if rows.device.type == "mps" else rows  # which has no bags with weights
        members, starts = self._members.to(rows.device), self._starts.to(rows.device)
        signs, features = self._signs.to(rows), rows.T.contiguous()
        bags = torch.nn.functional.embedding_bag(
            members, features, starts, mode="sum", per_sample_weights=signs
        )
        return bags.T  # (M, num_features)


def _at_places(output: Tensor, rows: Rows, channels_last: bool) -> tuple[Tensor, str]:
    """The features of one position of each row, the nearest where resolutions differ."""
    samples = rows.samples.to(output.device)
    places = rows.places.to(output.device)  # type: ignore[union-attr] # there are places
    if not channels_last:
        output = output.movedim(1, -1)
    sizes = output.shape[1:-1]
    if len(sizes) < len(rows.grid):
        return output.flatten(1, -2).mean(1)[samples], "mean"
    extra = sizes[0] - rows.grid[0] if len(sizes) == 1 and channels_last else 0
    if 0 < extra <= EXTRA_TOKENS:
        output, sizes = output[:, extra:], torch.Size(rows.grid)
    index = [samples] + [
        (places[:, axis] * size).long().clamp(max=size - 1)
        for axis, size in enumerate(sizes[: len(rows.grid)])
    ]
    return output[tuple(index)].flatten(1), "position"
