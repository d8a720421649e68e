"""Products of a matrix with itself, of which one triangle says everything.

Letters: N samples, D features.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_lower_gram", "lower_gram", "mirrored"]

SMALL = 128  # columns whose square is formed whole: halves of it would multiply slower


def add_lower_gram(gram: Tensor, x: Tensor) -> None:
    """Add ``x.T @ x`` on and below the diagonal; what stands above it has no meaning.

    Args:
        gram: ``(D, D)``, changed in place.
        x: ``(N, D)``.
    """
    width = x.shape[1]
    if width <= SMALL:
        gram.addmm_(x.T, x)
        return
    half = -(-width // (2 * SMALL)) * SMALL
    left, right = x[:, :half], x[:, half:]
    add_lower_gram(gram[:half, :half], left)
    gram[half:, :half].addmm_(right.T, left)
    add_lower_gram(gram[half:, half:], right)


def lower_gram(x: Tensor) -> Tensor:
    """Return ``x.T @ x`` on and below the diagonal, ``(D, D)`` for ``(N, D)``."""
    gram = x.new_zeros(x.shape[1], x.shape[1])
    add_lower_gram(gram, x)
    return gram


def mirrored(gram: Tensor) -> Tensor:
    """Return the whole of a symmetric matrix from its lower triangle, which is changed."""
    gram = gram.tril_()
    return gram.add_(gram.tril(-1).T)
