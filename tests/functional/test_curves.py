"""What the curves of a run say."""

from __future__ import annotations

import math
import random

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


@pytest.mark.parametrize("level", [2.3, 0.02])
def test_training_that_hardly_moved_says_nothing_where_chance_is_not_known(level: float) -> None:
    flat = [level * (1 - 0.0005 * epoch) for epoch in range(20)]
    assert kind(flat, flat, stopped=True) is None


def test_training_of_another_quantity_is_not_held_against_chance() -> None:
    high = [2.2 + 0.001 * (-1) ** epoch for epoch in range(20)]
    assert kind(high, high, chance=2.3) == "underfitting"
    assert kind(high, high, chance=2.3, comparable=False) is None


def test_training_of_another_quantity_may_show_that_it_falls_or_does_not() -> None:
    training = [value - 0.9 for value in u_shaped(0.3)]
    assert kind(u_shaped(0.3), FALLING, chance=9.0, comparable=False) == "overfitting"
    assert kind(u_shaped(0.3), training, chance=9.0, comparable=False) == "unstable"


def test_a_network_at_chance_is_not_fitted_before_it_is_over_fitted() -> None:
    # a bad start: training falls from far above chance to chance, and validation rises
    training = [2.3 + 5.0 * 0.8**epoch for epoch in range(20)]
    verdict = judge_curves([value + 1.35 for value in u_shaped(0.3)], training, chance=2.3)
    assert verdict is not None
    assert verdict.kind == "underfitting"
    assert verdict.value == pytest.approx(training[-2] / 2.3)


@pytest.mark.parametrize("chance", [None, 0.0, 0.75])
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_training_without_an_error_from_the_first_check_on_is_judged(
    start: float, chance: float | None
) -> None:
    training = [start, 0.0, *[0.0] * 18]
    assert kind([0.5] * 20, training, chance=chance, stopped=True) is None
    assert kind(u_shaped(0.3), training, chance=chance) == "overfitting"


def test_a_training_loss_below_zero_that_rises_is_not_falling() -> None:
    training = [-10.0 + 0.01 * (epoch - 7) ** 2 for epoch in range(20)]
    assert kind(u_shaped(0.3), training) == "unstable"


def test_a_check_that_is_not_finite_does_not_count() -> None:
    curve, training = u_shaped(0.3), list(FALLING)
    expected = judge_curves(curve, training, chance=2.3)
    for gap in (math.nan, math.inf, -math.inf):
        verdict = judge_curves([gap, *curve], [3.0, *training], chance=2.3)
        assert verdict is not None
        assert expected is not None
        assert (verdict.kind, verdict.value, verdict.at) == (
            expected.kind,
            expected.value,
            expected.at + 1,
        )
        verdict = judge_curves([*curve, 2.0], [*training, gap], chance=2.3)
        assert verdict == expected


def test_whatever_the_curves_are_the_verdict_is_one_or_none() -> None:
    draw = random.Random(11)

    def value() -> float:
        odd = [0.0, -0.0, 1.0, 2.3, -1.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324]
        return draw.choice(odd) if draw.random() < 0.3 else draw.gauss(1.0, 1.0)

    def curve(length: int) -> list[float]:
        constant = value()
        form = draw.randrange(4)
        if form == 0:
            return [constant] * length
        if form == 1:
            return [abs(draw.gauss(0, 1)) * 0.8**check for check in range(length)]
        return [value() for _ in range(length)]

    said = set()
    for _ in range(20_000):
        length = draw.randrange(31)
        validation = curve(length)
        training = draw.choice([None, curve(length), curve(length), curve(draw.randrange(31))])
        chance = draw.choice([None, 0.0, 2.3, value()])
        options = {"comparable": draw.random() < 0.5, "stopped": draw.random() < 0.5}
        verdict = judge_curves(validation, training, chance=chance, **options)
        assert verdict == judge_curves(validation, training, chance=chance, **options)
        said.add(verdict and verdict.kind)
        if verdict is not None:
            assert math.isfinite(validation[verdict.at])
            assert math.isfinite(verdict.value)
            assert math.isfinite(verdict.threshold)
    assert len(said) == 6


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
