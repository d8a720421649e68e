"""The options that Lightning's class lacks, and what must stay as in Lightning's class."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from lightning_depth.callbacks import GL, PQ, UP, EarlyStopping
from lightning_depth.errors import ConfigurationError, MisuseError
from tests.callbacks.stopping_models import QUIET, ScriptedModule, differing, loader, tensors_of


def fit(
    stopping: Any, script: list[float], module: ScriptedModule | None = None, **options: Any
) -> tuple[ScriptedModule, pl.Trainer]:
    module = module or ScriptedModule(script)
    callbacks = [stopping, *options.pop("callbacks", ())]
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 12, "callbacks": callbacks, **options})
    trainer.fit(module, loader(), loader())
    return module, trainer


# The decision.


def test_relative_delta_is_right_for_negative_metrics() -> None:
    stopping = EarlyStopping("val_loss", 0.1, 2, min_delta_mode="rel")
    fit(stopping, [-10.0, -10.5, -11.5, -12.0, -12.5])
    # from -10 the bar is -11 (crossed at -11.5), from there -12.65 (never)
    assert float(stopping.best_score) == -11.5
    assert stopping.stopped_epoch == 4


def test_relative_delta_is_right_when_more_is_better() -> None:
    stopping = EarlyStopping("val_loss", 0.1, 2, mode="max", min_delta_mode="rel")
    fit(stopping, [-10.0, -9.5, -8.5, -8.0, -7.8])
    # from -10 the bar is -9, from -8.5 it is -7.65
    assert float(stopping.best_score) == -8.5
    assert stopping.stopped_epoch == 4


def test_relative_delta_leaves_the_argument_alone() -> None:
    stopping = EarlyStopping("val_loss", 0.1, min_delta_mode="rel")
    fit(stopping, [4.0, 3.0, 2.0])
    assert stopping.min_delta == -0.1  # Lightning keeps its sign


def test_epochs_before_the_first_one_checked_do_not_count() -> None:
    stopping = EarlyStopping("val_loss", start_from_epoch=3, restore_best_weights=True)
    module, _ = fit(stopping, [0.0, 0.0, 0.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0])
    assert (stopping.best_epoch, stopping.stopped_epoch) == (4, 7)
    assert differing(module, module.seen[4]) == []


def test_smoothing_compares_a_moving_average() -> None:
    stopping = EarlyStopping("val_loss", smoothing=0.5)
    fit(stopping, [4.0, 2.0, 3.0], max_epochs=3)
    # without the bias of the start: 4, then (0.5 * 2 + 0.25 * 4) / 0.75 = 8/3
    assert float(stopping.best_score) == pytest.approx(8 / 3)
    assert stopping.wait_count == 1  # (0.5 * 3 + 0.25 * 2 + 0.125 * 4) / 0.875 = 20/7


def test_recovery_before_min_epochs_is_not_forgotten() -> None:
    script = [5.0, 6.0, 6.0, 6.0, 4.0, 3.0, 2.0, 1.0]
    stopping = EarlyStopping("val_loss", patience=2)
    _, trainer = fit(stopping, script, max_epochs=8, min_epochs=6)
    assert trainer.current_epoch == 8
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert (stopping.stopped_epoch, stopping.stopping_reason_message) == (0, None)


def test_no_recovery_stops_at_min_epochs() -> None:
    stopping = EarlyStopping("val_loss", patience=2)
    _, trainer = fit(stopping, [5.0] * 9, min_epochs=6)
    assert (trainer.current_epoch, stopping.stopped_epoch) == (6, 5)


# Checks by steps.


class StepScript(ScriptedModule):
    """Logs a script at every step, and keeps the weights after each."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        step = self.trainer.global_step
        self.log("metric", self.script[min(step // 2, len(self.script) - 1)], batch_size=1)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(tensors_of(self))

    def on_validation_end(self) -> None:
        pass


@pytest.mark.parametrize("ending", [{"max_epochs": 20}, {"max_steps": 9, "max_epochs": -1}])
@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
def test_checks_by_steps_restore_the_third(ending: dict[str, Any], place: Any) -> None:
    module = StepScript()
    stopping = EarlyStopping("metric", patience=3, every_n_steps=2, restore_best_weights=place)
    _, trainer = fit(stopping, [], module, **ending)
    assert stopping.history["step"][:4] == [2, 4, 6, 8]
    assert (stopping.best_step, float(stopping.best_score)) == (6, 1.0)
    assert differing(module, module.seen[5]) == []
    if "max_steps" not in ending:
        assert trainer.global_step == 12


def test_a_validation_metric_counts_once_however_often_it_is_looked_at() -> None:
    stopping = EarlyStopping("val_loss", patience=3, every_n_steps=1)
    _, trainer = fit(stopping, [3.0, 2.0, 1.0, 5.0, 5.0, 5.0])
    assert stopping.history["score"] == [3.0, 2.0, 1.0, 5.0, 5.0, 5.0]
    assert trainer.global_step == 13  # the sixth value is seen one step later


def test_validation_inside_an_epoch_restores_what_it_measured() -> None:
    module = ScriptedModule()
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    fit(stopping, [], module, val_check_interval=0.5, max_epochs=9)
    assert stopping.best_step == 3
    assert differing(module, module.seen[2]) == []


def test_a_check_after_a_validation_inside_the_epoch_restores_what_was_measured() -> None:
    module = ScriptedModule()
    stopping = EarlyStopping("val_loss", restore_best_weights="disk", check_on_train_epoch_end=True)
    trainer = pl.Trainer(**QUIET, max_epochs=9, callbacks=[stopping], val_check_interval=2)
    trainer.fit(module, loader(12), loader())  # three steps, validation after the second
    assert stopping.best_step == 8
    assert differing(module, module.seen[2]) == []
    assert len(list(Path("best_weights").iterdir())) == 1


# Averaged weights.


class Average(pl.callbacks.WeightAveraging):
    """An exponential average, updated after each step or each epoch."""

    def __init__(self, by_epoch: bool) -> None:
        super().__init__(avg_fn=lambda average, value, count: 0.5 * average + 0.5 * value)
        self.by_epoch = by_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return (epoch_idx if self.by_epoch else step_idx) is not None


class SeesValidation(ScriptedModule):
    """Keeps the weights that validation ran on: those swapped in."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])
        if batch_idx == 0:
            self.seen.append(tensors_of(self))

    def on_validation_end(self) -> None:
        pass


@pytest.mark.parametrize("ending", [{"max_epochs": 20}, {"max_epochs": 5}], ids=["patience", "max"])
@pytest.mark.parametrize("by_epoch", [False, True], ids=["by step", "by epoch"])
@pytest.mark.parametrize("first", [False, True], ids=["average first", "average last"])
@pytest.mark.parametrize("place", [True, "disk"])
def test_averaged_weights_that_were_measured_come_back(
    ending: dict[str, Any], by_epoch: bool, first: bool, place: Any
) -> None:
    module = SeesValidation()
    stopping = EarlyStopping("val_loss", restore_best_weights=place)
    pair = [stopping, Average(by_epoch)]
    trainer = pl.Trainer(**QUIET, **ending, callbacks=pair if first else pair[::-1])
    trainer.fit(module, loader(), loader())
    assert differing(module, module.seen[2]) == []
    assert differing(module, module.seen[3]) != []


# Resuming.


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
def test_resumed_run_restores_the_best_of_before(place: Any, tmp_path: Path) -> None:
    module = ScriptedModule()
    stopping = EarlyStopping("val_loss", restore_best_weights=place)
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    options: dict[str, Any] = {"callbacks": [saving], "enable_checkpointing": True}
    fit(stopping, [], module, max_epochs=4, **options)
    expected = module.seen[2]

    resumed, again = (
        ScriptedModule([5.0] * 9),
        EarlyStopping("val_loss", restore_best_weights=place),
    )
    trainer = pl.Trainer(**QUIET, max_epochs=9, callbacks=[again])
    trainer.fit(resumed, loader(), loader(), ckpt_path=tmp_path / "epoch=3.ckpt", weights_only=True)

    assert (again.best_epoch, again.best_step, again.stopped_epoch) == (2, 6, 5)
    assert again.history["epoch"] == [0, 1, 2, 3, 4, 5]
    assert differing(resumed, expected) == []


def test_checkpoint_grows_by_the_copy_and_on_disk_by_a_path(tmp_path: Path) -> None:
    sizes = {}
    for place in (False, "cpu", "disk"):
        saving = ModelCheckpoint(tmp_path / str(place), filename="last")
        stopping = EarlyStopping("val_loss", restore_best_weights=place)
        fit(stopping, [3.0, 2.0], max_epochs=2, callbacks=[saving], enable_checkpointing=True)
        checkpoint = torch.load(tmp_path / str(place) / "last.ckpt", weights_only=True)
        state = checkpoint["callbacks"][stopping.state_key]
        sizes[place] = sorted(state.get("best_weights", {}))
    assert sizes[False] == []
    assert sizes["cpu"] == ["folder", "run", "tensors"]
    assert sizes["disk"] == ["folder", "path", "run", "sharded"]


def test_file_that_is_gone_is_told_and_the_last_weights_stay() -> None:
    class Removes(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 4:
                for file in Path("best_weights").iterdir():
                    file.unlink()

    stopping = EarlyStopping("val_loss", restore_best_weights="disk")
    sentence = (
        r"^The weights stay those of the last step\. The best weights are gone: there is no file "
        r"'.*best_weights/val_loss-[0-9a-f]{8}-step6\.pt' any more\.$"
    )
    with pytest.warns(UserWarning, match=sentence):
        module, _ = fit(stopping, [3.0, 2.0, 1.0, 5.0, 5.0, 5.0], callbacks=[Removes()])
    assert differing(module, module.seen[-1]) == []


def test_key_with_slashes_and_dots_stays_inside_the_folder() -> None:
    stopping = EarlyStopping("../../val/loss", restore_best_weights="disk")
    module = ScriptedModule(key="../../val/loss")
    fit(stopping, [], module, max_epochs=3)
    (file,) = Path("best_weights").iterdir()
    assert re.fullmatch(r"-val-loss-[0-9a-f]{8}-step6\.pt", file.name)


def test_weights_of_an_earlier_run_do_not_come_back_in_the_next() -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    fit(stopping, [0.1, 0.2, 0.3, 0.4])
    module, _ = fit(stopping, [9.0, 8.0, 7.0, 8.0, 8.0, 8.0])
    assert float(stopping.best_score) == 7.0
    assert differing(module, module.seen[2]) == []


# Lightning's class.


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("ours_first", [True, False])
def test_checkpoints_of_either_class_load_into_the_other(ours_first: bool, tmp_path: Path) -> None:
    def make(ours: bool) -> Any:
        return (
            EarlyStopping("val_loss", restore_best_weights=True)
            if ours
            else LightningEarlyStopping("val_loss")
        )

    saving = ModelCheckpoint(tmp_path, filename="last")
    fit(
        make(ours_first),
        [3.0, 1.0, 2.0],
        max_epochs=3,
        callbacks=[saving],
        enable_checkpointing=True,
    )
    stopping, path = make(not ours_first), tmp_path / "last.ckpt"
    trainer = pl.Trainer(**QUIET, max_epochs=9, callbacks=[stopping])
    sentence = (
        r"^The weights stay those of the last step: val_loss was best in a checkpoint that holds "
        r"no best weights\.$"
    )
    with nullcontext() if ours_first else pytest.warns(UserWarning, match=sentence):
        trainer.fit(
            ScriptedModule([2.0] * 9), loader(), loader(), ckpt_path=path, weights_only=True
        )
    assert float(stopping.best_score) == 1.0
    assert stopping.stopped_epoch == 4
    assert EarlyStopping.__qualname__ == LightningEarlyStopping.__qualname__


# Refusals.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"restore_best_weights": "gpu"},
            "`restore_best_weights` must be one of 'device', 'cpu', 'disk', but got 'gpu'. "
            "Did you mean 'cpu'?",
        ),
        (
            {"min_delta_mode": "relative"},
            "`min_delta_mode` must be one of 'abs', 'rel', but got 'relative'. Did you mean 'rel'?",
        ),
        (
            {"start_from_epoch": -1},
            "`start_from_epoch` must be a whole number of at least 0, but got -1.",
        ),
        (
            {"every_n_steps": 0},
            "`every_n_steps` must be a whole number of at least 1, but got 0.",
        ),
        (
            {"smoothing": 1.0},
            "`smoothing` must be a finite number of at least 0 and at most 0.999999, but got 1.0.",
        ),
        (
            {"criterion": "GL"},
            "`criterion` must be a stopping criterion such as GL(alpha=5), but got 'GL'.",
        ),
        (
            {"criterion": GL(), "mode": "max"},
            "`mode` must be 'min' with a `criterion`, which compares errors, but got 'max'.",
        ),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        EarlyStopping("val_loss", **options)


def test_weights_cut_up_by_deepspeed_are_refused_before_training() -> None:
    module = ScriptedModule()
    vars(module.head.weight)["ds_id"] = 0  # what ZeRO stage 3 leaves on them
    sentence = (
        "`restore_best_weights` cannot copy weights that DeepSpeed ZeRO stage 3 has cut up: "
        "restore from `ModelCheckpoint(monitor=...)` or shard with `ModelParallelStrategy` (FSDP2)."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        fit(EarlyStopping("val_loss", restore_best_weights=True), [], module)
    assert module.seen == []


def test_best_weights_that_were_not_kept_are_not_there() -> None:
    stopping = EarlyStopping("val_loss")
    module, _ = fit(stopping, [3.0, 2.0], max_epochs=2)
    sentence = "There are no best weights because `restore_best_weights` is False: set it to True."
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        stopping.load_best_weights(module)


def test_best_weights_before_any_check_are_not_there() -> None:
    stopping = EarlyStopping("val_loss", start_from_epoch=9, restore_best_weights=True)
    with pytest.warns(UserWarning, match="val_loss was never checked"):
        module, _ = fit(stopping, [3.0, 2.0], max_epochs=2)
    sentence = "There are no best weights: no check has kept any."
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        stopping.load_best_weights(module)


def test_best_weights_do_not_go_into_another_network() -> None:
    stopping = EarlyStopping("val_loss", restore_best_weights=True)
    fit(stopping, [3.0, 2.0], max_epochs=2)
    sentence = (
        "The best weights do not fit this network: it has changed since in 'bias', 'count', "
        "'head.bias'."
    )
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        stopping.load_best_weights(torch.nn.Linear(2, 2))


# Criteria in a run.


def test_generalization_loss_stops_a_run() -> None:
    stopping = EarlyStopping("val_loss", patience=1, verbose=True, criterion=GL(alpha=10))
    fit(stopping, [1.0, 1.05, 1.09, 1.2, 0.1])
    assert stopping.stopped_epoch == 3
    assert stopping.stopping_reason_message == (
        "Monitored metric val_loss met the criterion: GL = 20.0 % exceeds 10 %. "
        "Best score: 1.000. Signaling Trainer to stop."
    )


def test_any_of_two_criteria() -> None:
    stopping = EarlyStopping("val_loss", criterion=GL(alpha=100) | UP(s=2, k=1))
    fit(stopping, [1.0, 1.01, 1.02, 1.03])
    assert stopping.stopped_epoch == 2


def test_all_of_two_criteria() -> None:
    stopping = EarlyStopping("val_loss", criterion=GL(alpha=2.5) & UP(s=2, k=1))
    fit(stopping, [1.0, 1.01, 1.02, 1.03, 1.04])
    assert stopping.stopped_epoch == 3


def test_progress_needs_a_training_loss_that_is_logged() -> None:
    stopping = EarlyStopping("val_loss", criterion=PQ(0.5, 2, train_monitor="train_lss"))
    sentence = (
        "The criterion PQ(alpha=0.5, k=2, train_monitor='train_lss') needs the metric 'train_lss', "
        "which is not logged. Logged: "
    )
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}"):
        fit(stopping, [1.0, 0.9, 0.8])


def test_a_negative_score_has_no_generalization_loss() -> None:
    sentence = (
        "Prechelt's criteria need a monitored error of at least 0 that is minimised, but got -1."
    )
    with pytest.raises(MisuseError, match=f"^{re.escape(sentence)}$"):
        fit(EarlyStopping("val_loss", criterion=GL()), [-1.0, -2.0])
