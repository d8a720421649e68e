"""Products of a matrix with itself, of which one triangle says everything.

Letters: N samples, D features.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_lower_gram", "lower_gram", "mirrored"]

STRIP = 128  # columns that are formed at once; narrower ones save little and multiply slower


def add_lower_gram(gram: Tensor, x: Tensor) -> None:
    """Add ``x.T @ x`` on and below the diagonal; what stands above it has no meaning.

    Args:
        gram: ``(D, D)``, changed in place.
        x: ``(N, D)``.
    """
    for start in range(0, x.shape[1], STRIP):
        stop = start + STRIP
        gram[start:, start:stop].addmm_(x[:, start:].T, x[:, start:stop])


def lower_gram(x: Tensor) -> Tensor:
    """Return ``x.T @ x`` on and below the diagonal, ``(D, D)`` for ``(N, D)``."""
    gram = x.new_zeros(x.shape[1], x.shape[1])
    add_lower_gram(gram, x)
    return gram


def mirrored(gram: Tensor) -> Tensor:
    """Return the whole of a symmetric matrix from its lower triangle, which is changed."""
    gram = gram.tril_()
    return gram.add_(gram.tril(-1).T)
