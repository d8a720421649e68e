from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lightning_depth.report._series import band, curves, gradients, profile


def _trial(callback: str, history: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {"callbacks": {callback: {"history": history}}}


def test_band_is_mean_and_extremes_over_seeds() -> None:
    seeds = np.array([[0.4, 0.2], [0.6, 0.1], [0.5, 0.6]])
    drawn = band([([1, 2], row) for row in seeds.tolist()])
    np.testing.assert_allclose(drawn.mean, seeds.mean(0))
    np.testing.assert_allclose(drawn.low, seeds.min(0))
    np.testing.assert_allclose(drawn.high, seeds.max(0))
    assert drawn.num_seeds == 3


def test_band_joins_seeds_of_unequal_length() -> None:
    drawn = band([([1, 2], [0.4, 0.2]), ([1], [0.6])])
    assert drawn.x.tolist() == [1, 2]
    np.testing.assert_allclose(drawn.mean, [0.5, 0.2])


def test_null_and_infinity_fill_no_gap() -> None:
    drawn = band([([1, 2, 3], [0.4, None, float("inf")]), ([1, 2, 3], [0.6, 0.3, None])])
    np.testing.assert_allclose(drawn.mean, [0.5, 0.3, np.nan])
    assert drawn.end() == (0.3, 0.3, 0.3)


@pytest.mark.parametrize("lines", [[], [([], [])], [([1], [None])]], ids=["none", "empty", "null"])
def test_band_without_a_number_is_empty(lines: list[tuple[list[int], list[None]]]) -> None:
    assert band(lines).is_empty


def test_epochs_are_counted_from_zero_as_lightning_does() -> None:
    trial = {"curves": {"epoch": [0, 1], "train_error": [0.9, 0.1]}}
    assert curves([trial], "train_error").x.tolist() == [0, 1]


def test_gradients_are_geometric_means_over_seeds() -> None:
    rows: dict[str, list[float]] = {"depth": [1, 2, 1, 2], "step": [0, 0, 10, 10]}
    first = rows | {"grad_rms": [1e-4, 1e-2, 1e-6, 1e-2]}
    second = rows | {"grad_rms": [1e-2, 1e-2, 1e-4, 1e-2]}
    grid = gradients(
        [_trial("GradientFlowMonitor", history) for history in (first, second)], "grad_rms"
    )
    assert grid is not None
    assert grid.depths.tolist() == [1, 2]
    assert grid.steps.tolist() == [0, 10]
    np.testing.assert_allclose(grid.values, [[1e-3, 1e-5], [1e-2, 1e-2]])


def test_gradient_of_zero_is_zero_and_null_is_nothing() -> None:
    history: dict[str, list[Any]] = {
        "depth": [1, 2, 3],
        "step": [0, 0, 0],
        "grad_rms": [0.0, None, 1e-3],
    }
    grid = gradients([_trial("GradientFlowMonitor", history)], "grad_rms")
    assert grid is not None
    np.testing.assert_allclose(grid.values[:, 0], [0.0, np.nan, 1e-3])
    assert len(grid.positive) == 1


def test_no_history_gives_no_map() -> None:
    assert gradients([{"callbacks": {}}, {}], "grad_rms") is None


def test_profile_takes_the_first_and_the_last_epoch() -> None:
    history: dict[str, list[Any]] = {
        "epoch": [0, 0, 3, 3],
        "depth": [0, 1, 0, 1],
        "separation": [3.0, 2.0, 3.0, 0.5],
    }
    trials = [_trial("LayerSeparabilityProbe", history)]
    assert profile(trials, "separation", "first").mean.tolist() == [3.0, 2.0]
    assert profile(trials, "separation", "last").mean.tolist() == [3.0, 0.5]
    assert profile(trials, "fisher", "last").is_empty
