"""One optimizer of a run: how it is read, what its last record still lacks, and its counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from lightning_depth.callbacks._clipping import Clipping, norm_after
from lightning_depth.callbacks._flow import Flow, read_flow
from lightning_depth.callbacks._gradients import GradientTable
from lightning_depth.callbacks._missing import judge_run
from lightning_depth.callbacks._norms import HostNorms, Norms
from lightning_depth.callbacks._output_gradients import OutputGradients
from lightning_depth.callbacks._presence import Presence
from lightning_depth.callbacks._reading import Column, Reading, ratio
from lightning_depth.callbacks._through_time import PROFILE, ThroughTime
from lightning_depth.callbacks._updates import StepWatcher
from lightning_depth.findings import Finding

__all__ = ["Counts", "Record", "Scope"]


_WEIGHTS_EVERY = 10
"""Measurements from one reading of the weights to the next, where their change is not measured."""


def middle(values: list[float]) -> float:
    """Return the median of what is finite, not-a-number where nothing is."""
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else math.nan


@dataclass
class Counts:
    """How many steps of an optimizer were measured, and what became of them."""

    measured: int = 0
    skipped: int = 0
    taken: int = 0
    """Steps that were not skipped and whose record is complete."""
    clipped: int = 0
    due: int = 0
    """Step from which on the next measurement is taken."""
    updates: list[float] | None = None
    """What the last complete record changed, layer by layer."""
    clipped_norm: float = math.nan
    """Of the last complete record."""
    weights: list[float] | None = None
    """Norms of the weights when they were last read, parameter by parameter."""
    lost_in_time: float = 0.0
    """Largest fall of the gradient through time, in powers of ten."""
    presence: Presence = field(default_factory=Presence)

    def __post_init__(self) -> None:
        """Take plain containers, as a checkpoint has them."""
        if isinstance(self.presence, dict):
            self.presence = Presence(**self.presence)

    @property
    def update_to_weight(self) -> float:
        """Median over the layers of what the last complete record changed."""
        return middle(self.updates or [])

    @property
    def clipped_fraction(self) -> float:
        """Share of the measured steps at which clipping made the gradient smaller."""
        return self.clipped / self.taken if self.taken else 0.0


@dataclass
class Record:
    """One measured step; what the step changed is known later and filled in."""

    place: int
    step: int
    epoch: int
    flow: Flow
    skipped: bool
    clipped_norm: float
    clipped_fraction: float
    updates: Column
    """For each layer the RMS of its change over the RMS of its weight."""

    @property
    def update_to_weight(self) -> float:
        """Median over the layers of what the step changed."""
        return middle(self.updates.tolist())

    def layer_columns(self) -> dict[str, Any]:
        """Return the columns of ``history``."""
        reading = self.flow.reading
        return {
            "step": self.step,
            "epoch": self.epoch,
            "optimizer": self.place,
            "layer": reading.watched.names,
            "depth": reading.watched.depths,
            "grad_rms": reading.grad_rms,
            "weight_rms": reading.weight_rms,
            "grad_to_weight": reading.grad_to_weight,
            "update_to_weight": self.updates,
            "output_grad_rms": math.nan if reading.output_rms is None else reading.output_rms,
            "nonfinite": reading.bad_counts,
        }

    def total_columns(self) -> dict[str, Any]:
        """Return the columns of ``totals``."""
        trend = self.flow.trend
        return {
            "step": self.step,
            "epoch": self.epoch,
            "optimizer": self.place,
            "norm": self.flow.reading.norm,
            "clipped_norm": self.clipped_norm,
            "clipped_fraction": self.clipped_fraction,
            "shrink_per_layer": trend.shrink_per_layer,
            "shrink_low": trend.low,
            "shrink_high": trend.high,
            "first_to_last": trend.first_to_last,
            "update_to_weight": self.update_to_weight,
            "nonfinite": self.flow.reading.nonfinite,
            "skipped": self.skipped,
        }


@dataclass
class Scope:
    """One optimizer of a run.

    Args:
        place: Its place among the optimizers.
        table: Its parameters.
        watcher: Measures what its steps change.
        counts: Of this optimizer, also from before a resumption.
        num_parameters: How many it had when it was met; some are added later.
        clipping: What happens to the gradient after it is read.
        limit: ``gradient_clip_val`` of the Trainer.
        scaler: GradScaler of the run, if there is one.
        outputs: Records the gradients of the layers' outputs, if they are asked for.
        siblings: How many optimizers the run has.
        executed: Layers that are known to have run at the first step.
        time: Records the gradients through time, if there may be any.
    """

    place: int
    table: GradientTable
    watcher: StepWatcher
    counts: Counts
    num_parameters: int = 0
    clipping: Clipping = Clipping.NONE
    limit: float | None = None
    scaler: Any = None
    outputs: OutputGradients | None = None
    siblings: int = 1
    executed: frozenset[str] = frozenset()
    time: ThroughTime | None = None
    record: Record | None = field(default=None, init=False)
    reading: Reading | None = field(default=None, init=False)
    """The last one."""
    profiles: dict[str, list[float]] = field(default_factory=dict, init=False)
    """What the last measurement says of each module that runs over time."""
    pending: list[tuple[str, Parameter]] = field(default_factory=list, init=False)
    """Parameters that never had a gradient, which are looked at between measurements too."""

    @property
    def key(self) -> str:
        """What tells the findings of this optimizer from those of others."""
        return f"{self.place}/"

    def read(
        self, trainer: pl.Trainer, optimizer: Optimizer, step: int
    ) -> tuple[Record, Record | None] | None:
        """Read the gradients of a step that is about to be taken, and complete the last record.

        Returns:
            The new record, and the last one if it was incomplete; None where there is no gradient.
        """
        earlier, taken = Norms(self.table.device), self.watcher.take()
        start = len(earlier.absorb(taken)) if taken is not None else 0
        numels: dict[str, int] = {}
        timed: list[str] = []
        if self.time is not None:
            timed, profiles = self.time.take(self.table.device, self.table.names)
            earlier.absorb(profiles)
        if self.outputs is not None:
            norms, numels = self.outputs.take(self.table.device, self.table.layers.names)
            earlier.absorb(norms)
        reuse = not self.watcher.measures_updates and self.counts.measured % _WEIGHTS_EVERY != 0
        reading = self.table.read(
            None if reuse else self.watcher.keep,
            scale=getattr(self.scaler, "_scale", None),
            earlier=earlier,
            unscale=self.scaler is not None
            and bool(getattr(optimizer, "_step_supports_amp_scaling", False)),
        )
        if reading is None:
            self.watcher.put_back(taken)
            return None
        if not reuse:
            self.counts.weights = self.table.last_weights
        completed = self.complete(reading.earlier[range(start)])
        ends = [start, *(start + (place + 1) * PROFILE for place in range(len(timed)))]
        self.profiles = {
            name: reading.earlier[range(begin, end)].values.tolist()
            for name, (begin, end) in zip(timed, pairwise(ends), strict=True)
        }
        if self.outputs is not None:
            outputs = reading.earlier[range(ends[-1], len(reading.earlier))]
            reading = self.table.with_outputs(reading, self.outputs.names, outputs, numels)
        self.reading = reading
        skipped = self.scaler is not None and not math.isfinite(reading.norm)
        self.counts.measured += 1
        self.counts.skipped += skipped
        self.record = Record(
            place=self.place,
            step=step,
            epoch=trainer.current_epoch,
            flow=read_flow(reading, self.counts.presence.unsteady()),
            skipped=skipped,
            clipped_norm=norm_after(self.clipping, reading.norm, self.limit, None),
            clipped_fraction=math.nan,
            updates=np.full(len(reading.watched), np.nan),
        )
        if not skipped:
            self.watcher.watch(optimizer, clipped=self.clipping is Clipping.OTHER)
        return self.record, completed

    def wait(self) -> None:
        """Look at every step at what never had a gradient, where that takes no other rank."""
        never = () if self.table.is_sharded else self.counts.presence.never(1)
        self.pending = self.table.find(never) if never else []

    def look(self) -> None:
        """Note which of the parameters that never had a gradient have one now."""
        for name, parameter in self.pending:
            if parameter.requires_grad:
                self.counts.presence.look(name, given=parameter.grad is not None)
        self.pending = [(name, p) for name, p in self.pending if p.grad is None]

    def conclude(self, patience: int) -> list[Finding]:
        """Return what the whole run says of parameters without a gradient.

        Args:
            patience: Measurements that are needed at least.
        """
        if self.reading is None:
            return []
        return judge_run(self.counts.presence, self.reading, patience)

    def finish(self, *, collective: bool) -> Record | None:
        """Complete the last record now, in a copy of its own.

        Args:
            collective: Whether every rank is here; where parameters are sharded and it is not,
                what the step changed stays unknown.
        """
        if self.record is None:
            return None
        queued = self.watcher.take()
        if queued is None or (self.table.is_sharded and not collective):
            return self.complete(None)
        return self.complete(self.table.read_queued(queued))

    def complete(self, values: HostNorms | None) -> Record | None:
        """Fill in what the step of the last record changed, and return that record."""
        record, self.record = self.record, None
        if record is None:
            return None
        changes, after = self.watcher.split(values)
        if changes is not None:
            record.updates = ratio(changes, record.flow.reading.weight_rms)
        norm = record.flow.reading.norm
        if after is not None:
            record.clipped_norm = norm_after(self.clipping, norm, self.limit, after)
        self.counts.taken += not record.skipped
        self.counts.clipped += record.clipped_norm < norm * (1 - 1e-5)
        record.clipped_fraction = self.counts.clipped_fraction
        self.counts.updates = record.updates.tolist()
        self.counts.clipped_norm = record.clipped_norm
        return record
