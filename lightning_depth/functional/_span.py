"""The span of the class means: where classes differ at all.

Letters: K classes that have samples, D features, R rank of the class means.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_depth.functional._gram import lower_gram

__all__ = ["Weighting", "is_measurable", "total", "whiten_means"]

Factors = tuple[Tensor, ...]  # of a matrix that is their product

Weighting = Literal["samples", "classes"]

WELL_CONDITIONED = 3e5
"""Mean eigenvalue times mean inverse eigenvalue of a square up to which its inverse keeps eight
digits, even where the smallest direction decides the answer. Networks of 1,000 classes: 1e4."""


def is_measurable(counts: Tensor, *sums: Tensor) -> bool:
    """Whether two classes have samples, one of them two, and all sums are finite."""
    enough = int((counts > 0).sum()) >= 2 and bool((counts > 1).any())
    return enough and all(bool(torch.isfinite(part.sum())) for part in sums)


def whiten_means(counts: Tensor, means: Tensor, weighting: Weighting) -> Factors:
    """Return the factors of W ``(D, R)``: W Wᵀ is the pseudo-inverse of the between-class scatter.

    R is zero where the means of all classes coincide.
    """
    present = counts > 0
    if not bool(present.all()):
        counts, means = counts[present], means[present]
    even = torch.full_like(counts, 1 / len(counts))
    shares = counts / counts.sum() if weighting == "samples" else even
    centre = counts @ means / counts.sum()
    root = (means - centre) * shares.sqrt()[:, None]  # (K, D); the scatter is its square
    # a difference of means is only known to the rounding of the means themselves
    size = torch.linalg.vector_norm(root) + torch.stack(torch.aminmax(means)).abs().max()
    noise = max(root.shape) * torch.finfo(root.dtype).eps * size
    norms = torch.linalg.vector_norm(root, dim=0)
    alive = norms > noise
    if not bool(alive.any()):
        return (root.new_zeros(len(alive), 0),)
    # a factor of the smaller square is ten times faster than singular values
    if len(root) <= int(alive.sum()):
        found = _invert_wide(root, counts / shares.sqrt(), noise)
    else:
        found = _invert_tall(root, norms.masked_fill(~alive, math.inf), noise)
    if found is not None:
        return found
    _, values, axes = torch.linalg.svd(root, full_matrices=False)
    rank = int((values[: len(root) - 1] > noise).sum())
    return ((axes[:rank] / values[:rank, None]).T,)


def total(energy: Tensor) -> Tensor:
    """Sum of the energies along the axes of a span, NaN where it has none."""
    return energy.clamp(min=0).sum() if len(energy) else energy.new_tensor(math.nan)


def _invert_wide(root: Tensor, null: Tensor, noise: Tensor) -> Factors | None:
    """The inverse where the means are independent but for one, None where it would lose digits.

    Args:
        root: ``(K, D)``.
        null: The rows of the root weighted by this sum to zero ``(K,)``.
        noise: What is no more than this is rounding.
    """
    gram = lower_gram(root.T)
    mean = gram.diagonal().mean()
    null = null / torch.linalg.vector_norm(null)
    gram += torch.outer(null, null) * mean  # which changes nothing but its rank
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed):
        return None
    inverse = torch.cholesky_inverse(factor)
    size = inverse.diagonal().sum() - 1 / mean  # squared norm of the product of the two
    return (root.T, inverse) if _is_good(size, mean * size / len(root), noise) else None


def _invert_tall(root: Tensor, scales: Tensor, noise: Tensor) -> Factors | None:
    """The inverse where the means fill the space, None where it would lose digits.

    Args:
        root: ``(K, D)``.
        scales: Norm of each column ``(D,)``, infinite for columns that are zero.
        noise: What is no more than this is rounding.
    """
    gram = lower_gram(root / scales)
    gram.diagonal().fill_(1)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed):
        return None
    inverse = torch.linalg.solve_triangular(factor.T, torch.eye(len(gram)).to(gram), upper=True)
    condition = inverse.square().sum() / len(gram)
    found = inverse / scales[:, None]
    return (found,) if _is_good(found.square().sum(), condition, noise) else None


def _is_good(size: Tensor, condition: Tensor, noise: Tensor) -> bool:
    """Whether an inverse of this squared norm keeps its digits and stays above the rounding."""
    return bool(condition < WELL_CONDITIONED) and bool(noise * size.sqrt() < 1)
