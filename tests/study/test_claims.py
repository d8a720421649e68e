"""Verdicts are what a paired t test says, corrected by Holm, and never more than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_depth.study import Claim, ClaimResult, evaluate_claims, mean_interval

DEEP = [0.83, 0.79, 0.88, 0.81]
THIN = [0.02, 0.05, 0.01, 0.04]


def _trials(samples: int | None = None, **arms: Sequence[float | None]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm,
            "seed": seed,
            "status": "finished",
            "metrics": {"train_error": value},
            "timing": {"train_step_s": value},
            "samples": {"train": samples},
        }
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def _one(trials: list[dict[str, Any]], **options: Any) -> ClaimResult:
    return evaluate_claims([Claim("a claim", "deep", "thin", **options)], trials)[0]


def test_interval_is_scipy_s() -> None:
    interval = mean_interval(DEEP)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(DEEP), scale=stats.sem(DEEP))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((np.mean(DEEP), low, high))


def test_interval_of_nothing_and_of_one_value() -> None:
    assert np.isnan(mean_interval([]).mean)
    assert mean_interval([0.5]).mean == 0.5
    assert np.isnan(mean_interval([0.5]).low)


def test_effect_interval_and_p_are_the_paired_t_test_s() -> None:
    result = _one(_trials(deep=DEEP, thin=THIN))
    oracle = stats.ttest_rel(DEEP, THIN)
    low, high = oracle.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert result.effect == pytest.approx(np.mean(np.subtract(DEEP, THIN)))
    assert result.p_value == pytest.approx(oracle.pvalue)
    assert result.n == 4


def test_pairing_is_by_seed_not_by_order() -> None:
    trials = _trials(deep=DEEP, thin=THIN)
    assert _one(trials[::-1]) == _one(trials)


def test_clear_difference_in_the_stated_direction_is_supported() -> None:
    result = _one(_trials(deep=DEEP, thin=THIN))
    assert result.verdict == "supported"
    assert result.reason == "The interval lies beyond zero in the stated direction."


def test_clear_difference_in_the_other_direction_contradicts() -> None:
    result = _one(_trials(deep=DEEP, thin=THIN), direction="lower")
    assert result.verdict == "contradicted"
    assert result.reason == "The interval lies beyond zero in the other direction."


def test_noise_is_inconclusive() -> None:
    result = _one(_trials(deep=[0.1, 0.5, 0.3], thin=[0.3, 0.2, 0.4]))
    assert result.verdict == "inconclusive"
    assert result.reason == "The interval contains zero."


def test_one_seed_is_always_inconclusive() -> None:
    result = _one(_trials(deep=[0.9], thin=[0.0]))
    assert (result.verdict, result.effect, result.low, result.n) == ("inconclusive", 0.9, None, 1)
    assert result.reason == "One seed gives no interval; at least two are needed."


def test_no_seed_of_both_arms_is_inconclusive() -> None:
    result = _one(_trials(deep=[0.9]))
    assert (result.verdict, result.effect, result.n) == ("inconclusive", None, 0)
    assert result.reason == (
        "No seed has a result of both arms. Seed 0 is left out: no number of both arms."
    )


def test_difference_within_the_margin_is_not_supported() -> None:
    trials = _trials(deep=[0.50, 0.51, 0.52], thin=[0.45, 0.465, 0.47])
    assert _one(trials, margin=0.02).verdict == "supported"
    assert _one(trials, margin=0.2).verdict == "inconclusive"
    assert _one(trials, margin=0.2).reason == "The difference is not beyond the margin 0.2."


def test_margin_moves_the_test_as_scipy_would() -> None:
    trials = _trials(deep=DEEP, thin=THIN)
    shifted = stats.ttest_1samp(np.subtract(DEEP, THIN), 0.5)
    assert _one(trials, margin=0.5).p_value == pytest.approx(shifted.pvalue)


def test_holm_can_take_a_verdict_away() -> None:
    trials = _trials(deep=[0.30, 0.34, 0.33, 0.31], thin=[0.28, 0.30, 0.32, 0.28])
    claim = Claim("a claim", "deep", "thin")
    alone = evaluate_claims([claim], trials)[0]
    crowd = evaluate_claims([claim] * 9, trials)[0]
    assert alone.verdict == "supported"
    assert alone.p_holm == alone.p_value
    assert crowd.p_holm == pytest.approx(9 * (alone.p_value or 0))
    assert crowd.verdict == "inconclusive"
    assert crowd.reason.startswith("After Holm's correction over the claims p is 0.")


def test_holm_is_step_down() -> None:
    # Textbook example: p = .01, .04, .03 become .03, .06, .06.
    from lightning_depth.study.claims import _holm

    assert _holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])


def test_failed_and_missing_numbers_are_left_out_and_named() -> None:
    trials = _trials(deep=[*DEEP, 0.9, None], thin=[*THIN, 0.1, 0.1])
    next(t for t in trials if t["arm"] == "deep" and t["seed"] == 4)["status"] = "failed"
    result = _one(trials)
    assert result.n == 4
    assert result.reason.endswith("Seeds 4, 5 are left out: no number of both arms.")


def test_equal_differences_by_rounding_are_no_proof() -> None:
    one_sample = 1 / 360
    trials = _trials(360, deep=[0.1 + one_sample] * 3, thin=[0.1] * 3)
    assert _one(trials).verdict == "inconclusive"


def test_equal_but_large_differences_are_supported() -> None:
    assert _one(_trials(360, deep=[0.9] * 3, thin=[0.0] * 3)).verdict == "supported"


def test_no_difference_at_all_is_inconclusive() -> None:
    assert _one(_trials(deep=[0.1] * 3, thin=[0.1] * 3)).verdict == "inconclusive"


def test_faster_compares_shares_of_time() -> None:
    trials = _trials(deep=[0.5, 1.1, 2.0], thin=[1.0, 2.0, 4.1])
    result = _one(trials, kind="faster", metric="train_step_s", direction="lower")
    saved = 1 - np.divide([0.5, 1.1, 2.0], [1.0, 2.0, 4.1])
    assert result.effect == pytest.approx(saved.mean())
    assert result.verdict == "supported"
    swapped = evaluate_claims(
        [Claim("a claim", "thin", "deep", "faster", "train_step_s", "lower")], trials
    )[0]
    assert swapped.verdict == "contradicted"
