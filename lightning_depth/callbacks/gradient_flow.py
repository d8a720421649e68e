"""Is the gradient reaching the first layers?

The monitor reads gradients in ``on_before_optimizer_step``: after accumulation, reduction over
ranks and unscaling, before clipping. Everything read at one step comes to the host in one copy,
and what the optimizer did at that step comes along with the next copy, because a second one would
stop the accelerator again. Between measured steps the monitor compares two integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._gradient_report import TIME, confirm, scalars_of
from lightning_depth.callbacks._heatmap import draw_heatmap
from lightning_depth.callbacks._histograms import (
    bring_histograms,
    send_histograms,
    wants_histograms,
)
from lightning_depth.callbacks._history import History
from lightning_depth.callbacks._output_gradients import OutputGradients
from lightning_depth.callbacks._pace import Pace, step_of, writes_row
from lightning_depth.callbacks._record import LAYER_COLUMNS, TOTAL_COLUMNS, Record
from lightning_depth.callbacks._roster import Roster
from lightning_depth.callbacks._scope import Scope, known_optimizers
from lightning_depth.callbacks._scopes import Scopes
from lightning_depth.callbacks._sharding import is_summed
from lightning_depth.callbacks._sources import HIDDEN, Source, choose_source
from lightning_depth.callbacks._streaks import Streaks
from lightning_depth.callbacks._through_time import ThroughTime
from lightning_depth.callbacks._updates import StepWatcher
from lightning_depth.errors import check_choice, check_count
from lightning_depth.findings import Finding, FindingKind
from lightning_depth.layers import Granularity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GradientFlowMonitor"]

_MISSES = 3
"""Steps without any gradient after which that is said."""


class GradientFlowMonitor(DepthCallback):
    """Watches how the gradient fares on its way through the layers, and says where it is lost.

    For every block it keeps the RMS of the weight's gradient, the RMS of the weight, their ratio,
    and the share of itself by which the step changed the weight (You et al. 2017, 1708.03888);
    for the whole network the norm before and after clipping and the factor by which the ratio
    shrinks with every layer toward the input (Glorot and Bengio 2010). Findings are VANISHING,
    EXPLODING, NON_FINITE and NO_GRADIENT, each after it has lasted; a gradient that explodes at
    the very first step tells of the initialisation, which need not last. NO_GRADIENT is said of
    parameters that had none in the whole run, sooner where they are cut off from the loss; what
    takes turns, or begins at zero by design, is no fault. Of recurrent layers VANISHING says how
    much of the gradient is lost through time.

    The first ``patience + 1`` steps are always measured, because a network that cannot pass a
    gradient shows it at its initialisation and may hide it later; so are at least one step of
    every epoch and the last step of training. With several optimizers each is measured on its own,
    over its own parameters, and named after the part of the module that it trains. Where modules
    are added, replaced or removed during training, the layers are chosen again at the next
    measured step.

    What a step changes is known after it: in a logged row ``update_to_weight``, and the norm after
    a clipping that is not by norm, are those of the measurement before. ``history`` and ``totals``
    have every number at its own step.

    Args:
        granularity: "block" watches the repeated blocks of the network with what comes before,
            between and after them; "leaf" watches every module that owns weights.
        include: Glob patterns of layers to watch; all by default.
        exclude: Glob patterns of layers to leave out; none by default.
        every_n_steps: Optimizer steps from one measurement to the next; by default the Trainer's
            ``log_every_n_steps``, so that each logged row holds a fresh measurement.
        patience: Measurements in a row after which something counts as found.
        on_finding: What happens then: "log" prints it, "warn" warns, "stop" ends training, "raise"
            raises an error, a callable is handed the finding.
        log_layers: Whether the ratio of every layer is logged beside the totals.
        log_histograms: Whether the gradients of every layer go to TensorBoard, W&B and Comet as
            histograms, at measured steps, for one more copy from the device. They are those of
            rank zero; where parameters are sharded, those of its shard.
        update_ratio: Whether the change of the weights is measured, which keeps one copy of them.
            Without it the weights themselves are read at every tenth measurement only.
        signal: "weights" judges the gradient of the weights over the weights; "activations" also
            measures the gradient of the loss with respect to each layer's output, by hooks at
            measured steps, and judges that.
        prefix: First part of every logged key.
        figures: Whether figures are logged, or written where no logger takes them: at most one an
            epoch and for at most a hundredth of the time, and one at the end.

    Example:
        >>> monitor = GradientFlowMonitor(every_n_steps=1)
        >>> monitor.patience
        3
    """

    def __init__(
        self,
        granularity: Granularity = "block",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        every_n_steps: int | None = None,
        patience: int = 3,
        on_finding: OnFinding = "warn",
        log_layers: bool = False,
        *,
        log_histograms: bool = False,
        update_ratio: bool = True,
        signal: Literal["weights", "activations"] = "weights",
        prefix: str = "grad_flow",
        figures: bool = True,
    ) -> None:
        super().__init__(prefix, on_finding, History(LAYER_COLUMNS), figures=figures)
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        self.granularity = granularity
        self.include = include
        self.exclude = exclude
        self.every_n_steps = every_n_steps
        self.patience = check_count("patience", patience)
        self.log_layers = log_layers
        self.log_histograms = log_histograms
        self.update_ratio = update_ratio
        self.signal = check_choice("signal", signal, ("weights", "activations"))
        self._totals = History(TOTAL_COLUMNS)
        self._streaks = Streaks(patience)
        self._pace = Pace(every_n_steps)
        self._scopes = Scopes()
        self._watching = "no layer"
        self._sums_over_ranks = False
        self._start_watching()

    def _start_watching(self) -> None:
        """Set what belongs to one run and to its model, and is neither copied nor kept."""
        self._roster: Roster | None = None
        self._time: ThroughTime | None = None
        self._outputs: OutputGradients | None = None
        self._waiting: dict[int, Scope] = {}
        self._source: Source | None = None
        self._sends_histograms, self._why_nothing = False, "no step was measured"
        self._missed = 0
        self._latest: dict[str, Callable[[], dict[str, float]]] = {}
        self._watched: list[StepWatcher] = []
        self._look_ahead()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model's parameters out of copies."""
        self._finish_records()
        tied: dict[str, Any] = {"_roster": None, "_outputs": None, "_source": None, "_time": None}
        return {**super().__getstate__(), **tied, "_latest": {}, "_watched": [], "_waiting": {}}

    @property
    def totals(self) -> dict[str, list[Any]]:
        """What was measured of the whole network, one row a measured step and optimizer."""
        self._check_ran("totals")
        self._finish_records()
        return self._totals.table()

    @property
    def history(self) -> dict[str, list[Any]]:
        """What was measured of every layer, one row a measured step and layer."""
        self._finish_records()
        return super().history

    def plot(self) -> tuple[Figure, Axes]:
        """Draw by depth and step what the findings are about, over the median of each step.

        That is the ratio of gradient to weight, or with ``signal="activations"`` the gradient of
        the loss with respect to the layers' outputs.

        Returns:
            The figure and its axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        column, label = "grad_to_weight", "gradient RMS / weight RMS"
        if self.signal == "activations":
            column, label = "output_grad_rms", "RMS of the gradient of the layer's output"
        label = f"{label}, over the step's median"
        return draw_heatmap(self.history, column, "Gradient flow by depth", label, relative=True)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the layers, so that a pattern that matches nothing is told before training."""
        super().on_fit_start(trainer, pl_module)
        self._roster = Roster(pl_module, self.granularity, self.include, self.exclude)
        self._watching = self._roster.describe_share()
        if self.signal == "activations":
            self._outputs = OutputGradients(self._roster.layers)
        self._sends_histograms = wants_histograms(trainer, self, asked=self.log_histograms)
        source = choose_source(trainer)
        self._source = source if isinstance(source, Source) else None
        self._why_nothing = "no step had a gradient"
        if isinstance(source, str):
            self._why_nothing = f"DeepSpeed keeps the gradients to itself, and {source}"
            rank_zero_warn(HIDDEN.format(reason=source))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look ahead at the first batch, also where a run goes on in the middle of an epoch."""
        super().on_train_start(trainer, pl_module)
        self._look_ahead()
        self._sums_over_ranks = self._has_peers and is_summed(
            trainer.strategy.model or pl_module, always=self._outputs is not None
        )
        if self._source is not None and trainer.world_size == 1:  # ranks see their own sequences
            self._time = ThroughTime(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look ahead at the first batch, when the length of the epoch is known."""
        super().on_train_epoch_start(trainer, pl_module)
        self._look_ahead()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At steps that are due, look at the layers and hang hooks where these are needed."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if step_of(trainer) >= self._due:
            self._prepare(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Read the gradients, at steps that are due."""
        step = step_of(trainer)
        if step >= self._due:
            self._measure(trainer, pl_module, optimizer, step)
        elif scope := self._waiting.get(id(optimizer)):
            scope.look()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the hooks off the optimizers that were just measured."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        while self._watched:
            self._watched.pop().release()
            if self._outputs is not None:
                self._outputs.release()
            if self._time is not None:
                self._time.release()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what the last measured steps changed, while every rank is here to take part.

        What had no gradient in the whole run has none at all.
        """
        super().on_train_end(trainer, pl_module)
        if not self._agree(trainer):
            return
        self._finish_records(collective=True)
        for scope in self._scopes:
            for finding in scope.conclude(self.patience):
                self._add_finding(trainer, finding)
        for finding in self._streaks.finish(TIME):
            self._add_finding(trainer, finding)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last scalars of the epoch, which other callbacks may monitor, and a figure."""
        super().on_train_epoch_end(trainer, pl_module)
        self._log(pl_module, self._scalars(), epoch_end=True)
        self._latest = {}
        self._log_figure(trainer)

    def _meets(self, trainer: pl.Trainer, hook: str) -> bool:
        """Where gradients are in pieces, the ranks also meet at each measured step."""
        reads = self._sums_over_ranks and hook == "on_before_optimizer_step"
        return (reads and step_of(trainer) >= self._due) or super()._meets(trainer, hook)

    def _look_ahead(self) -> None:
        self._due, self._epoch_entered = 0, False

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find out when the next measurement is due, and get ready for it if it is now."""
        if self._roster is None or self._source is None:
            return
        if not self._epoch_entered:
            self._epoch_entered = True
            self._scopes.bring_forward(self._pace.enter_epoch(trainer))
        self._keep_records(self._scopes.part_from_strangers(known_optimizers(trainer)))
        self._due = self._scopes.due
        if step_of(trainer) >= self._due:
            self._refresh(pl_module)
            self._roster.listen()
            if self._outputs is not None:
                self._outputs.attach()
            if self._time is not None:
                self._time = self._time if self._time.watches else None
            if self._time is not None:
                self._time.attach()

    def _refresh(self, pl_module: pl.LightningModule) -> None:
        """Meet the optimizers anew where the layers are no longer what they were."""
        if self._roster is None or (gone := self._roster.refresh()) is None:
            return
        self._watching = self._roster.describe_share()
        self._streaks.forget(gone)
        self._keep_records(self._scopes.part())
        self._scopes.drop(gone)
        self._waiting = {}
        if self._time is not None:
            self._time.release()
            self._time = ThroughTime(pl_module)
        if self._outputs is not None:
            self._outputs.release()
            self._outputs = OutputGradients(self._roster.layers)

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, step: int
    ) -> None:
        roster, source = self._roster, self._source
        if roster is None or source is None or not source.is_ready():
            return
        scope = self._scopes.find(optimizer)
        if scope is not None and step < scope.counts.due:
            return
        self._refresh(pl_module)
        if roster.settle():  # layers have another depth than was thought
            self._keep_records(self._scopes.part())
        scope = self._scopes.find(optimizer)
        if scope is None or not scope.is_of(optimizer):
            scope, completed = self._scopes.enter(
                trainer,
                pl_module,
                optimizer,
                layers=roster.layers,
                source=source,
                outputs=self._outputs,
                update_ratio=self.update_ratio,
                executed=roster.executed,
                time=self._time,
            )
            self._keep_records(completed)
        if step >= scope.counts.due:
            if self._sums_over_ranks and not self._agree(trainer):
                return
            self._read(trainer, pl_module, scope, step)
            scope.wait()
            self._waiting.pop(id(optimizer), None)
            if scope.pending:
                self._waiting[id(optimizer)] = scope
            scope.counts.due = self._next(trainer, scope, step)

    def _next(self, trainer: pl.Trainer, scope: Scope, step: int) -> int:
        """The first steps are all measured, and what has no gradient is looked at again."""
        if scope.counts.measured <= self.patience or self._streaks.is_running(
            scope.key, FindingKind.NO_GRADIENT
        ):
            return step + 1
        return self._pace.after(trainer, step)

    def _read(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, scope: Scope, step: int
    ) -> None:
        records = scope.read(trainer, step)
        if records is None:
            self._miss(trainer)
            return
        record, completed = records
        self._watched.append(scope.watcher)
        self._keep_records([completed] if completed else [])
        for finding in confirm(self._streaks, scope, record, self.patience):
            self._add_finding(trainer, finding)
        if self.log_histograms and self._roster is not None:
            counted = scope.count_gradients(self._roster.layers, here=self._sends_histograms)
            histograms = bring_histograms(counted, scale=scope.factor_on_gradients())
            send_histograms(trainer, f"{self._prefix}/gradients", histograms, step)
        self._latest[scope.name] = partial(scalars_of, scope, record, log_layers=self.log_layers)
        if writes_row(trainer, step):
            self._log(pl_module, self._scalars())

    def _miss(self, trainer: pl.Trainer) -> None:
        """Say once that there is nothing to read, where that is so from the beginning."""
        self._missed += 1
        if self._missed == _MISSES and not len(self._totals):
            rank_zero_warn(
                f"GradientFlowMonitor found no gradient in {_MISSES} steps: either "
                f"{type(trainer.strategy).__name__} keeps them to itself or `training_step` "
                "returns None. Gradient flow is not measured until there is one."
            )

    def _keep_records(self, records: Iterable[Record]) -> None:
        for record in records:
            self._history.defer(record.layer_columns)
            self._totals.defer(record.total_columns)

    def _scalars(self) -> dict[str, float]:
        """What the last measurement of each optimizer says, made only where it is logged."""
        return {key: value for make in self._latest.values() for key, value in make().items()}

    def _finish_records(self, *, collective: bool = False) -> None:
        self._keep_records(self._scopes.finish(collective=collective))

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        """A gradient that is not finite at the last measured step needs no patience."""
        return self._streaks.unfinished(FindingKind.NON_FINITE)

    def _summary(self) -> str:
        if not len(self._totals):
            return f"GradientFlowMonitor measured nothing: {self._why_nothing}."
        held = [parameter for scope in self._scopes for parameter in scope.parameters]
        told = self._roster.describe_untrained(held) if self._roster is not None and held else ""
        return (
            f"GradientFlowMonitor took {len(self._history)} measurements of {self._watching}.{told}"
        )

    def _detach(self) -> None:
        self._finish_records()
        self._history.settle()
        self._totals.settle()
        if self._roster is not None:
            self._roster.release()
        if self._outputs is not None:
            self._outputs.release()
        if self._time is not None:
            self._time.release()
        self._scopes.forget()
        due = self._due
        self._start_watching()
        self._due = due  # a rank that gave up meets the others when they measure next

    def _reset(self) -> None:
        super()._reset()
        self._totals.clear()
        self._streaks = Streaks(self.patience)
        self._scopes.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was measured and found, the last step included."""
        self._finish_records()
        return super().state_dict()

    def _extra_state(self) -> dict[str, Any]:
        return {
            "totals": self._totals.state_dict(),
            "streaks": self._streaks.state_dict(),
            "counts": self._scopes.state_dict(),
            "watching": self._watching,
        }

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over a state, also during a run: what is measured now belongs to a later time."""
        self._totals.load_state_dict(state["totals"])
        self._streaks.load_state_dict(state["streaks"])
        self._scopes.load_state_dict(state["counts"])
        self._watching = state.get("watching", self._watching)
        self._latest, self._watched, self._waiting = {}, [], {}
        self._look_ahead()
