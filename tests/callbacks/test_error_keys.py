"""The step's own keys, without their word for validation."""

from __future__ import annotations

import pytest

from lightning_depth.callbacks._error_keys import name_columns, strip_validation


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("val_loss", "loss"),
        ("val/loss", "loss"),
        ("valid_loss", "loss"),
        ("valid/loss", "loss"),
        ("validation/loss", "loss"),
        ("validation_loss", "loss"),
        ("loss/val", "loss"),
        ("loss_val", "loss"),
        ("avg_val_loss", "loss"),
        ("ptl/val_loss", "loss"),
        ("eval_loss", "loss"),
        ("Val Loss", "loss"),
        ("Loss/val", "loss"),
        ("valLoss", "loss"),
        ("val_acc", "acc"),
        ("val_acc_top1", "acc_top1"),
        ("val/acc/top1", "acc/top1"),
        ("metrics/val_f1", "metrics_f1"),
        ("val-mAP", "mAP"),
        ("val.loss.total", "loss.total"),
        ("val_mean_iou", "mean_iou"),
        # no word for validation
        ("loss", "loss"),
        ("value_loss", "value_loss"),
        ("interval", "interval"),
        ("evaluation_time", "evaluation_time"),
        ("Validity", "Validity"),
        ("val", "val"),
    ],
)
def test_the_word_for_validation_is_taken_off(key: str, column: str) -> None:
    assert strip_validation(key) == column


def test_keys_that_would_share_a_column_keep_their_own_names() -> None:
    assert name_columns(["val_loss", "loss", "val_acc"]) == {
        "val_loss": "val_loss",
        "loss": "loss",
        "val_acc": "acc",
    }


def test_columns_of_the_history_are_not_taken() -> None:
    assert name_columns(["val_epoch", "val_step"]) == {
        "val_epoch": "val_epoch",
        "val_step": "val_step",
    }
