"""Early stopping that gives back the best weights, whatever ended training.

A subclass of Lightning's: whoever changes only the import line sees no other difference.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._best_weights import Place
from lightning_depth.callbacks._checks_figure import draw_checks
from lightning_depth.callbacks._criteria import StoppingCriterion
from lightning_depth.callbacks._ending import find_ending
from lightning_depth.callbacks._metric_watch import MetricWatch, missing_metric
from lightning_depth.callbacks._pytorch_lightning import join_trainer, leave_trainer
from lightning_depth.callbacks._restoring import WeightKeeper, changes_before_check
from lightning_depth.callbacks._stop_signal import (
    agree_on_stop,
    settle_stop,
    signal_stop,
    take_stop_back,
)
from lightning_depth.callbacks._stopping_parts import CriterionRecord, MovingAverage, finite
from lightning_depth.callbacks._stopping_words import (
    best_check,
    refuse_rivals,
    weights_in_place,
)
from lightning_depth.callbacks._training_curve import (
    TrainingCurve,
    find_training_curve,
    has_mode_gap,
    twin_key,
)
from lightning_depth.errors import (
    MisuseError,
    check_choice,
    check_count,
    check_real,
    invalid,
)
from lightning_depth.findings import Finding, FindingKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EarlyStopping"]


_EXPLAINED_BY_MODES = (FindingKind.OVERFITTING, FindingKind.UNDERFITTING)


class EarlyStopping(DepthCallback, LightningEarlyStopping):
    """Stop when a metric has stopped improving, and give back the weights that scored best.

    The best weights come back at the end of training whatever ended it: patience, ``max_epochs``,
    ``max_steps``, ``max_time`` or another callback; after an exception or Ctrl-C they can be had
    by ``load_best_weights``. With ``WeightAveraging`` in the same Trainer, the averaged weights
    are measured in validation, and so it is they that come back.

    Args:
        monitor: Key of the metric to watch.
        min_delta: Smallest change that counts as an improvement, see ``min_delta_mode``.
        patience: Number of checks without an improvement after which training stops; a check
            follows each validation, or each epoch where every epoch ends with one.
        verbose: Whether to log each improvement and the reason of a stop.
        mode: "min" where lower is better, "max" where higher is.
        strict: Whether a missing metric is an error.
        check_finite: Whether to stop when the metric is NaN or infinite.
        stopping_threshold: Stop as soon as the metric is better than this.
        divergence_threshold: Stop as soon as the metric is worse than this.
        check_on_train_epoch_end: Whether to check when a training epoch ends rather than when a
            validation does; by default the former, where every epoch has one validation.
        log_rank_zero_only: Whether only the first process logs.
        restore_best_weights: Whether the weights and buffers of the best check are copied and
            come back at the end: on the "device", in host memory ("cpu", the same as True) or on
            "disk". A checkpoint grows by the copy, by its path only for "disk".
        start_from_epoch: Epochs before this one (counted from 0) are not checked.
        min_delta_mode: "abs" takes ``min_delta`` as it is; "rel" multiplies it by the size of the
            best score, whatever its sign.
        smoothing: Weight of the past in a moving average of the metric, 0 to below 1; the average
            is what is compared. 0 takes the metric as it is.
        every_n_steps: Check after each n-th optimizer step instead of after validations or epochs;
            a metric that comes from validation counts once for each validation.
        criterion: Rule that takes the place of ``patience``: ``GL``, ``PQ``, ``UP`` or several of
            them combined.
        on_finding: What happens with the verdict on how training ended, see the other callbacks.
        figures: Whether figures are logged, or written where no logger takes them: at most one an
            epoch and for at most a hundredth of the time, and one at the end.

    Raises:
        ConfigurationError: An argument cannot be used as given.

    Example:
        >>> stopping = EarlyStopping("val_loss", patience=5, restore_best_weights=True)
        >>> stopping.state_key
        "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"
    """

    _observes = False  # it stops runs and restores weights: its errors are wanted
    _judges_ending = True  # the training monitor then leaves the verdict to this callback
    _weights: WeightKeeper | None

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        restore_best_weights: bool | Place = False,
        start_from_epoch: int = 0,
        min_delta_mode: Literal["abs", "rel"] = "abs",
        smoothing: float = 0.0,
        every_n_steps: int | None = None,
        criterion: StoppingCriterion | None = None,
        on_finding: OnFinding = "warn",
        figures: bool = True,
    ) -> None:
        LightningEarlyStopping.__init__(
            self,
            monitor=monitor,
            min_delta=min_delta,
            patience=patience,
            verbose=verbose,
            mode=mode,
            strict=strict,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
        )
        DepthCallback.__init__(
            self, prefix="early_stopping", on_finding=on_finding, figures=figures
        )
        if not isinstance(restore_best_weights, bool):
            check_choice("restore_best_weights", restore_best_weights, ("device", "cpu", "disk"))
        if criterion is not None and not isinstance(criterion, StoppingCriterion):
            raise invalid("criterion", "a stopping criterion such as GL(alpha=5)", criterion)
        if criterion is not None and mode != "min":
            raise invalid("mode", "'min' with a `criterion`, which compares errors", mode)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = check_count("start_from_epoch", start_from_epoch, minimum=0)
        self.min_delta_mode = check_choice("min_delta_mode", min_delta_mode, ("abs", "rel"))
        self.smoothing = check_real("smoothing", smoothing, 0.0, 0.999999)
        self.every_n_steps = every_n_steps
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        self.criterion = criterion
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self._fresh_score = self.best_score
        self._begin()

    @property
    def state_key(self) -> str:
        """Lightning's own key, so that a checkpoint of either class loads into the other."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def load_best_weights(self, module: nn.Module) -> None:
        """Write the best weights into a module; after an exception nobody else does.

        Args:
            module: The network that was trained, or one with tensors of the same names and shapes.

        Raises:
            MisuseError: No check has found an improvement yet, or the weights do not fit.
        """
        self._check_ran("load_best_weights")
        if self._weights is None:
            raise MisuseError(
                "There are no best weights because `restore_best_weights` is False: set it to True."
            )
        self._weights.best.apply(module)

    # Hooks.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose when to check, as Lightning does."""
        refuse_rivals(self, trainer)
        join_trainer(self, trainer, LightningEarlyStopping)
        DepthCallback.setup(self, trainer, pl_module, stage)
        LightningEarlyStopping.setup(self, trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse weights that cannot be copied, and warn of an average that would be lost."""
        if self._weights is None:
            return
        self._weights.start(trainer)
        if rival := self._weights.overwrites(trainer):
            rank_zero_warn(
                f"`EarlyStopping(restore_best_weights={self.restore_best_weights!r})` writes the "
                f"weights of the best check over the average that `{rival}` makes when training "
                "ends: leave `restore_best_weights` out to keep the average."
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Check, where checks are made by steps."""
        if self.every_n_steps is not None and self._watch.is_due(trainer, self.every_n_steps):
            self._run_early_stopping_check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, where checks belong to the end of an epoch."""
        if self.every_n_steps is None:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the metric, to see whether it is validation that measures it."""
        if not self._should_skip_check(trainer):
            self._watch.begin_validation(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, where checks belong to validation; the first tells whether the key is right."""
        if self._should_skip_check(trainer):
            return
        logs = trainer.callback_metrics
        if self._watch.end_validation(logs) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._miss_metric(logs, warn=True)
        if self.every_n_steps is None:
            self._copy_ahead(trainer, pl_module)
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the best weights back; ``ModelCheckpoint`` comes later and saves them."""
        settle_stop(trainer)
        if self._weights is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trouble := self._restore(trainer, pl_module):
            rank_zero_warn(f"The weights stay those of the last step{trouble}")
            self._outcome = f"The weights are those of the last step{trouble}"
            return
        self._outcome = weights_in_place(
            self._history.table(), self.monitor, self.best_epoch, self.best_step
        )
        text = f"Restored the weights of epoch {self.best_epoch} (step {self.best_step})."
        self._log_info(trainer, text, self.log_rank_zero_only)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the best weights to this callback's state; every rank takes part."""
        weights = self._weights
        if weights is not None and (weights.best.held or weights.candidate is not None):
            state = checkpoint["callbacks"][self.state_key]
            state["best_weights"] = weights.to_state(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that belongs to the run, as plain containers and tensors."""
        return super().state_dict()

    # Lightning refuses two callbacks of one key that override this, and names neither; `setup`
    # does it in words, also of those that a module brings
    state_dict.__wrapped__ = pl.Callback.state_dict  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, of this class or of Lightning's, in place of all there was.

        Args:
            state_dict: State of the same callback, also one put back in the middle of a run.
        """
        weights = self._weights
        self._reset()
        super().load_state_dict(state_dict)
        if weights is not None:
            weights.from_state(state_dict.get("best_weights"), self.best_step)
            self._weights = weights
        if not torch.isfinite(self.best_score):  # nothing would ever be better
            self.best_score = self._fresh_score

    def plot(self) -> tuple[Figure, Axes]:
        """Draw the metric over the checks, training beside it, and mark the best and the stop.

        Returns:
            The figure and its axes.
        """
        table = self.history
        training = self._training or find_training_curve([], table, self.monitor, self.mode)
        stopped = self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        return draw_checks(table, self.monitor, training, best=best_check(table), stopped=stopped)

    # The check.

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        logs = trainer.callback_metrics
        early = trainer.current_epoch < self.start_from_epoch
        if trainer.fast_dev_run or early or not self._validate_condition_metric(logs):  # type: ignore[attr-defined]
            return
        score, best = logs[self.monitor].squeeze(), self.best_score
        current = self._average.update(score)
        should_stop, reason = self._evaluate_stopping_criteria(current)
        if self.criterion is not None and not should_stop:
            should_stop, reason = self._ask_criterion(self.criterion, current, logs, reason)
        decision = agree_on_stop(trainer, should_stop, reason, self.stopping_reason)
        should_stop, reason, self.stopping_reason = decision
        self._record(trainer, score, logs)
        self._keep_best(trainer, improved=self.best_score is not best)
        self._decide(trainer, should_stop, reason)

    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        if self.monitor not in logs:
            self._miss_metric(logs, warn=self.verbose)
        return self.monitor in logs

    def _miss_metric(self, logs: Mapping[str, Tensor], warn: bool) -> None:
        message = missing_metric(self.monitor, logs)
        if self.strict:
            raise MisuseError(message)
        if warn:
            rank_zero_warn(message, category=RuntimeWarning)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        best, waited = self.best_score, self.wait_count
        should_stop, reason = self._evaluate(current)
        if self.best_score is not best and not torch.isfinite(current):
            self.best_score, self.wait_count = best, waited  # nothing would ever be better
            return self._evaluate(torch.full_like(current, torch.nan))
        return should_stop, reason

    def _evaluate(self, current: Tensor) -> tuple[bool, str | None]:
        given = self.min_delta, self.patience
        try:
            if self.min_delta_mode == "rel":
                best = abs(float(self.best_score))
                self.min_delta = given[0] * best if math.isfinite(best) else 0.0
            if self.criterion is not None:
                self.patience = sys.maxsize
            return super()._evaluate_stopping_criteria(current)
        finally:
            self.min_delta, self.patience = given

    def _begin(self) -> None:
        """Set what belongs to one run, beyond what Lightning's class keeps."""
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        place: Any = "cpu" if self.restore_best_weights is True else self.restore_best_weights
        self._weights = WeightKeeper(place) if place else None
        self._told = CriterionRecord()
        self._average = MovingAverage(self.smoothing)
        self._watch = MetricWatch(self.monitor)
        self._training: TrainingCurve | None = None
        self._outcome = ""

    def _reset(self) -> None:
        super()._reset()
        self._begin()
        if self._weights is not None:  # weights of another run must not come back in this one
            self.best_score = self._fresh_score
            self.wait_count = self.stopped_epoch = 0
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None

    def _copy_ahead(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy what was measured, if weights may change before the check of the epoch's end."""
        if self._weights is None or not self._check_on_train_epoch_end:
            return
        started = trainer.current_epoch >= self.start_from_epoch
        if started and self._watch.from_validation and changes_before_check(trainer):
            self._weights.look_ahead(trainer, pl_module, self.monitor)

    def _ask_criterion(
        self,
        criterion: StoppingCriterion,
        current: Tensor,
        logs: Mapping[str, Tensor],
        reason: str | None,
    ) -> tuple[bool, str | None]:
        met = self._told.ask(criterion, current, logs)
        if met is None:
            return False, reason
        self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED  # Lightning knows no nearer
        return True, (
            f"Monitored metric {self.monitor} met the criterion: {met}."
            f" Best score: {self.best_score:.3f}. Signaling Trainer to stop."
        )

    def _record(self, trainer: pl.Trainer, score: Tensor, logs: Mapping[str, Tensor]) -> None:
        twin = twin_key(self.monitor)
        self._history.append(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            score=finite(score),
            best_score=finite(self.best_score),
            wait_count=self.wait_count,
            train_score=None if twin is None else finite(logs.get(twin)),
        )

    def _keep_best(self, trainer: pl.Trainer, improved: bool) -> None:
        if self._weights is None:
            if improved:
                self.best_epoch, self.best_step = trainer.current_epoch, trainer.global_step
            return
        improved = trainer.strategy.broadcast(improved)  # ranks must not keep different steps
        if improved:
            module = trainer.lightning_module
            self._weights.keep(trainer, module, self.monitor, self._watch.from_validation)
            self.best_epoch, self.best_step = trainer.current_epoch, self._weights.best.step
        self._weights.forget_candidate()

    def _decide(self, trainer: pl.Trainer, should_stop: bool, reason: str | None) -> None:
        if should_stop:
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason
            signal_stop(trainer)
        elif self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:  # it has recovered
            self.stopped_epoch = 0
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None
            take_stop_back(trainer, self)
        if reason and self.verbose:
            self._log_info(trainer, reason, self.log_rank_zero_only)

    def _option(self, parameter: inspect.Parameter) -> Any:
        value = super()._option(parameter)
        return abs(value) if parameter.name == "min_delta" else value  # kept with the mode's sign

    def _extra_state(self) -> dict[str, Any]:
        return {
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "scores": list(self._told.scores),
            "train_losses": list(self._told.train_losses),
            "average": [self._average.total, self._average.count],
            "watch": [self._watch.from_validation, self._watch.unseen, self._watch.last_step],
        }

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.best_epoch, self.best_step = state["best_epoch"], state["best_step"]
        self._told = CriterionRecord(list(state["scores"]), list(state["train_losses"]))
        self._average = MovingAverage(self.smoothing, *state["average"])
        self._watch = MetricWatch(self.monitor, *state["watch"])

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        table, mode = self._history.table(), self.mode
        self._training = find_training_curve(callbacks, table, self.monitor, mode)
        stopped = self.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
        epochs, scores = table.get("epoch", []), table.get("score", [])
        found = find_ending(self.monitor, mode, epochs, scores, self._training, stopped=stopped)
        if has_mode_gap(callbacks):  # evaluation mode is bad for another reason
            return [finding for finding in found if finding.kind not in _EXPLAINED_BY_MODES]
        return found

    def _summary(self) -> str:
        if self._outcome or self._weights is None or not self._weights.best.held:
            return self._outcome
        return (
            "The weights are those of the last step; `load_best_weights` writes those of epoch "
            f"{self.best_epoch} (step {self.best_step}) into a network."
        )

    def _detach(self) -> None:
        leave_trainer(self)

    # The end.

    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
        """Write the best weights into the module, or return why they are not."""
        assert self._weights is not None
        if not self._weights.best.held:  # as on every rank, whatever each of them monitors
            what = "was not finite at any check" if len(self._history) else "was never checked"
            if torch.isfinite(self.best_score):
                what = "was best in a checkpoint that holds no best weights"
            return f": {self.monitor} {what}."
        try:
            self._weights.restore(trainer, pl_module)
        except MisuseError as error:
            return f". {error}"
        return None
