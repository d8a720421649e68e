"""Sums over a whole pass: what arrives in batches adds up to what two passes over all would say."""

from __future__ import annotations

import numpy as np
import torch

from lightning_depth.callbacks._probe.moments import MomentStore, scatter_of

ROWS, WIDTH = 1000, 300  # more rows and columns than are multiplied at once


def test_batches_add_up_to_the_sums_of_all_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.arange(ROWS) // 200  # new classes all the way through
    nuisance = torch.randint(3, (ROWS,), generator=generator)
    store = MomentStore()
    for rows in torch.arange(ROWS).split(70):
        cells = store.index(labels[rows], nuisance[rows])
        store.put("layer", x[rows], cells)
    order = [(label, second) for label in range(6) for second in range(3)]  # one class never came
    found = store.arranged("layer", order)
    scatter = scatter_of(found, torch.tensor([label for label, _ in order]), 6)
    a, y, second = x.numpy(), labels.numpy(), nuisance.numpy()
    np.testing.assert_allclose(found.moment, a.T @ a, rtol=1e-12, atol=1e-12)
    for place, (label, other) in enumerate(order):
        mine = a[(y == label) & (second == other)]
        assert found.counts[place] == len(mine)
        np.testing.assert_allclose(found.sums[place], mine.sum(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.squares[place], (mine**2).sum(), rtol=1e-12)
    assert scatter.counts.tolist() == [200, 200, 200, 200, 200, 0]


def test_a_layer_that_is_forgotten_was_not_measured() -> None:
    store = MomentStore()
    store.put("layer", torch.ones(3, 2), store.index(torch.tensor([0, 0, 1]), torch.zeros(3)))
    assert store.has("layer")
    store.forget("layer")
    assert not store.has("layer")
