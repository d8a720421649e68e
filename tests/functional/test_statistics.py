from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lightning_depth.errors import ConfigurationError
from lightning_depth.functional import fit_slope, student_t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 30, 31, 400])
@pytest.mark.parametrize("probability", [0.0005, 0.2, 0.5, 0.9, 0.975, 0.9995])
def test_quantile_equals_scipy(probability: float, degrees: int) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_slope_and_interval_equal_scipy() -> None:
    x = np.array([1.0, 2.0, 4.0, 5.0, 9.0])
    y = np.array([0.3, -0.2, 1.9, 1.1, 4.4])
    expected = stats.linregress(x, y)
    margin = expected.stderr * stats.t.ppf(0.95, len(x) - 2)
    slope = fit_slope(x.tolist(), y.tolist(), confidence=0.9)
    assert slope.value == pytest.approx(expected.slope)
    assert slope.intercept == pytest.approx(expected.intercept)
    assert (slope.low, slope.high) == pytest.approx(
        (expected.slope - margin, expected.slope + margin)
    )


def test_points_that_are_not_finite_are_left_out() -> None:
    slope = fit_slope([1, 2, 3, 4], [1.0, math.nan, 3.0, math.inf])
    assert (slope.value, slope.num_points) == (1.0, 2)
    assert (slope.low, slope.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("x", [[], [1.0], [2.0, 2.0, 2.0]], ids=["none", "one", "equal"])
def test_no_slope_without_two_predictors(x: list[float]) -> None:
    assert math.isnan(fit_slope(x, [0.0] * len(x)).value)


def test_lengths_must_agree() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`x` \(=2 values\) must be as long as `y` \(=1\)\."
    ):
        fit_slope([1.0, 2.0], [1.0])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probability_must_lie_inside(probability: float) -> None:
    message = (
        r"^`probability` must be a finite number greater than 0 and less than 1, "
        rf"but got {probability}\.$"
    )
    with pytest.raises(ConfigurationError, match=message):
        student_t_quantile(probability, 3)


def test_degrees_must_be_whole() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^`degrees` must be a whole number of at least 1, but got 0\.$"
    ):
        student_t_quantile(0.5, 0)
