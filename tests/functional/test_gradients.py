from __future__ import annotations

import math

import pytest
import torch

from lightning_depth.errors import ConfigurationError
from lightning_depth.functional import clipped_norm, gradient_flow


def test_known_shrink_is_recovered() -> None:
    depths = list(range(1, 11))
    flow = gradient_flow(depths, [3.0**depth for depth in depths])
    assert flow.shrink_per_layer == pytest.approx(3.0)
    assert flow.decades == pytest.approx(9 * math.log10(3.0))
    assert flow.first_to_last == pytest.approx(3.0**-9)


def test_growth_toward_the_input_is_below_one() -> None:
    flow = gradient_flow([1, 2, 3, 4], [8.0, 4.1, 2.0, 1.0])
    assert flow.low < flow.shrink_per_layer < flow.high < 1
    assert flow.decades < 0


def test_zeros_and_infinities_are_left_out() -> None:
    flow = gradient_flow([1, 2, 3, 4, 5], [0.0, 1.0, math.inf, 4.0, math.nan])
    assert flow.shrink_per_layer == pytest.approx(2.0)


@pytest.mark.parametrize("ratios", [[], [1.0], [0.0, 0.0]], ids=["none", "one", "zeros"])
def test_no_trend_without_two_ratios(ratios: list[float]) -> None:
    flow = gradient_flow(range(len(ratios)), ratios)
    assert math.isnan(flow.shrink_per_layer)
    assert math.isnan(flow.first_to_last)


def test_a_shrink_beyond_float_is_infinite() -> None:
    assert gradient_flow([0, 1e-3], [1e-300, 1e300]).shrink_per_layer == math.inf


@pytest.mark.parametrize("norm", [0.3, 5.0, 1e6])
def test_clipped_norm_equals_torch(norm: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    parameter.grad = torch.full((4,), norm / 2, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    assert clipped_norm(norm, 1.0) == pytest.approx(parameter.grad.norm().item(), rel=1e-12)


def test_a_norm_that_is_not_finite_stays() -> None:
    assert clipped_norm(math.inf, 1.0) == math.inf


def test_limit_must_be_positive() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^`limit` must be a finite number greater than 0, but got 0\.$"
    ):
        clipped_norm(1.0, 0)
