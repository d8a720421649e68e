"""Which training curve stands beside a metric, and the verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_depth.callbacks._ending import as_errors, find_ending
from lightning_depth.callbacks._training_curve import (
    TrainingCurve,
    find_training_curve,
    has_mode_gap,
    twin_key,
)
from lightning_depth.findings import Finding, FindingKind, Severity

EPOCHS = list(range(12))
FALLING = [2.0 * 0.7**epoch for epoch in EPOCHS]
U_SHAPED = [1.0 + 0.02 * (epoch - 4) ** 2 for epoch in EPOCHS]


def monitor_of(
    epochs: list[int] = EPOCHS,
    twin: str | None = "loss",
    chance: float | None = 2.3,
    **columns: Any,
) -> Any:
    """Return what a verdict reads of a training monitor."""
    history = {"epoch": epochs, "loss": [9.0 - epoch for epoch in epochs], **columns}
    return SimpleNamespace(
        twin_of=lambda key: twin,
        history=history,
        chance_loss=chance,
        chance_error=0.75,
        _prefix="train_error",
        _found=[],
    )


def table_of(train_score: Sequence[float | None] = (None,) * 12) -> dict[str, Sequence[Any]]:
    return {"epoch": EPOCHS, "score": U_SHAPED, "train_score": train_score}


@pytest.mark.parametrize(
    ("monitor", "twin"),
    [
        ("val_loss", "train_loss"),
        ("val/loss", "train/loss"),
        ("valid_loss", "train_loss"),
        ("loss/validation", "loss/train"),
        ("loss", None),
        ("train_loss", None),
        ("interval_loss", None),
        ("evaluation", None),
    ],
)
def test_the_twin_of_a_key(monitor: str, twin: str | None) -> None:
    assert twin_key(monitor) == twin


def test_the_monitors_own_column_is_one_quantity_with_the_metric() -> None:
    curve = find_training_curve([object(), monitor_of()], table_of(FALLING), "val_loss", "min")
    assert curve == TrainingCurve(
        "train_error/loss", [9.0 - epoch for epoch in EPOCHS], comparable=True, chance=2.3
    )


def test_a_loss_as_logged_is_another_quantity() -> None:
    monitor = monitor_of(twin=None)
    curve = find_training_curve([monitor], table_of([None, *FALLING[1:]]), "val_loss", "min")
    assert curve == TrainingCurve("train_loss as logged", [None, *FALLING[1:]], comparable=False)


def test_a_curve_of_too_few_checks_is_none() -> None:
    logged: list[float | None] = [*FALLING[:4], *[None] * 8]
    assert find_training_curve([monitor_of([3, 7])], table_of(logged), "val_loss", "min") is None


def test_checks_between_measurements_are_left_open() -> None:
    curve = find_training_curve([monitor_of([0, 2, 4, 6, 8])], table_of(), "val_loss", "min")
    assert curve is not None
    assert curve.values == [9.0, None, 7.0, None, 5.0, None, 3.0, None, 1.0, None, None, None]


@pytest.mark.parametrize(
    ("key", "mode", "expected"),
    [
        ("val_loss", "min", 2.3),
        ("val/ce_loss", "min", 2.3),
        ("val_nll", "min", 2.3),
        ("val_error", "min", 0.75),
        ("val/accuracy", "max", 0.75),
        ("val_acc1", "max", 0.75),
        ("val_mse", "min", None),
        ("val_kl_loss", "min", None),
        ("val_f1", "max", None),
        ("val_top5", "max", None),
        ("val_auroc", "max", None),
        ("val_loss", "max", None),
    ],
)
def test_chance_is_that_of_the_metric_or_unknown(
    key: str, mode: str, expected: float | None
) -> None:
    shares = [0.9 - 0.01 * epoch for epoch in EPOCHS]
    curve = find_training_curve([monitor_of(loss=shares)], table_of(), key, mode)
    assert curve is not None
    assert curve.chance == expected


def test_percentages_are_not_held_against_chance() -> None:
    curve = find_training_curve([monitor_of()], table_of(), "val_acc", "max")
    assert curve is not None
    assert curve.chance is None


@pytest.mark.parametrize("kept", [True, False])
def test_a_gap_between_the_modes_is_seen(kept: bool) -> None:
    gap = Finding(FindingKind.MODE_GAP, Severity.WARNING, (), 1.0, 0.0, "", "")
    monitor = monitor_of()
    assert not has_mode_gap([object(), monitor])
    if kept:
        monitor._found.append(gap)
    else:
        monitor._lasting = gap
    assert has_mode_gap([object(), monitor])


def test_errors_of_shares_and_of_anything() -> None:
    assert as_errors([0.25, None, 1.0], "max")[::2] == [0.75, 0.0]
    assert as_errors([-2.0, 50.0], "max") == [2.0, -50.0]
    assert as_errors([0.25, 1.0], "min") == [0.25, 1.0]


def message(scores: list[float], mode: str, training: TrainingCurve, key: str) -> str:
    (finding,) = find_ending(key, mode, EPOCHS, scores, training)
    return finding.message


def test_what_is_to_be_large_falls_from_its_highest() -> None:
    accuracy = [0.8 - 0.005 * (epoch - 4) ** 2 for epoch in EPOCHS]
    training = TrainingCurve("train_error/acc", [0.5 + 0.04 * epoch for epoch in EPOCHS], True, 0.9)
    said = message(accuracy, "max", training, "val_acc")
    assert said.startswith("val_acc fell by 0.")
    assert "from its highest level, 0.795 in epoch 3 (noise allows " in said
    assert said.endswith(", while train_error/acc went from 0.5 to 0.94.")


def test_a_loss_as_logged_is_named_so() -> None:
    training = TrainingCurve("train_loss as logged", FALLING, False)
    said = message(U_SHAPED, "min", training, "val_loss")
    assert said.startswith("val_loss rose by ")
    assert said.endswith(", while train_loss as logged went from 2 to 0.0395.")


def test_chance_of_an_accuracy_is_told_as_one() -> None:
    low = [0.11, 0.1] * 6
    training = TrainingCurve("train_error/acc", low, True, 0.9)
    assert message(low, "max", training, "val_acc") == (
        "Training is not fitted: train_error/acc went from 0.11 to 0.1 (chance: 0.1), an error "
        "1.00 of chance at the end (limit 0.5), and val_acc is 0.1."
    )


def test_what_was_memorized_does_not_generalize() -> None:
    training = TrainingCurve("train_error/error", [0.9 * 0.7**epoch for epoch in EPOCHS], True, 0.9)
    said = message([0.9, 0.91] * 6, "min", training, "val_error")
    assert said == (
        "train_error/error went from 0.9 to 0.0178, but val_error is 0.91, no better than chance "
        "(0.9): what was fitted does not generalize."
    )
