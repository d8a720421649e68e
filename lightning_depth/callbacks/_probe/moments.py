"""Sums over a whole pass, for ``max_samples=None``: exact for any number of samples.

Letters: M samples at hand, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_depth.functional._gram import add_lower_gram, mirrored
from lightning_depth.functional.scatter import Scatter

__all__ = ["LayerMoments", "MomentStore"]

ROWS = 256  # that wait for one product: a product of a batch alone moves more than it multiplies


@dataclass
class LayerMoments:
    """Sums of one layer, float64: the second moment of all, and what each cell needs.

    A cell is a pair of class and nuisance label. While sums are added only the lower triangle of
    the second moment is kept.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor
    moment: Tensor

    def add(self, features: Tensor, cells: Tensor, num_cells: int) -> None:
        """Add features ``(M, D)`` of samples that belong to cells ``(M,)``."""
        x = features.double()
        if (missing := num_cells - len(self.counts)) > 0:
            pad = self.counts.new_zeros(max(missing, len(self.counts)))
            self.counts = torch.cat([self.counts, pad])
            self.squares = torch.cat([self.squares, pad])
            self.sums = torch.cat([self.sums, pad[:, None].expand(-1, x.shape[1])])
        self.counts.index_add_(0, cells, torch.ones_like(cells, dtype=torch.float64))
        self.sums.index_add_(0, cells, x)
        self.squares.index_add_(0, cells, x.square().sum(1))
        add_lower_gram(self.moment, x)


@dataclass
class MomentStore:
    """Sums of every layer over the cells in order of their first appearance."""

    cells: dict[tuple[int, int], int] = field(default_factory=dict)
    layers: dict[str, LayerMoments] = field(default_factory=dict)
    waiting: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def index(self, labels: Tensor, nuisance: Tensor) -> Tensor:
        """Number of each sample's cell, a new one where it is the first."""
        pairs = zip(labels.tolist(), nuisance.tolist(), strict=True)
        return torch.tensor(
            [self.cells.setdefault(pair, len(self.cells)) for pair in pairs], dtype=torch.long
        )

    def put(self, layer: str, features: Tensor, cells: Tensor) -> None:
        """Add the features ``(M, D)`` of samples in cells ``(M,)`` at one layer."""
        waiting = self.waiting.setdefault(layer, [])
        waiting.append((features, cells))
        if sum(len(rows) for rows, _ in waiting) >= ROWS:
            self._add(layer)

    def _add(self, layer: str) -> None:
        """Add the rows of a layer that wait."""
        parts, cells = zip(*self.waiting.pop(layer), strict=True)
        features = torch.cat(parts)
        device = features.device if features.device.type != "mps" else torch.device("cpu")
        if layer not in self.layers:
            zero = torch.zeros(1, dtype=torch.float64, device=device)
            width = features.shape[1]
            moment = zero.new_zeros(width, width)
            self.layers[layer] = LayerMoments(zero, zero.new_zeros(1, width), zero.clone(), moment)
        self.layers[layer].add(features.to(device), torch.cat(cells).to(device), len(self.cells))

    def has(self, layer: str) -> bool:
        """Whether a layer was measured."""
        return layer in self.layers or layer in self.waiting

    def forget(self, layer: str) -> None:
        """Keep nothing of a layer."""
        self.layers.pop(layer, None)
        self.waiting.pop(layer, None)

    def arranged(self, layer: str, order: list[tuple[int, int]]) -> LayerMoments:
        """The sums of a layer with its cells in a given order, zero for those not met here."""
        if layer in self.waiting:
            self._add(layer)
        mine = self.layers[layer]
        place = torch.tensor([self.cells.get(cell, -1) for cell in order])
        known = (place >= 0) & (place < len(mine.counts))
        place = torch.where(known, place, 0)

        def pick(values: Tensor) -> Tensor:
            chosen = values.cpu()[place]
            return chosen * known.double().reshape(-1, *[1] * (chosen.ndim - 1))

        moment = mirrored(mine.moment.cpu())
        return LayerMoments(pick(mine.counts), pick(mine.sums), pick(mine.squares), moment)


def scatter_of(moments: LayerMoments, labels: Tensor, num_classes: int) -> Scatter:
    """Sums by class out of sums by cell; ``labels`` is the class of each cell."""
    sums = moments.sums
    return Scatter(
        sums.new_zeros(num_classes).index_add_(0, labels, moments.counts),
        sums.new_zeros(num_classes, sums.shape[1]).index_add_(0, labels, sums),
        moments.moment,
    )
