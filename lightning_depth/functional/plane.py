"""Two axes on which labelled features can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_plane"]


def class_plane(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the samples in the plane in which their classes lie furthest apart.

    Linear discriminant analysis on the span of the class means: no inverse in the space of the
    features, so more features than samples do not make classes look separated that are not. Two
    classes have one such axis; the second is then the first principal component of what is left.

    Shape:
        - features: ``(N, D)``
        - labels: ``(N,)``, none negative
        - output: ``(N, 2)``, float64, each axis with unit variance within the classes

    Args:
        features: Features, any floating type.
        labels: Class of each sample.
        num_classes: Number of classes.

    Returns:
        Coordinates; zero along an axis that does not exist, NaN for features that are not finite.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
        >>> plane = class_plane(x, torch.tensor([0, 0, 1, 1]), 2)
        >>> bool(abs(plane[0, 0] - plane[2, 0]) > 1)
        True
    """
    x = features.double()
    x = x - x.mean(0)
    if not bool(torch.isfinite(x).all()):
        return torch.full_like(x[:, :1].expand(-1, 2), float("nan"))
    counts = torch.bincount(labels, minlength=num_classes).double()
    sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, labels, x)
    means = sums / counts.clamp(min=1)[:, None]
    axes = _discriminant_axes(x, means, labels, counts)
    plane = x @ axes
    if plane.shape[1] < 2:
        plane = torch.cat([plane, _leading_component(x, axes, 2 - plane.shape[1])], 1)
    residual = (
        plane
        - (
            plane.new_zeros(num_classes, 2).index_add_(0, labels, plane)
            / counts.clamp(min=1)[:, None]
        )[labels]
    )
    scale = residual.square().mean(0).sqrt()
    return plane / torch.where(scale > 0, scale, torch.ones_like(scale))


def _discriminant_axes(x: Tensor, means: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """At most two axes ``(D, R)``, within the span of the class means."""
    weighted = means * (counts / counts.sum()).sqrt()[:, None]
    _, values, span = torch.linalg.svd(weighted, full_matrices=False)
    rank = int((values > 1e-9 * values[0].clamp(min=1e-300)).sum()) if len(values) else 0
    span = span[: min(rank, int((counts > 0).sum()) - 1)].T  # (D, R)
    residual = x @ span - (means @ span)[labels]
    within = residual.T @ residual / len(x)
    size = within.diagonal().mean() if within.numel() else within.sum()
    within = within + (1e-6 * size + 1e-300) * torch.eye(len(within)).to(within)
    factor = torch.linalg.cholesky(within)
    white = torch.linalg.solve_triangular(factor, (weighted @ span).T, upper=False)  # (R, C)
    directions: Tensor = torch.linalg.svd(white, full_matrices=False).U[:, :2]
    axes: Tensor = span @ torch.linalg.solve_triangular(factor.T, directions, upper=True)
    return axes


def _leading_component(x: Tensor, axes: Tensor, count: int) -> Tensor:
    rest = x
    if axes.shape[1]:
        basis = torch.linalg.qr(axes).Q
        rest = x - (x @ basis) @ basis.T
    u, values, _ = torch.linalg.svd(rest, full_matrices=False)
    found = (u * values)[:, :count]
    return torch.nn.functional.pad(found, (0, count - found.shape[1]))
