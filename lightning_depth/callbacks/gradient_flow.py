"""Is the gradient reaching the first layers?

The monitor reads gradients in ``on_before_optimizer_step``: after accumulation, reduction over
ranks and unscaling, before clipping. Everything read at one step comes to the host in one copy,
and what the optimizer did at that step comes along with the next copy, because a second one would
stop the accelerator again. Between measured steps the monitor compares two integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._clipping import read_clipping
from lightning_depth.callbacks._gradient_report import confirm, scalars_of
from lightning_depth.callbacks._gradients import GradientTable
from lightning_depth.callbacks._heatmap import draw_heatmap
from lightning_depth.callbacks._history import History
from lightning_depth.callbacks._order import ExecutionOrder
from lightning_depth.callbacks._output_gradients import OutputGradients
from lightning_depth.callbacks._pace import next_due, step_of, steps_between, writes_row
from lightning_depth.callbacks._scope import Counts, Record, Scope
from lightning_depth.callbacks._sharding import read_sharding
from lightning_depth.callbacks._sources import HIDDEN, Source, choose_source
from lightning_depth.callbacks._streaks import Streaks
from lightning_depth.callbacks._updates import StepWatcher
from lightning_depth.errors import check_choice, check_count
from lightning_depth.findings import Finding, FindingKind
from lightning_depth.layers import Granularity, Layer, select_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GradientFlowMonitor"]

_LAYER_COLUMNS = (
    "grad_rms",
    "weight_rms",
    "grad_to_weight",
    "update_to_weight",
    "output_grad_rms",
)
_TOTAL_COLUMNS = (
    "norm",
    "clipped_norm",
    "clipped_fraction",
    "shrink_per_layer",
    "shrink_low",
    "shrink_high",
    "first_to_last",
    "update_to_weight",
)
_MISSES = 3
"""Steps without any gradient after which that is said."""


_FORGOTTEN: dict[str, Any] = {
    "_layers": None,
    "_order": None,
    "_outputs": None,
    "_source": None,
}


class GradientFlowMonitor(DepthCallback):
    """Watches how the gradient fares on its way through the layers, and says where it is lost.

    For every block it keeps the RMS of the weight's gradient, the RMS of the weight, their ratio,
    and the share of itself by which the step changed the weight (You et al. 2017, 1708.03888);
    for the whole network the norm before and after clipping and the factor by which the ratio
    shrinks with every layer toward the input (Glorot and Bengio 2010). Findings are VANISHING,
    EXPLODING, NON_FINITE and NO_GRADIENT, each after it has lasted; a gradient that explodes at
    the very first step tells of the initialisation, which need not last.

    The first ``patience + 1`` steps are always measured, because a network that cannot pass a
    gradient shows it at its initialisation and may hide it later. With several optimizers each is
    measured on its own, over its own parameters.

    What a step changes is known after it: in a logged row ``update_to_weight``, and the norm after
    a clipping that is not by norm, are those of the measurement before. ``history`` and ``totals``
    have every number at its own step.

    Args:
        granularity: "block" watches the repeated blocks of the network with what comes before and
            after them; "leaf" watches every module that owns weights.
        include: Glob patterns of layers to watch; all by default.
        exclude: Glob patterns of layers to leave out; none by default.
        every_n_steps: Optimizer steps from one measurement to the next; by default the Trainer's
            ``log_every_n_steps``, so that each logged row holds a fresh measurement.
        patience: Measurements in a row after which something counts as found.
        on_finding: What happens then: "log" prints it, "warn" warns, "stop" ends training, "raise"
            raises an error, a callable is handed the finding.
        log_layers: Whether the ratio of every layer is logged beside the totals.
        update_ratio: Whether the change of the weights is measured, which keeps one copy of them.
            Without it the weights themselves are read at every tenth measurement only.
        signal: "weights" judges the gradient of the weights over the weights; "activations" also
            measures the gradient of the loss with respect to each layer's output, by hooks at
            measured steps, and judges that.
        prefix: First part of every logged key.

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
        update_ratio: bool = True,
        signal: Literal["weights", "activations"] = "weights",
        prefix: str = "grad_flow",
    ) -> None:
        super().__init__(prefix, on_finding, History(_LAYER_COLUMNS))
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        self.granularity = granularity
        self.include = include
        self.exclude = exclude
        self.every_n_steps = every_n_steps
        self.patience = check_count("patience", patience)
        self.log_layers = log_layers
        self.update_ratio = update_ratio
        self.signal = check_choice("signal", signal, ("weights", "activations"))
        self._totals = History(_TOTAL_COLUMNS)
        self._streaks = Streaks(patience)
        self._counts: dict[int, Counts] = {}
        self._start_watching()

    def _start_watching(self) -> None:
        """Set what belongs to one run and to its model, and is neither copied nor kept."""
        self._due: dict[int, int] = {}
        self._layers: list[Layer] | None = None
        self._order: ExecutionOrder | None = None
        self._outputs: OutputGradients | None = None
        self._scopes: dict[int, Scope] = {}
        self._source: Source | None = None
        self._missed = 0
        self._latest: dict[int, Callable[[], dict[str, float]]] = {}
        self._watched: list[StepWatcher] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model's parameters out of copies."""
        self._finish_records()
        tied: dict[str, Any] = {"_due": {}, "_scopes": {}, "_watched": [], "_latest": {}}
        return {**super().__getstate__(), **tied, **_FORGOTTEN}

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
        """Draw the ratio of gradient to weight by depth and step, over the median of each step.

        Returns:
            The figure and its axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return draw_heatmap(
            self.history,
            "grad_to_weight",
            "Gradient flow by depth",
            "gradient RMS / weight RMS, over the step's median",
            relative=True,
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the layers, so that a pattern that matches nothing is told before training."""
        super().on_fit_start(trainer, pl_module)
        self._layers = select_layers(pl_module, self.granularity, self.include, self.exclude)
        if self.signal == "activations":
            self._outputs = OutputGradients(self._layers)
        source = choose_source(trainer)
        self._source = source if isinstance(source, Source) else None
        if isinstance(source, str):
            rank_zero_warn(HIDDEN.format(reason=source))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the order of execution during the first step."""
        super().on_train_start(trainer, pl_module)
        if self._layers is not None and self._source is not None:
            self._order = ExecutionOrder(pl_module, self._layers)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the outputs of the layers, at steps that are due and where that is asked for."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._outputs is not None and step_of(trainer) >= min(self._due.values(), default=0):
            self._outputs.attach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Read the gradients, at steps that are due."""
        step = step_of(trainer)
        if step >= self._due.get(id(optimizer), 0):
            self._measure(trainer, pl_module, optimizer, step)

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

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what the last measured steps changed, while every rank is here to take part."""
        super().on_train_end(trainer, pl_module)
        self._finish_records(collective=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last scalars of the epoch, which other callbacks may monitor, and a figure."""
        super().on_train_epoch_end(trainer, pl_module)
        self._log(pl_module, self._scalars(), epoch_end=True)
        self._latest = {}
        self._log_figure(trainer)

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, step: int
    ) -> None:
        source = self._source
        if source is None or not source.is_ready():
            return
        scope = self._scopes.get(id(optimizer))
        if scope is None or scope.num_parameters != _num_parameters(optimizer):
            scope = self._enter(trainer, pl_module, optimizer, source)
        if step >= scope.counts.due:
            self._read(trainer, pl_module, optimizer, scope, step)
            scope.counts.due = self._next(trainer, scope, step)
        self._due[id(optimizer)] = scope.counts.due  # a resumed run waits for what is due

    def _next(self, trainer: pl.Trainer, scope: Scope, step: int) -> int:
        """The first steps are all measured, and what has no gradient is looked at again."""
        if scope.counts.measured <= self.patience or self._streaks.is_running(
            scope.key, FindingKind.NO_GRADIENT
        ):
            return step + 1
        return next_due(step, steps_between(trainer, self.every_n_steps))

    def _read(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: Optimizer,
        scope: Scope,
        step: int,
    ) -> None:
        records = scope.read(trainer, optimizer, step)
        if records is None:
            self._miss(trainer)
            return
        record, completed = records
        self._watched.append(scope.watcher)
        self._keep_record(completed)
        for finding in confirm(self._streaks, scope, record):
            self._add_finding(trainer, finding)
        self._latest[scope.place] = partial(scalars_of, scope, record, log_layers=self.log_layers)
        if writes_row(trainer, step):
            self._log(pl_module, self._scalars())

    def _enter(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: Optimizer,
        source: Source,
    ) -> Scope:
        """Meet an optimizer for the first time, or with parameters that it did not have before."""
        if (known_scope := self._scopes.pop(id(optimizer), None)) is not None:
            self._keep_record(known_scope.finish(collective=True))
            known_scope.watcher.release()
        if self._order is not None:
            self._layers, self._order = self._order.finish(), None
        known = [getattr(other, "optimizer", other) for other in trainer.optimizers]
        place = next((i for i, other in enumerate(known) if other is optimizer), len(self._scopes))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        table = GradientTable(
            pl_module,
            self._layers or [],
            parameters,
            read_sharding(
                trainer.strategy.model or pl_module, parameters, always=self._outputs is not None
            ),
            trainer.strategy.root_device,
            source,
        )
        counts = self._counts.setdefault(place, Counts())
        table.last_weights = counts.weights
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scopes[id(optimizer)] = scope = Scope(
            place,
            table,
            StepWatcher(table, self.update_ratio and source.in_place),
            counts,
            num_parameters=len(parameters),
            clipping=read_clipping(trainer, pl_module),
            limit=trainer.gradient_clip_val,
            scaler=scaler if scaler is not None and scaler.is_enabled() else None,
            outputs=self._outputs,
            siblings=max(len(known), 1),
        )
        return scope

    def _miss(self, trainer: pl.Trainer) -> None:
        """Say once that there is nothing to read, where that is so from the beginning."""
        self._missed += 1
        if self._missed == _MISSES and not len(self._totals):
            rank_zero_warn(
                f"GradientFlowMonitor found no gradient in {_MISSES} steps: either "
                f"{type(trainer.strategy).__name__} keeps them to itself or `training_step` "
                "returns None. Gradient flow is not measured until there is one."
            )

    def _keep_record(self, record: Record | None) -> None:
        if record is not None:
            self._history.defer(record.layer_columns)
            self._totals.defer(record.total_columns)

    def _scalars(self) -> dict[str, float]:
        """What the last measurement of each optimizer says, made only where it is logged."""
        return {key: value for make in self._latest.values() for key, value in make().items()}

    def _finish_records(self, *, collective: bool = False) -> None:
        for scope in self._scopes.values():
            self._keep_record(scope.finish(collective=collective))

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        """A gradient that is not finite at the last measured step needs no patience."""
        return self._streaks.unfinished(FindingKind.NON_FINITE)

    def _detach(self) -> None:
        self._finish_records()
        self._history.settle()
        self._totals.settle()
        if self._order is not None:
            self._order.release()
        if self._outputs is not None:
            self._outputs.release()
        for scope in self._scopes.values():
            scope.watcher.release()
        self._start_watching()

    def _reset(self) -> None:
        super()._reset()
        self._totals.clear()
        self._streaks = Streaks(self.patience)
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was measured and found, the last step included."""
        self._finish_records()
        return super().state_dict()

    def _extra_state(self) -> dict[str, Any]:
        return {
            "totals": self._totals.state_dict(),
            "streaks": self._streaks.state_dict(),
            "counts": {place: asdict(counts) for place, counts in self._counts.items()},
        }

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self._totals.load_state_dict(state["totals"])
        self._streaks.load_state_dict(state["streaks"])
        self._counts = {place: Counts(**counts) for place, counts in state["counts"].items()}


def _num_parameters(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
