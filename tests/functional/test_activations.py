from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_depth.errors import ConfigurationError
from lightning_depth.functional.activations import (
    dead_units,
    dormant_units,
    gram_matrix,
    rank_of_gram,
    sample_features,
    saturated_share,
)
from lightning_depth.functional.rank import effective_rank


def test_half_of_the_activations_zero_is_no_dead_unit() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # every unit is silent for half the samples
    assert not dead_units(outputs.amax(0)).any()


def test_dormant_units_follow_the_formula_of_the_paper() -> None:
    sizes = np.array([0.0, 0.02, 1.0, 3.0])
    score = sizes / sizes.mean()
    assert dormant_units(torch.tensor(sizes), tau=0.025).tolist() == (score <= 0.025).tolist()


def test_tau_must_not_be_negative() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^`tau` must be a finite number of at least 0, but got -1\.$"
    ):
        dormant_units(torch.ones(2), tau=-1)


@pytest.mark.parametrize(
    ("low", "high", "share"),
    [(-1.0, 1.0, 0.5), (0.0, 1.0, 0.75), (-math.inf, 1.0, 0.25)],
    ids=["tanh", "sigmoid", "one bound"],
)
def test_saturation_is_measured_against_the_bounds(low: float, high: float, share: float) -> None:
    outputs = torch.tensor([-0.99, 0.0, 0.5, 0.97])
    assert saturated_share(outputs, low, high).item() == share


def test_bounds_must_be_in_order() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^`low` must be below `high` \(=0\), but got 1\.$"
    ):
        saturated_share(torch.ones(2), 1, 0)


def test_rank_of_inner_products_equals_that_of_the_features() -> None:
    features = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) + 1e2
    rank = rank_of_gram(gram_matrix(features)[None])
    assert rank.item() == pytest.approx(effective_rank(features).item(), rel=1e-3)


def test_an_offset_does_not_change_the_rank_but_the_variety() -> None:
    features = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).double()
    near, far = gram_matrix(features), gram_matrix(features + 10)
    assert rank_of_gram(near[None]).item() == pytest.approx(rank_of_gram(far[None]).item())
    assert far.trace() < near.trace() / 50


def test_constant_outputs_have_rank_zero() -> None:
    assert rank_of_gram(gram_matrix(torch.ones(4, 3))[None]).tolist() == [0.0]


def test_features_are_spread_over_the_output() -> None:
    outputs = torch.arange(2 * 10.0).view(2, 10)
    assert sample_features(outputs, max_samples=1, max_features=5).tolist() == [[0, 2, 4, 6, 8]]
