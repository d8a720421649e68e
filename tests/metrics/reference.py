"""Slow two-pass references in float64 NumPy, from the definitions in the papers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def scatter_matrices(x: Array, y: Array, equal_classes: bool = False) -> tuple[Array, Array, int]:
    """S_W over the samples and S_B over the classes, weighted by their samples or alike."""
    classes = np.unique(y)
    means = np.array([x[y == k].mean(0) for k in classes])
    counts = np.array([(y == k).sum() for k in classes])
    within = sum(
        (x[y == k] - mean).T @ (x[y == k] - mean) for k, mean in zip(classes, means, strict=True)
    ) / len(x)
    weights = np.full(len(classes), 1 / len(classes)) if equal_classes else counts / len(x)
    centred = means - x.mean(0)
    return np.asarray(within), centred.T @ (weights[:, None] * centred), len(classes)


def separation(x: Array, y: Array, equal_classes: bool = False) -> float:
    within, between, _ = scatter_matrices(x, y, equal_classes)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-9, hermitian=True)))


def collapse(x: Array, y: Array) -> float:
    return separation(x, y, equal_classes=True) / len(np.unique(y))


def fisher(x: Array, y: Array) -> float:
    within, between, _ = scatter_matrices(x, y)
    return float(np.trace(between) / np.trace(within))


def effective_rank(x: Array, y: Array) -> float:
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def clusters(
    num_samples: int, num_features: int, num_classes: int, spread: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Gaussian clusters, unequal in size, float64."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_classes, num_features, generator=generator).double()
    shares = torch.arange(1, num_classes + 1).double()
    labels = torch.multinomial(shares, num_samples, replacement=True, generator=generator)
    noise = torch.randn(num_samples, num_features, generator=generator).double()
    return means[labels] + spread * noise, labels
