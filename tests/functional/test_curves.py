"""What the curves of a run say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_depth.functional.curves import judge_curves, noise_level

FALLING = [2.0 * 0.8**epoch for epoch in range(20)]


def kind(*arguments: object, **options: object) -> str | None:
    verdict = judge_curves(*arguments, **options)  # type: ignore[arg-type]
    return None if verdict is None else verdict.kind


def u_shaped(rise: float) -> list[float]:
    return [1.0 + 0.01 * (epoch - 7) ** 2 * (1 if epoch < 7 else rise) for epoch in range(20)]


def test_noise_is_the_deviation_about_a_trend() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 2001)
    curve = (noise + np.linspace(9, 2, 2001)).tolist()
    assert noise_level(curve) == pytest.approx(float(noise.std()), rel=0.05)


def test_noise_of_two_values_is_unknown() -> None:
    assert noise_level([1.0, 2.0]) == 0.0


def test_validation_that_rises_while_training_falls_is_overfitting() -> None:
    verdict = judge_curves(u_shaped(0.3), FALLING)
    assert verdict is not None
    assert (verdict.kind, verdict.at) == ("overfitting", 7)
    assert verdict.value > verdict.threshold


def test_both_rising_is_instability() -> None:
    training = [value - 0.9 for value in u_shaped(0.3)]
    assert kind(u_shaped(0.3), training, chance=9.0) == "unstable"


def test_both_high_is_underfitting() -> None:
    high = [2.3 - 0.01 * epoch for epoch in range(20)]
    assert kind(high, high, chance=2.3) == "underfitting"


def test_training_that_hardly_moved_is_underfitting_where_chance_is_not_known() -> None:
    high = [2.3 - 0.001 * epoch for epoch in range(20)]
    assert kind(high, high) == "underfitting"
    assert kind([0.5] * 20, [0.4 * 0.9**epoch for epoch in range(20)]) is None


def test_memorised_labels_do_not_generalise() -> None:
    flat = [0.9 + 0.002 * (-1) ** epoch for epoch in range(20)]
    training = [0.9 * 0.8**epoch for epoch in range(20)]
    assert kind(flat, training, chance=0.9) == "not_generalizing"


@pytest.mark.parametrize("training", [None, FALLING])
def test_validation_still_falling_is_still_improving(training: list[float] | None) -> None:
    assert kind([2.0 * 0.9**epoch for epoch in range(20)], training) == "still_improving"


def test_what_was_stopped_is_not_called_still_improving() -> None:
    assert kind([2.0 * 0.9**epoch for epoch in range(20)], None, stopped=True) is None


def test_a_plateau_says_nothing() -> None:
    assert kind([0.3 + math.exp(-epoch) for epoch in range(20)], FALLING) is None


def test_short_curves_say_nothing() -> None:
    assert kind([1.0, 0.5, 2.0, 9.0], [1.0, 0.5, 0.2, 0.1]) is None


def test_negative_values_are_judged_by_their_range() -> None:
    shifted = [value - 10 for value in u_shaped(0.3)]
    assert kind(shifted, FALLING) == "overfitting"


@pytest.mark.parametrize(
    ("num_checks", "correlation"), [(10, 0.0), (30, 0.0), (100, 0.0), (30, 0.5), (100, 0.5)]
)
def test_flat_noise_is_overfitting_in_at_most_one_of_twenty(
    num_checks: int, correlation: float
) -> None:
    alarms = 0
    for seed in range(200):
        generator, noise, curve = np.random.default_rng(seed), 0.0, []
        for _ in range(num_checks):
            fresh = generator.normal(0, 0.05 * math.sqrt(1 - correlation**2))
            noise = correlation * noise + fresh
            curve.append(1 + noise)
        training = [0.9**epoch for epoch in range(num_checks)]
        alarms += kind(curve, training) == "overfitting"
    assert alarms <= 10
