"""The span of the class means: where classes differ at all.

Letters: K classes that have samples, D features, R rank of the class means.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Span", "Weighting", "is_measurable", "quotient", "span_of_means"]

Weighting = Literal["samples", "classes"]

FEW = 64  # axes up to which a singular value decomposition costs nothing


class Span(NamedTuple):
    """Eigenvalues and eigenvectors of the between-class scatter."""

    values: Tensor  # (R,) eigenvalues of the between-class scatter, largest first
    axes: Tensor  # (D, R) its eigenvectors


def is_measurable(counts: Tensor, *sums: Tensor) -> bool:
    """Whether two classes have samples, one of them two, and all sums are finite."""
    enough = int((counts > 0).sum()) >= 2 and bool((counts > 1).any())
    return enough and all(bool(torch.isfinite(part).all()) for part in sums)


def span_of_means(counts: Tensor, sums: Tensor, weighting: Weighting) -> Span:
    """Eigenvalues and axes of the between-class scatter where it is not zero."""
    present = counts > 0
    counts, means = counts[present], sums[present] / counts[present][:, None]
    offset = means.abs().max()
    centre = sums[present].sum(0) / counts.sum()
    shares = counts / counts.sum() if weighting == "samples" else counts.new_ones(()) / len(counts)
    scaled = (means - centre) * shares.sqrt().reshape(-1, 1)  # (K, D)
    values, axes = _singular(scaled, len(counts) - 1)
    # a difference of means is only known to the rounding of the means themselves
    tiny = max(scaled.shape) * torch.finfo(values.dtype).eps * (values[0] + offset)
    kept = values > tiny
    return Span(values[kept].square(), axes[:, kept])


def _singular(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest singular values of a (K, D) matrix and their right vectors ``(D, R)``.

    Of a thousand classes the eigenvectors of the smaller product are ten times faster, and as good
    to ten digits where the matrix is well conditioned.
    """
    rank = min(rank, *matrix.shape)
    if rank > FEW:
        tall = matrix.shape[0] > matrix.shape[1]
        squares, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
        squares, vectors = squares.flip(0)[:rank], vectors.flip(1)[:, :rank]
        if squares[-1] > 1e-6 * squares[0]:
            values = squares.sqrt()
            return values, vectors if tall else matrix.T @ (vectors / values)
    _, values, axes = torch.linalg.svd(matrix, full_matrices=False)
    return values[:rank], axes[:rank].T


def quotient(energy: Tensor, values: Tensor) -> Tensor:
    """Sum of energies over eigenvalues, NaN where there are none."""
    if not len(values):
        return energy.new_tensor(math.nan)
    return (energy.clamp(min=0) / values).sum()
