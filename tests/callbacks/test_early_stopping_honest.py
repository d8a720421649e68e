"""What early stopping says about weights, keys and rivals, and what it leaves to others."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib.axes
import matplotlib.figure
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from torch import Tensor

from lightning_depth.callbacks import GL, EarlyStopping
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.errors import ConfigurationError, MisuseError
from lightning_depth.findings import Finding, FindingKind, Severity
from tests.callbacks.stopping_models import QUIET, ScriptedModule, differing, loader

INF, NAN = float("inf"), float("nan")


def fit(
    module: pl.LightningModule, *callbacks: Any, max_epochs: int = 6, **options: Any
) -> pl.Trainer:
    trainer = pl.Trainer(**{**QUIET, **options}, max_epochs=max_epochs, callbacks=list(callbacks))
    trainer.fit(module, loader(), loader())
    return trainer


# Which weights are in place.


def test_the_box_names_the_weights_in_place_and_their_numbers() -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    fit(ScriptedModule(), stopping, max_epochs=20)
    assert stopping._summary() == (
        "The weights of epoch 2 (step 6) are in place: val_loss 1; the last check, in epoch 5, "
        "had 5."
    )


def test_the_box_says_where_the_last_check_was_the_best() -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    fit(ScriptedModule([3.0, 2.0, 1.0]), stopping, max_epochs=3)
    assert stopping._summary() == (
        "The weights of epoch 2 (step 6), the last check, are in place: val_loss 1."
    )


def test_the_box_says_nothing_of_weights_nobody_asked_for() -> None:
    stopping = EarlyStopping("val_loss")
    fit(ScriptedModule(), stopping)
    assert stopping._summary() == ""


def test_after_an_exception_the_box_says_how_to_get_the_best_weights() -> None:
    class Breaks(ScriptedModule):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 4:
                raise RuntimeError("power failure")

    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    with pytest.raises(RuntimeError, match="power failure"):
        fit(Breaks(), stopping)
    assert stopping._summary() == (
        "The weights are those of the last step; `load_best_weights` writes those of epoch 2 "
        "(step 6) into a network."
    )


def test_a_second_run_forgets_what_was_said_of_the_first() -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    fit(ScriptedModule(), stopping)
    assert "epoch 2" in stopping._summary()
    fit(ScriptedModule([4.0, 3.0]), stopping, max_epochs=2)
    assert "epoch 1" in stopping._summary()


# What is best.


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("check_finite", [True, False])
def test_a_metric_that_never_is_finite_is_told_and_the_last_weights_stay(
    value: float, mode: str, check_finite: bool
) -> None:
    stopping = EarlyStopping(
        "val_loss", mode=mode, check_finite=check_finite, restore_best_weights=True
    )
    module = ScriptedModule([value])
    reason = "val_loss was not finite at any check."
    with pytest.warns(UserWarning, match="^The weights stay those of the last step") as caught:
        fit(module, stopping)
    ours = [str(one.message) for one in caught if "The weights stay" in str(one.message)]
    assert ours == [f"The weights stay those of the last step: {reason}"]
    assert stopping._summary() == f"The weights are those of the last step: {reason}"
    assert differing(module, module.seen[-1]) == []


@pytest.mark.parametrize(("mode", "first"), [("min", -INF), ("max", INF), ("min", NAN)])
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_only_a_finite_value_is_the_best(mode: str, first: float, smoothing: float) -> None:
    sign = 1.0 if mode == "min" else -1.0
    script = [first, *(sign * value for value in (3.0, 2.0, 1.0, 9.0, 9.0, 9.0))]
    stopping = EarlyStopping(
        "val_loss", mode=mode, check_finite=False, smoothing=smoothing, restore_best_weights=True
    )
    module = ScriptedModule(script)
    fit(module, stopping, max_epochs=7)
    assert (stopping.best_epoch, stopping.wait_count) == (3, 3)
    assert differing(module, module.seen[3]) == []


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_best_of_a_checkpoint_that_is_not_finite_is_none(tmp_path: Path) -> None:
    theirs = LightningEarlyStopping("val_loss", check_finite=False, patience=9)
    path = tmp_path / "last.ckpt"
    fit(ScriptedModule([-INF, 2.0]), theirs, max_epochs=2).save_checkpoint(path)
    stopping = EarlyStopping("val_loss", patience=9, restore_best_weights=True)
    module = ScriptedModule([9.0, 8.0, 9.0])
    trainer = pl.Trainer(**QUIET, max_epochs=5, callbacks=[stopping])
    trainer.fit(module, loader(), loader(), ckpt_path=path, weights_only=True)
    assert (stopping.best_epoch, float(stopping.best_score)) == (3, 8.0)
    assert differing(module, module.seen[1]) == []


def test_a_value_that_is_not_finite_counts_as_no_improvement() -> None:
    stopping = EarlyStopping("val_loss", patience=2, check_finite=False)
    trainer = fit(ScriptedModule([5.0, -INF, -INF, 1.0]), stopping)
    assert (trainer.current_epoch, float(stopping.best_score)) == (3, 5.0)


def test_a_threshold_still_stops_at_an_infinite_value() -> None:
    stopping = EarlyStopping("val_loss", check_finite=False, stopping_threshold=0.0)
    trainer = fit(ScriptedModule([5.0, -INF, 4.0]), stopping)
    assert (trainer.current_epoch, float(stopping.best_score)) == (2, 5.0)


def test_a_criterion_is_not_blocked_by_a_first_value_that_is_no_number() -> None:
    stopping = EarlyStopping("val_loss", check_finite=False, criterion=GL(10))
    trainer = fit(ScriptedModule([NAN, 1.0, 1.05, 1.5, 1.0]), stopping)
    assert trainer.current_epoch == 4


def test_a_run_without_a_check_is_told() -> None:
    stopping = EarlyStopping("val_loss", start_from_epoch=9, restore_best_weights=True)
    sentence = "^The weights stay those of the last step: val_loss was never checked.$"
    with pytest.warns(UserWarning, match=sentence):
        fit(ScriptedModule(), stopping, max_epochs=2)


# Stops before the required minimum.


class WatchesTheSignal(ScriptedModule):
    def __init__(self, script: list[float]) -> None:
        super().__init__(script)
        self.signals: list[bool] = []

    def on_train_epoch_start(self) -> None:
        self.signals.append(bool(self.trainer.should_stop))


def test_a_stop_is_signaled_at_once_and_training_goes_on_to_the_minimum(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = WatchesTheSignal([0.0])
    stopping = EarlyStopping("val_loss", patience=0, check_on_train_epoch_end=True)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer = fit(module, stopping, max_epochs=20, min_epochs=5)
    assert module.signals == [False, False, True, True, True]
    assert trainer.current_epoch == 5
    assert trainer.should_stop is True
    told = [record.message for record in caplog.records if "has not been met" in record.message]
    assert len(told) == 1


def test_a_recovery_before_the_minimum_takes_the_signal_back() -> None:
    module = WatchesTheSignal([5.0, 6.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    stopping = EarlyStopping("val_loss", patience=2)
    trainer = fit(module, stopping, max_epochs=8, min_epochs=5)
    assert module.signals == [False, False, False, True, False, False, False, False]
    assert trainer.current_epoch == 8
    assert trainer.should_stop is False


class StopsInEpoch(pl.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


@pytest.mark.parametrize("epoch", [0, 2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_stop_that_another_callback_asked_for_is_not_taken_back(epoch: int, first: bool) -> None:
    stopping = EarlyStopping("val_loss", patience=1, check_on_train_epoch_end=True)
    callbacks: list[Any] = [stopping, StopsInEpoch(epoch)]
    module = ScriptedModule([5.0, 6.0, 6.0, 6.0, 4.0, 3.0, 2.0, 1.0])
    trainer = fit(module, *callbacks[:: 1 if first else -1], max_epochs=8, min_epochs=6)
    assert trainer.current_epoch == 6


class TwoMetrics(ScriptedModule):
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("other", 1.0)


@pytest.mark.parametrize("rival", [EarlyStopping, LightningEarlyStopping])
@pytest.mark.parametrize("first", [True, False])
def test_a_rival_that_wants_to_stop_keeps_its_stop(rival: Any, first: bool) -> None:
    callbacks = [EarlyStopping("val_loss", patience=1), rival("other", patience=2)]
    module = TwoMetrics([5.0, 6.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    trainer = fit(module, *callbacks[:: 1 if first else -1], max_epochs=8, min_epochs=5)
    assert trainer.current_epoch == 5


# State in the middle of a run.


class RollsBack(pl.Callback):
    """Puts the state of another epoch back, with or without the weights of a checkpoint."""

    def __init__(self, stopping: EarlyStopping, saved_in: int, back_in: int, whole: bool) -> None:
        self.stopping, self.saved_in, self.back_in, self.whole = stopping, saved_in, back_in, whole
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.saved_in:
            self.before = self._state(trainer, pl_module)
        if trainer.current_epoch == self.back_in:
            self.stopping.load_state_dict(copy.deepcopy(self.before))
            self.after = self._state(trainer, pl_module)

    def _state(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        key = self.stopping.state_key
        checkpoint = {"callbacks": {key: copy.deepcopy(self.stopping.state_dict())}}
        if self.whole:
            self.stopping.on_save_checkpoint(trainer, pl_module, checkpoint)
        return checkpoint["callbacks"][key]


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("saved_in", [0, 2])
def test_a_state_that_is_put_back_in_a_run_is_what_was_saved(
    saved_in: int, place: Any, whole: bool
) -> None:
    stopping = EarlyStopping(
        "val_loss",
        patience=9,
        smoothing=0.3,
        criterion=GL(1e9),
        restore_best_weights=place,
    )
    rolls = RollsBack(stopping, saved_in, back_in=4, whole=whole)
    module = ScriptedModule([8.0, 7.0, 1.0, 0.5, 9.0, 9.0])
    with warnings.catch_warnings():
        if not whole and saved_in:  # the state names a best that nobody kept
            warnings.simplefilter("ignore")
        fit(module, stopping, rolls, max_epochs=5)
    assert plain(rolls.after) == plain(rolls.before)
    if whole:  # the check of epoch 4, the first after the roll-back, beats nothing but a start
        best = 4 if saved_in == 0 else 1
        assert stopping.best_epoch == best
        assert differing(module, module.seen[best]) == []


def test_a_state_of_lightnings_class_that_is_put_back_leaves_no_old_counts() -> None:
    class LoadsTheirs(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 3:
                stopping.load_state_dict(LightningEarlyStopping("val_loss").state_dict())
                told.append((stopping.best_epoch, stopping.wait_count, stopping.history))

    told: list[Any] = []
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    module = ScriptedModule([1.0, 2.0, 3.0, 7.0, 8.0])
    fit(module, stopping, LoadsTheirs(), max_epochs=5)
    assert told == [(None, 0, {})]
    assert differing(module, module.seen[3]) == []


class FindsRate(LearningRateFinder):
    def __init__(self) -> None:
        super().__init__(num_training_steps=3, update_attr=False)

    def on_fit_start(self, *_: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch in (2, 4):
            self.lr_find(trainer, pl_module)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_learning_rate_finder_at_milestones_changes_nothing(place: Any) -> None:
    records = []
    for finder in ([], [FindsRate()]):
        module = ScriptedModule([3.0, 2.0, 1.0, 5.0, 0.5, 5.0, 5.0])
        stopping = EarlyStopping("val_loss", patience=2, restore_best_weights=place)
        fit(module, stopping, *finder, max_epochs=7)
        state = plain(stopping.state_dict())
        records.append((state, stopping._summary(), differing(module, module.seen[4])))
    assert records[0] == records[1]
    assert records[0][2] == []


# Others in the same Trainer.


def test_an_average_that_would_be_overwritten_is_told_of_before_training() -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    with pytest.warns(UserWarning, match="StochasticWeightAveraging") as caught:
        fit(ScriptedModule(), stopping, averaging, max_epochs=4)
    (told,) = [str(one.message) for one in caught if "EarlyStopping" in str(one.message)]
    assert told == (
        "`EarlyStopping(restore_best_weights=True)` writes the weights of the best check over the "
        "average that `StochasticWeightAveraging` makes when training ends: leave "
        "`restore_best_weights` out to keep the average."
    )


def test_without_restoring_an_average_is_nobodys_business() -> None:
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ScriptedModule(), EarlyStopping("val_loss"), averaging, max_epochs=4)
    assert not [one for one in caught if "EarlyStopping" in str(one.message)]


class Brings(ScriptedModule):
    """Brings a callback of its own, which Lightning adds to those of the Trainer."""

    def __init__(self, *callbacks: Any) -> None:
        super().__init__()
        self.brought = callbacks

    def configure_callbacks(self) -> list[Any]:
        return list(self.brought)


OURS, THEIRS = "EarlyStopping(monitor='val_loss')", "Lightning's EarlyStopping"
SECOND = "EarlyStopping(monitor='val_loss', patience=9)"
RIVALS: dict[str, tuple[list[Any], str]] = {
    "two": ([EarlyStopping("val_loss"), EarlyStopping("val_loss", patience=9)], SECOND),
    "ours first": ([EarlyStopping("val_loss"), LightningEarlyStopping("val_loss")], THEIRS),
    "ours second": ([LightningEarlyStopping("val_loss"), EarlyStopping("val_loss")], THEIRS),
    "of the module": ([EarlyStopping("val_loss")], THEIRS),
}


@pytest.mark.parametrize("rivals", RIVALS)
def test_two_that_share_one_state_are_both_named(rivals: str) -> None:
    given, name = copy.deepcopy(RIVALS[rivals])
    module = Brings(*([LightningEarlyStopping("val_loss")] if rivals == "of the module" else []))
    with pytest.raises(ConfigurationError) as caught:
        fit(module, *given)
    assert module.seen == []
    assert str(caught.value) == (
        "Two callbacks watch 'val_loss' and would share one state in a checkpoint: "
        f"{OURS} and {name}. Keep one; where both are meant, log the metric under a second name "
        "and let one watch that."
    )


def test_two_that_differ_in_monitor_or_mode_go_together() -> None:
    pair = [EarlyStopping("val_loss"), EarlyStopping("other", mode="max")]
    assert fit(TwoMetrics([1.0]), *pair, max_epochs=2).current_epoch == 2


class Learns(ScriptedModule):
    """A training loss that falls for certain, beside the script."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("train_loss", 0.8**self.current_epoch, batch_size=1)
        return torch.nn.functional.mse_loss(self(batch[0]), batch[1])


class SeesAGap(DepthCallback):
    """Finds that the network is good in training mode only."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gap = Finding(FindingKind.MODE_GAP, Severity.WARNING, (), 9.0, 1.0, "A gap.", "Mend it.")
        self._add_finding(trainer, gap)


@pytest.mark.parametrize("gap", [False, True])
def test_a_gap_between_the_modes_is_no_over_fitting(gap: bool) -> None:
    stopping = EarlyStopping("val_loss", patience=99, on_finding="log")
    others = [SeesAGap("gap", on_finding="log")] if gap else []
    fit(Learns([3.0, 2.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]), stopping, *others, max_epochs=8)
    expected = [] if gap else [FindingKind.OVERFITTING]
    assert [finding.kind for finding in stopping.findings] == expected


# A key that is not there.


class LogsMany(ScriptedModule):
    """Logs its own key in validation, others in training."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss/train", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss


WAYS: dict[str, dict[str, Any]] = {
    "end of epoch": {"check_on_train_epoch_end": True},
    "end of validation": {"check_on_train_epoch_end": False},
    "steps": {"every_n_steps": 100},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("wanted", "logged"),
    [
        ("val/loss", "val_loss"),
        ("val_loss", "val/loss"),
        ("Val_Loss", "val_loss"),
        ("valid_loss", "val/loss"),
        ("val_loss", "validation_loss"),
    ],
)
def test_a_key_written_otherwise_is_told_at_the_first_validation(
    way: str, wanted: str, logged: str
) -> None:
    module = LogsMany(key=logged)
    with pytest.raises(MisuseError) as caught:
        fit(module, EarlyStopping(wanted, **WAYS[way]), max_epochs=3, num_sanity_val_steps=1)
    assert str(caught.value).startswith(
        f"Early stopping conditioned on metric `{wanted}` which is not available. "
        f"Did you mean `{logged}`? Pass in or modify your `EarlyStopping` callback to use any of "
        f"the following: `{logged}`"
    )
    assert module.trainer.global_step == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_key_of_the_end_of_an_epoch_is_waited_for(way: str) -> None:
    class LogsLate(LogsMany):
        def on_train_epoch_end(self) -> None:
            self.log("loss/end", 1.0)

    stopping = EarlyStopping("loss/train", **WAYS[way] | {"patience": 9})
    if way == "end of validation":
        with pytest.raises(MisuseError, match="conditioned on metric `loss/train`"):
            fit(LogsLate(), stopping, max_epochs=2)
    else:
        fit(LogsLate(), stopping, max_epochs=2)


def test_a_key_that_never_comes_is_an_error_by_steps_too() -> None:
    with pytest.raises(MisuseError, match="conditioned on metric `nothing` which is not"):
        fit(LogsMany(), EarlyStopping("nothing", every_n_steps=1), max_epochs=3)


def test_the_nearest_keys_come_first() -> None:
    with pytest.raises(MisuseError) as caught:
        fit(LogsMany(key="val_accuracy"), EarlyStopping("val_acuracy"), max_epochs=1)
    offered = re.findall(r"`([^`]+)`", str(caught.value).partition("following: ")[2])
    assert offered[0] == "val_accuracy"
    assert set(offered) == {"val_accuracy", "loss/train", "train_loss"}


def test_a_key_written_otherwise_is_a_warning_where_missing_keys_are_allowed() -> None:
    with pytest.warns(RuntimeWarning, match="Did you mean `val_loss`?") as caught:
        fit(LogsMany(), EarlyStopping("val/loss", strict=False), max_epochs=3)
    assert len([one for one in caught if one.category is RuntimeWarning]) == 1


def test_a_trial_run_checks_no_keys() -> None:
    fit(LogsMany(), EarlyStopping("val/loss", restore_best_weights=True), fast_dev_run=True)


# Picture and name.


def test_the_figure_shows_training_the_best_and_the_stop() -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    fit(ScriptedModule(), stopping, max_epochs=9)
    figure, axes = stopping.plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert isinstance(axes, matplotlib.axes.Axes)
    lines: dict[str, Any] = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["val_loss"].get_xdata()) == [0, 1, 2, 3, 4]
    assert list(lines["val_loss"].get_ydata()) == [3.0, 2.0, 1.0, 5.0, 5.0]
    assert list(lines["train_loss as logged"].get_ydata()) == pytest.approx(
        stopping.history["train_score"]
    )
    assert list(lines["best: epoch 2, step 6"].get_xdata()) == [2, 2]
    assert list(lines["stop: epoch 4, step 10"].get_xdata()) == [4, 4]
    assert axes.get_xlabel() == "epoch"


def test_the_figure_counts_steps_where_an_epoch_has_several_checks() -> None:
    stopping = EarlyStopping("val_loss")
    fit(ScriptedModule(), stopping, max_epochs=2, val_check_interval=0.5)
    _, axes = stopping.plot()
    curve: Any = axes.get_lines()[0]
    assert axes.get_xlabel() == "optimizer step"
    assert list(curve.get_xdata()) == [1, 2, 3, 4]
    assert not [line for line in axes.get_lines() if "stop" in str(line.get_label())]


def test_the_figure_of_a_run_without_a_check_is_empty(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", start_from_epoch=5)
    fit(ScriptedModule(), stopping, max_epochs=1)
    figure, _ = stopping.plot()
    figure.savefig(tmp_path / "empty.png")


def test_its_name_says_what_differs_from_the_defaults() -> None:
    stopping = EarlyStopping("val_acc", 0.01, patience=7, mode="max", restore_best_weights="disk")
    assert repr(stopping) == (
        "EarlyStopping(monitor='val_acc', min_delta=0.01, patience=7, mode='max', "
        "restore_best_weights='disk'): not run yet"
    )
    assert repr(EarlyStopping("val_loss", criterion=GL(5.0))) == (
        "EarlyStopping(monitor='val_loss', criterion=GL(alpha=5.0)): not run yet"
    )
    name = "EarlyStopping(monitor='x', min_delta=0.5): not run yet"
    assert repr(EarlyStopping("x", 0.5)) == name


def test_its_name_is_made_of_what_was_given_after_a_run_too() -> None:
    stopping = EarlyStopping("val_loss")
    fit(ScriptedModule(), stopping, max_epochs=1)
    assert repr(stopping) == "EarlyStopping(monitor='val_loss'): 0 findings, 1 measurement"
    assert torch.isfinite(stopping.best_score)
