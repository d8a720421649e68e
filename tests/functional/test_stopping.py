"""Prechelt's quantities against his formulas, written out slowly."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lightning_depth.callbacks import GL, PQ, UP, AllOf, AnyOf
from lightning_depth.errors import ConfigurationError, MisuseError
from lightning_depth.functional.stopping import (
    generalization_loss,
    rises_in_strips,
    training_progress,
)

CURVE = np.random.default_rng(1).uniform(0.2, 1.0, 40)


@pytest.mark.parametrize("t", [1, 2, 7, 40])
def test_generalization_loss_is_the_formula(t: int) -> None:
    expected = 100 * (CURVE[t - 1] / CURVE[:t].min() - 1)
    assert generalization_loss(CURVE[:t].tolist()) == pytest.approx(expected)


def test_generalization_loss_over_a_perfect_score_is_infinite() -> None:
    assert generalization_loss([0.5, 0.0, 0.1]) == math.inf
    assert generalization_loss([0.5, 0.0]) == 0.0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_training_progress_is_the_formula(k: int) -> None:
    strip = CURVE[-k:]
    expected = 1000 * (strip.sum() / (k * strip.min()) - 1)
    assert training_progress(CURVE.tolist(), k) == pytest.approx(expected)


def test_training_progress_over_a_perfect_loss_is_infinite() -> None:
    assert training_progress([0.1, 0.0], 2) == math.inf


def stops_up(s: int, t: int, k: int) -> bool:
    """UP_s as Prechelt defines it, by recursion, with epochs counted from 1."""
    if t - k < 1 or CURVE[t - 1] <= CURVE[t - k - 1]:
        return False
    return s == 1 or stops_up(s - 1, t - k, k)


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_rises_are_those_of_the_recursion(s: int, k: int) -> None:
    for t in range(k, 41, k):
        assert (rises_in_strips(CURVE[:t].tolist(), k) >= s) == stops_up(s, t, k)


def test_strips_that_are_not_full_decide_nothing() -> None:
    assert UP(s=1, k=2).should_stop([1.0, 2.0, 3.0], []) is None
    assert PQ(0.1, 2).should_stop([1.0, 2.0, 3.0], [1.0, 0.9, 0.8]) is None


def test_quotient_is_the_formula() -> None:
    scores, losses = [1.0, 0.5, 0.6, 0.7], [0.4, 0.3, 0.25, 0.2]
    progress = 1000 * ((0.25 + 0.2) / (2 * 0.2) - 1)
    told = PQ(0.1, 2).should_stop(scores, losses)
    assert told == f"PQ = {100 * (0.7 / 0.5 - 1) / progress:.2f} exceeds 0.1"


def test_a_quotient_without_progress_is_infinite() -> None:
    assert PQ(9.0, 2).should_stop([0.5, 0.6], [0.3, 0.3]) == "PQ = inf exceeds 9"
    assert PQ(9.0, 2).should_stop([0.6, 0.5], [0.3, 0.3]) is None


def test_any_and_all() -> None:
    rising = [0.5, 0.6]
    assert (GL(5) | GL(50)).should_stop(rising, []) == "GL = 20.0 % exceeds 5 %"
    assert (GL(5) & GL(50)).should_stop(rising, []) is None
    both = "GL = 20.0 % exceeds 5 % and GL = 20.0 % exceeds 10 %"
    assert AllOf([GL(5), GL(10)]).should_stop(rising, []) == both


def test_criteria_are_compared_by_value_and_show_their_options() -> None:
    assert GL(5) == GL(5.0) != GL(6)
    assert repr(AnyOf([GL(5)])) == "AnyOf(criteria=[GL(alpha=5.0)], train_monitor=None)"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GL(-1), "`alpha` must be a finite number of at least 0, but got -1."),
        (lambda: PQ(k=0), "`k` must be a whole number of at least 1, but got 0."),
        (lambda: UP(s=0), "`s` must be a whole number of at least 1, but got 0."),
        (lambda: AnyOf([]), "`criteria` must be at least one criterion, but got []."),
        (
            lambda: AllOf([PQ(train_monitor="a"), PQ(train_monitor="b")]),
            "`criteria` must be criteria with one and the same `train_monitor`, but got "
            "['a', 'b'].",
        ),
    ],
)
def test_refusals(make: object, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        make()  # type: ignore[operator]


def test_negative_errors_have_no_percentage() -> None:
    sentence = (
        "Prechelt's criteria need a monitored error of at least 0 that is minimised, but got -0.5."
    )
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        generalization_loss([-0.5, 0.1])
