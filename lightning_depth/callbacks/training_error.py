"""What the module's own validation step says of training data.

The training loss that a loop logs is measured on changing weights, with dropout, batch statistics
and augmentation on. Only the same data in evaluation mode, measured by the same step as validation,
tells a deep network that overfits from one that never trained (He et al. 2015, arXiv:1512.03385,
figure 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._ending import find_untrained
from lightning_depth.callbacks._error_figure import choose_shown, draw_errors
from lightning_depth.callbacks._error_keys import name_columns, own_key
from lightning_depth.callbacks._evaluation import add_ranks
from lightning_depth.callbacks._measuring import (
    Ask,
    Measured,
    Record,
    choose_way,
    find_known,
    measure,
)
from lightning_depth.callbacks._mode_gap import (
    GAP_SAMPLES,
    LONG,
    UPDATES,
    Losses,
    ModeGap,
    describe_gap,
    find_gap_key,
    find_running,
    is_settled,
)
from lightning_depth.callbacks._training_samples import Share, gather_share, listen
from lightning_depth.errors import ConfigurationError, check_count
from lightning_depth.findings import Finding, FindingKind, Severity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TrainingErrorMonitor"]


class TrainingErrorMonitor(DepthCallback):
    """Measure on training data what the module's own ``validation_step`` measures on validation's.

    What the step logs, and what ``on_validation_epoch_end`` makes of it, is kept under the step's
    own keys without their word for validation: ``val_loss`` and ``val/loss`` are
    ``train_error/loss``. So it is the number to hold against validation, of any task.

    The samples come from ``train_eval_dataloader()`` of the data module (or of the module) where
    it exists: training data in fixed order without augmentation. Otherwise they are copies of
    batches that the first epoch reads, spread over it, at most 256 MiB; the same ones each time.
    Training is not disturbed: what a step changes on the module is taken back (modes, buffers,
    metrics, lists, random numbers), and what it sends to a logger does not arrive.

    Where there is no ``validation_step``, or it does not take training batches, class error and
    cross-entropy are measured of pairs ``(x, y)`` with labels ``(B,)`` and ``module(x)`` of shape
    ``(B, C)``. Of anything else nothing is measured, and it is said why.

    With normalization layers the loss is also compared with what it is under the statistics of
    each batch: a network that is good only in training mode is told as MODE_GAP.

    Args:
        max_samples: Batches of training data are taken until they hold this many samples, spread
            over the processes.
        every_n_epochs: Measure at the end of each n-th epoch.
        predict: Name of a method of the LightningModule that takes a whole batch and returns
            outputs and targets, to be measured by ``loss`` and ``error`` instead of the step.
        loss: Module that takes outputs and targets and returns their mean loss; default:
            cross-entropy, where these are classes.
        error: Metric that takes outputs and targets; default: the share of wrong classes.
        prefix: First part of the logged keys.
        on_finding: What happens when something is found, see the other callbacks.
        figures: Whether figures are logged, or written where no logger takes them: at most one an
            epoch and for at most a hundredth of the time, and one at the end.

    Raises:
        ConfigurationError: An argument cannot be used as given, or the module has no method
            named as ``predict``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = TrainingErrorMonitor(max_samples=500)
        >>> len(Trainer(callbacks=[monitor], logger=False).callbacks) > 0
        True
    """

    def __init__(
        self,
        max_samples: int = 2000,
        every_n_epochs: int = 1,
        *,
        predict: str | None = None,
        loss: nn.Module | None = None,
        error: Metric | None = None,
        prefix: str = "train_error",
        on_finding: OnFinding = "warn",
        figures: bool = True,
    ) -> None:
        super().__init__(prefix=prefix, on_finding=on_finding, figures=figures)
        self.max_samples = check_count("max_samples", max_samples)
        self.every_n_epochs = check_count("every_n_epochs", every_n_epochs)
        self.predict = predict
        self.loss = loss
        self.error = error
        self._record, self._gap = Record(), ModeGap()
        self._lasting: Finding | None = None
        self._share: Share | None = None
        self._end_listening: Callable[[], None] | None = None
        self._stored: Mapping[str, Any] | None = None
        self._validated = False

    # What users read.

    @property
    def chance_error(self) -> float | None:
        """Error of always answering the commonest class; None where no error is measured."""
        return self._record.chance("error")

    @property
    def chance_loss(self) -> float | None:
        """Cross-entropy of the shares of the classes, in nats; None where none is measured."""
        return self._record.chance("loss")

    @property
    def mode_gap(self) -> float | None:
        """How many times the loss is larger with running statistics; None where nothing lasts."""
        return self._gap.ratio if any(map(_is_open_gap, self._found)) else None

    def twin_of(self, monitor: str) -> str | None:
        """Return the column of ``history`` that is the same quantity on training data.

        Args:
            monitor: Key of a validation metric.

        Returns:
            The column that the same line of the module's step fills; None where there is none.
        """
        columns = self._record.columns if self._record.way == "step" else {}
        return next((columns[key] for key in own_key(monitor) if key in columns), None)

    def plot(self) -> tuple[Figure, Axes]:
        """Draw what was measured over the epochs, with validation and chance where known.

        Returns:
            The figure and its uppermost axes.
        """
        chances = {
            column: self._record.chance(quantity) for column, quantity in self._record.known.items()
        }
        return draw_errors(self.history, self._columns(), chances)

    # Hooks.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the module can do what is asked of it.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
            stage: What begins; only "fit" matters here.
        """
        super().setup(trainer, pl_module, stage)
        if self.predict is not None and not callable(getattr(pl_module, self.predict, None)):
            raise ConfigurationError(
                f"`predict` must be the name of a method of {type(pl_module).__name__}, "
                f"but got {self.predict!r}."
            )
        self._detach()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the share, or begin to: it is complete when the first epoch ends.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
        """
        self._share = gather_share(trainer, self.max_samples)
        if self._stored is not None and trainer.world_size == 1:  # it is rank zero's
            self._share.load_state_dict(self._stored)
        if not self._share.full:
            self._end_listening = listen(trainer, self._share.offer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Try on the first batch what can be measured.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
            batch: A training batch.
            batch_idx: Its number in the epoch.
        """
        lazy = any(map(is_lazy, pl_module.parameters())) if self._is_undecided else True
        if self._is_undecided and self._agree(trainer) and not lazy:
            self._choose(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that validation has measured since the last epoch ended.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
        """
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and log.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
        """
        self._stop_listening()
        if self._share is not None:
            self._share.close()
        validated, self._validated = self._validated, False
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        if not self._agree(trainer):
            return
        if self._is_undecided:
            self._choose(trainer, pl_module)
        if not self._record.reason:
            self._measure(trainer, pl_module, validated=validated)

    # What the base asks for.

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        """Whether the network fitted its training data; early stopping, if there, knows more."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        if self.mode_gap is not None:
            if not self._gap.streak:
                self._found = [
                    _closed(each) if _is_open_gap(each) else each for each in self._found
                ]
            return []
        if self._lasting is not None:  # the run ends with statistics that have not followed
            return [self._lasting]
        if any(hasattr(each, "_judges_ending") for each in callbacks):
            return []
        return _judge(self._history.table(), self._record)

    def _summary(self) -> str:
        record, table = self._record, self._history.table()
        if record.reason:
            return f"TrainingErrorMonitor measured nothing: {record.reason}."
        if not table:
            return ""
        values = ", ".join(
            f"{column} {table[column][-1]:.3g}"
            for column in choose_shown(self._columns())
            if table[column][-1] is not None
        )
        samples, epoch = table["num_samples"][-1], table["epoch"][-1]
        note = f" ({record.note})" if record.note else ""
        return (
            f"Training data in evaluation mode: {values} (epoch {epoch}, {samples} samples){note}."
        )

    def _detach(self) -> None:
        self._stop_listening()
        self._share = None

    def _reset(self) -> None:
        super()._reset()
        self._record, self._gap, self._lasting = Record(), ModeGap(), None
        self._stored = None

    def _extra_state(self) -> dict[str, Any]:
        share = None if self._share is None else self._share.state_dict()
        return {"record": asdict(self._record), "gap": asdict(self._gap), "share": share}

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self._record = Record(**state.get("record", {}))
        self._gap = ModeGap(**state.get("gap", {}))
        self._stored = state.get("share")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the share, and what listens for it."""
        return {**super().__getstate__(), "_share": None, "_end_listening": None, "_stored": None}

    # Inside.

    @property
    def _is_undecided(self) -> bool:
        return self._record.way is None and not self._record.reason

    def _meets(self, trainer: pl.Trainer, hook: str) -> bool:
        """The ranks also meet to try what can be measured."""
        tries = hook == "on_train_batch_start" and self._is_undecided
        return tries or super()._meets(trainer, hook)

    def _stop_listening(self) -> None:
        if self._end_listening is not None:
            self._end_listening()
            self._end_listening = None

    def _columns(self) -> list[str]:
        known = set(self._record.columns.values())
        return [name for name in self._history.table() if name in known]

    def _ask(self) -> Ask | None:
        """How classes are counted, None for the module's own step."""
        return None if self._record.way == "step" else Ask(self.predict, self.loss, self.error)

    def _choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._share is not None
        first = self._share.first(_on_every_rank(trainer, min(1, len(self._share))))
        ask = Ask(self.predict, self.loss, self.error)
        self._record = choose_way(trainer, pl_module, first, ask)
        if self._record.reason:
            self._give_up(self._record.reason)

    def _give_up(self, reason: str) -> None:
        self._record.reason = reason
        self._detach()
        rank_zero_warn(f"TrainingErrorMonitor measures nothing: {reason}.")

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, validated: bool
    ) -> None:
        assert self._share is not None
        count = _on_every_rank(trainer, len(self._share))
        measured = measure(trainer, pl_module, self._share.first(count), self._ask())
        if measured.failure:
            self._give_up(f"it failed in epoch {trainer.current_epoch} ({measured.failure})")
            return
        columns = self._name(measured)
        row = {columns[key]: value for key, value in measured.values.items() if key in columns}
        self._identify(trainer, pl_module, row, measured, count)
        self._history.append(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            **row,
            num_samples=measured.num_samples,
            **(self._read_validation(trainer) if validated else {}),
        )
        self._log(pl_module, row, epoch_end=True)
        self._look_for_gap(trainer, pl_module, row, count)
        self._log_figure(trainer)

    def _name(self, measured: Measured) -> dict[str, str]:
        """Return a column for each key; those of the first measurement stay for the run."""
        record = self._record
        if not record.columns:
            record.columns = name_columns(measured.values)
        for key in measured.values.keys() - record.columns.keys():
            record.columns[key] = key
        record.note = record.note or measured.note
        return record.columns

    def _identify(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        row: Mapping[str, float],
        measured: Measured,
        count: int,
    ) -> None:
        """Find out, once, which columns are the error and the cross-entropy of classes."""
        if self._record.class_counts or self._share is None:
            return
        classes = measured
        if self._record.way == "step":
            classes = measure(trainer, pl_module, self._share.first(count), Ask())
        self._record.known = find_known(row, classes)
        self._record.class_counts = classes.class_counts or [0.0]

    def _read_validation(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return what validation found in this epoch, without having anything computed for it."""
        found: Mapping[str, Any] = trainer._logger_connector._callback_metrics
        pairs = ((key, self.twin_of(key)) for key in found)
        read = {f"val/{column}": float(found[key]) for key, column in pairs if column is not None}
        return trainer.strategy.broadcast(read)  # a rank's own where the step says nothing of ranks

    def _look_for_gap(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        row: Mapping[str, float],
        count: int,
    ) -> None:
        layers, column = find_running(pl_module), find_gap_key(list(row))
        early = trainer.global_step < UPDATES
        if not layers or column is None or early or self._share is None:
            return
        part = _on_every_rank(trainer, self._share.batches_for(GAP_SAMPLES / trainer.world_size))
        batches = self._share.first(part)

        def loss_with(modules: Iterable[nn.Module]) -> tuple[float, int]:
            measured = measure(
                trainer, pl_module, batches, self._ask(), batch_statistics=list(modules)
            )
            return self._value_of(column, measured), measured.num_samples

        batch, num_samples = loss_with(layers.values())
        losses = Losses(row[column] if part == count else loss_with(())[0], batch)
        if self._gap.is_wide(losses):
            in_training = [module for module in pl_module.modules() if module.training]
            losses = replace(losses, training=loss_with(in_training)[0])
        self._gap.take(losses, settled=is_settled(layers, trainer.global_step))
        self._lasting = None
        if self._gap.lasts:
            self._lasting = describe_gap(
                losses,
                column,
                layers=layers,
                num_samples=num_samples,
                epoch=trainer.current_epoch,
                step=trainer.global_step,
            )
            if self._gap.settled >= LONG and self.mode_gap is None:
                self._add_finding(trainer, self._lasting)

    def _value_of(self, column: str, measured: Measured) -> float:
        columns = self._record.columns
        values = (value for key, value in measured.values.items() if columns.get(key) == column)
        return next(values, math.nan)


def _is_open_gap(finding: Finding) -> bool:
    return finding.kind is FindingKind.MODE_GAP and finding.severity is not Severity.INFO


def _closed(finding: Finding) -> Finding:
    """A gap that was there and is there no more is worth knowing; others stay as they are."""
    if not _is_open_gap(finding):
        return finding
    message = f"Evaluation mode was bad for a while, and is no longer. {finding.message}"
    return replace(finding, severity=Severity.INFO, message=message)


def _on_every_rank(trainer: pl.Trainer, number: int) -> int:
    """Return the smallest number of all ranks: a sharded network needs all in each pass."""
    return -int(add_ranks(trainer, [-float(number)], "max")[0])


def _judge(table: Mapping[str, list[Any]], record: Record) -> list[Finding]:
    """Return the finding on a network that never left chance, where chance is known."""
    column = record.column_of("error", "accuracy", "loss")
    if column is None:
        return []
    quantity = record.known[column]
    values = [float(value) for value in table.get(column, []) if value is not None]
    if quantity != "loss":
        errors = [1 - value for value in values] if quantity == "accuracy" else values
        return find_untrained(errors, record.chance("error"))
    chance = record.chance("loss")
    return [
        replace(
            finding,
            message=f"The training loss in evaluation mode is {values[-1]:.3g} at the end, where "
            f"the shares of the classes alone give {chance:.3g}: this is no over-fitting.",
        )
        for finding in find_untrained(values, chance)
    ]
