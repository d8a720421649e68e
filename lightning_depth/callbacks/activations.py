"""Do the units of a network take part, and does the signal reach the last layers?

Hooks are put on for the forward pass of a measured step and taken off before its backward pass,
so that between measured steps no hook runs and recomputed activations are not counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_depth.callbacks._activity import Activity, Recorder
from lightning_depth.callbacks._activity_figure import draw_activity
from lightning_depth.callbacks._activity_findings import (
    DEFAULT_TAU,
    LayerActivity,
    Window,
    judge_activity,
    read_layers,
)
from lightning_depth.callbacks._activity_host import bring
from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._histograms import (
    OutputHistograms,
    bring_histograms,
    send_histograms,
    wants_histograms,
)
from lightning_depth.callbacks._history import History
from lightning_depth.callbacks._pace import Pace, step_of, writes_row
from lightning_depth.callbacks._roster import Roster
from lightning_depth.callbacks._streaks import Streaks
from lightning_depth.errors import check_count, check_real
from lightning_depth.layers import Granularity, Layer, order_by_execution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ActivationMonitor"]

_COLUMNS = ("rms", "dead", "dormant", "saturated", "effective_rank", "variety")
_COMPILED = "compiled, and hooks do not run in compiled code"
_NEVER_RAN = "no call of it was seen"
_MOST_NAMES = 3


class ActivationMonitor(DepthCallback):
    """Watches units that died, activations at their bounds, and signals that lost their variety.

    A unit is dead if its output was the same for at least ``min_samples`` samples although its
    input was not, as a ReLU's is that is never above zero (Lu et al. 2019, 1903.06733), however
    many zeros the layer has; what the unit does decides, not the name of its activation. It is
    dormant if its mean output, or its range where outputs have both signs, is at most ``tau`` of
    the layer's average (Sokar et al. 2023, 2302.12902). Saturation counts only for bounded
    activations, against their own bounds. The RMS and the centered effective rank of each layer's
    output show how the signal fares with depth; the rank is that of the first 16 samples of the
    batch, so it is at most 15. Of packed sequences it is that of the last time step that 16
    samples reach. A layer has collapsed if its output has lost the variety that its input has; the
    logged lowest rank is that of the layers whose input and width allow more than one direction.
    Findings are DEAD, SATURATED and COLLAPSED, each after it has lasted.

    Args:
        granularity: "block" watches the repeated blocks of the network with what comes before,
            between and after them; "leaf" watches every module that owns weights.
        include: Glob patterns of layers to watch; all by default.
        exclude: Glob patterns of layers to leave out; none by default.
        every_n_steps: Optimizer steps from one measurement to the next; by default the Trainer's
            ``log_every_n_steps``.
        patience: Measurements in a row after which something counts as found.
        on_finding: What happens then: "log" prints it, "warn" warns, "stop" ends training, "raise"
            raises an error, a callable is handed the finding.
        log_layers: Whether the share of dead units of every layer is logged beside the totals.
        log_histograms: Whether the outputs of every layer go to TensorBoard, W&B and Comet as
            histograms, at measured steps, for one more copy from the device; they are those of
            rank zero, and of a layer that runs several times those of its first run.
        min_samples: Samples over which a unit must be silent to be dead; the measured batches are
            put together until they hold as many.
        tau: Share of its layer's average output at or below which a unit is dormant.
        prefix: First part of every logged key.
        figures: Whether figures are logged, or written where no logger takes them: at most one an
            epoch and for at most a hundredth of the time, and one at the end.

    Example:
        >>> ActivationMonitor(min_samples=1024).tau
        0.025
    """

    def __init__(
        self,
        granularity: Granularity = "block",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        *,
        every_n_steps: int | None = None,
        patience: int = 3,
        on_finding: OnFinding = "warn",
        log_layers: bool = False,
        log_histograms: bool = False,
        min_samples: int = 512,
        tau: float = DEFAULT_TAU,
        prefix: str = "activations",
        figures: bool = True,
    ) -> None:
        super().__init__(prefix, on_finding, History(_COLUMNS), figures=figures)
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        self.granularity = granularity
        self.include = include
        self.exclude = exclude
        self.every_n_steps = every_n_steps
        self.patience = check_count("patience", patience)
        self.log_layers = log_layers
        self.log_histograms = log_histograms
        self.min_samples = check_count("min_samples", min_samples)
        self.tau = check_real("tau", tau, 0.0)
        self._streaks = Streaks(patience)
        self._window = Window(min_samples)
        self._pace = Pace(every_n_steps)
        self._measured = 0
        self._due = 0
        self._wake = 0
        self._epoch_entered = self._is_blind = False
        self._step = self._next = 0
        self._roster: Roster | None = None
        self._layers: list[Layer] = []
        self._ordered = False
        self._paused = False
        self._recorder: Recorder | None = None
        self._activity: Activity | None = None
        self._histograms: OutputHistograms | None = None
        self._latest: list[LayerActivity] = []
        self._blank: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out of copies."""
        tied: dict[str, Any] = {"_layers": [], "_latest": [], "_recorder": None, "_activity": None}
        return {**super().__getstate__(), **tied, "_roster": None, "_histograms": None}

    def plot(self) -> tuple[Figure, Axes]:
        """Draw RMS, dead units, saturated outputs and effective rank by depth and step.

        Returns:
            The figure and its axes, one a quantity that was measured.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure, axes = draw_activity(self.history)
        return figure, axes  # type: ignore[return-value] # as the probe does: several

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the layers, so that a pattern that matches nothing is told before training."""
        super().on_fit_start(trainer, pl_module)
        self._roster = Roster(pl_module, self.granularity, self.include, self.exclude)
        self._layers, self._ordered = self._roster.layers, False
        self._recorder = Recorder(pl_module, self._layers)
        self._blank = self._unseen(self._recorder)
        self._is_blind = self._recorder.is_blind or _is_compiled_whole(pl_module)
        if wants_histograms(trainer, self, asked=self.log_histograms):
            self._histograms = OutputHistograms(self._recorder.layers)
        if self._is_blind:
            self._blank = dict.fromkeys(self._blank, _COMPILED)
            self._recorder = None
            rank_zero_warn(
                "ActivationMonitor measures nothing in this run because the model is compiled, "
                "and hooks do not run in compiled code; GradientFlowMonitor does not need them."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look ahead at the first batch, also where a run goes on in the middle of an epoch."""
        super().on_train_start(trainer, pl_module)
        self._look_ahead()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look ahead at the first batch, when the length of the epoch is known."""
        super().on_train_epoch_start(trainer, pl_module)
        self._look_ahead()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the hooks on, at steps that are due."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if step_of(trainer) >= self._wake:
            self._prepare(trainer, pl_module, batch)

    def _unseen(self, recorder: Recorder) -> dict[str, str]:
        """Why each layer is not measured, as long as none of its outputs was read."""
        return {
            layer.name: _COMPILED if layer.name in recorder.hidden else _NEVER_RAN
            for layer in self._layers
            if layer.has_output
        }

    def _look_ahead(self) -> None:
        self._wake, self._epoch_entered = 0, False

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Find out when the next measurement is due, and record if it is now."""
        if self._recorder is None:
            return
        if not self._epoch_entered:
            self._epoch_entered = True
            self._due = min(self._due, self._pace.enter_epoch(trainer))
        step, self._wake = step_of(trainer), self._due
        if step >= self._due:
            self._refresh(pl_module)
            self._step, first = step, self._measured < self.patience
            self._next = step + 1 if first else self._pace.after(trainer, step)
            self._recorder.attach(batch, _loader_batch_size(trainer))
            if self._histograms is not None:
                self._histograms.attach()

    def _refresh(self, pl_module: pl.LightningModule) -> None:
        """Record the layers that there are now; units of others are no longer waited for."""
        if self._roster is None or (gone := self._roster.refresh()) is None:
            return
        self._streaks.forget(gone)
        self._window = Window(self.min_samples)
        self._layers, self._ordered = self._roster.layers, False
        self._recorder = Recorder(pl_module, self._layers)
        self._blank = self._unseen(self._recorder)
        if self._histograms is not None:
            self._histograms = OutputHistograms(self._recorder.layers)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Take the hooks off before activations are recomputed.

        In manual optimization other networks may run after it, so there it is a pause.
        """
        super().on_before_backward(trainer, pl_module, loss)
        if self._histograms is not None:
            self._histograms.pause()
        if pl_module.automatic_optimization:
            self._take()
        elif self._recorder is not None and self._recorder.is_attached:
            self._recorder.pause()
            self._paused = True

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where manual optimization was interrupted by a backward pass."""
        super().on_after_backward(trainer, pl_module)
        if self._paused and self._recorder is not None:
            self._paused = False
            self._recorder.resume()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Read what was recorded."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._take()
        activity, self._activity = self._activity, None
        if activity is not None:
            self._measure(trainer, pl_module, activity)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last scalars of the epoch, which other callbacks may monitor, and a figure."""
        super().on_train_epoch_end(trainer, pl_module)
        self._log(pl_module, self._scalars(), epoch_end=True)
        self._latest = []
        self._log_figure(trainer)

    def _meets(self, trainer: pl.Trainer, hook: str) -> bool:
        """The ranks also meet at the end of each measured step."""
        due = hook == "on_train_batch_end" and step_of(trainer) >= self._due
        return (due and not self._is_blind) or super()._meets(trainer, hook)

    def _take(self) -> None:
        if self._recorder is not None and self._recorder.is_attached:
            self._activity = self._recorder.detach()

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, activity: Activity
    ) -> None:
        step, self._due = self._step, self._next
        self._measured += 1
        if not self._ordered:
            self._layers, self._ordered = order_by_execution(self._layers, activity.executed), True
        if not self._agree(trainer):
            return
        brought = bring(activity, ranks=trainer.world_size, device=pl_module.device)
        self._blank.update(activity.unread)
        for name in brought.rms:
            self._blank.pop(name, None)
        if self._histograms is not None:
            histograms = bring_histograms(self._histograms.take())
            send_histograms(trainer, f"{self._prefix}/outputs", histograms, step)
        self._window.add(brought)
        layers = read_layers(self._layers, brought, self._window, self.tau)
        if self._recorder is not None:
            self._recorder.settled -= {layer.layer.name for layer in layers}
            self._recorder.settled |= {layer.layer.name for layer in layers if layer.is_settled}
        if layers:
            self._history.defer(partial(_columns, step, trainer.current_epoch, layers))
        for finding in self._streaks.confirm("", step, judge_activity(layers)):
            self._add_finding(trainer, finding)
        self._latest = layers
        if writes_row(trainer, step):
            self._log(pl_module, self._scalars())

    def _summary(self) -> str:
        named = _name_blank(self._blank)
        if not self._measured:
            return f"ActivationMonitor measured nothing{f': {named}' if named else ''}."
        taken = f"ActivationMonitor took {self._measured} measurements."
        layers = "1 layer is" if len(self._blank) == 1 else f"{len(self._blank)} layers are"
        return f"{taken} {layers} not measured: {named}." if named else taken

    def _scalars(self) -> dict[str, float]:
        """Return what is logged: the worst layer of each kind, and every layer if asked for."""
        layers = self._latest
        columns = {
            "dead": [layer.dead for layer in layers],
            "dormant": [layer.dormant for layer in layers],
            "saturated": [layer.saturated for layer in layers],
            "effective_rank": [-layer.rank for layer in layers if layer.can_vary],
        }
        scalars = {
            key: abs(max(known))
            for key, values in columns.items()
            if (known := [value for value in values if math.isfinite(value)])
        }
        if self.log_layers:
            scalars |= {
                f"dead/{layer.layer.name}": layer.dead
                for layer in layers
                if math.isfinite(layer.dead)
            }
        return scalars

    def _detach(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()
        if self._histograms is not None:
            self._histograms.take()
        self._history.settle()
        self._paused = False
        self._recorder, self._activity, self._layers = None, None, []
        self._roster = self._histograms = None
        self._look_ahead()

    def _reset(self) -> None:
        super()._reset()
        self._streaks = Streaks(self.patience)
        self._window = Window(self.min_samples)
        self._measured = self._due = 0
        self._latest = []

    def _extra_state(self) -> dict[str, Any]:
        return {
            "streaks": self._streaks.state_dict(),
            "window": self._window.state_dict(),
            "measured": self._measured,
            "due": self._due,
        }

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        self._streaks.load_state_dict(state["streaks"])
        self._window.load_state_dict(state["window"])
        self._measured, self._due = state["measured"], state["due"]
        self._latest = []
        self._look_ahead()


def _columns(step: int, epoch: int, layers: Sequence[LayerActivity]) -> dict[str, Any]:
    """One record of the history."""
    rows = [layer.row() for layer in layers]
    return {
        "step": step,
        "epoch": epoch,
        **{name: tuple(row[name] for row in rows) for name in rows[0]},
    }


def _name_blank(blank: Mapping[str, str]) -> str:
    """The layers that are not measured, each with its reason; the first few of each reason."""
    parts = []
    for reason in dict.fromkeys(blank.values()):
        names = [name for name in blank if blank[name] == reason]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        parts.append(f"{', '.join(names[:_MOST_NAMES])}{more} ({reason})")
    return "; ".join(parts)


def _loader_batch_size(trainer: pl.Trainer) -> int | None:
    """Samples of a batch by the account of the loader, None where it does not tell."""
    size = getattr(trainer.train_dataloader, "batch_size", None)
    return size if isinstance(size, int) else None


def _is_compiled_whole(pl_module: pl.LightningModule) -> bool:
    return getattr(pl_module, "_compiler_ctx", None) is not None
