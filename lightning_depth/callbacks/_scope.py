"""One optimizer of a run: how it is read, what its last record still lacks, and its counts."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from lightning_depth.callbacks._clipping import Clipping, norm_after, read_clipping
from lightning_depth.callbacks._flow import read_flow
from lightning_depth.callbacks._gradients import GradientTable
from lightning_depth.callbacks._histograms import count_gradients
from lightning_depth.callbacks._missing import judge_run
from lightning_depth.callbacks._norms import HostNorms, Norms
from lightning_depth.callbacks._optimizers import name_optimizers, parameters_of
from lightning_depth.callbacks._output_gradients import OutputGradients
from lightning_depth.callbacks._reading import Reading, ratio
from lightning_depth.callbacks._record import Counts, Record
from lightning_depth.callbacks._roster import are_same
from lightning_depth.callbacks._sharding import read_sharding
from lightning_depth.callbacks._sources import Source
from lightning_depth.callbacks._through_time import PROFILE, ThroughTime
from lightning_depth.callbacks._updates import StepWatcher
from lightning_depth.findings import Finding
from lightning_depth.layers import Layer

__all__ = ["Counts", "Record", "Scope", "known_optimizers", "name_of", "open_scope"]


_WEIGHTS_EVERY = 10
"""Measurements from one reading of the weights to the next, where their change is not measured."""


@dataclass
class Scope:
    """One optimizer of a run.

    Args:
        name: What the optimizer is called.
        optimizer: The optimizer, which is not kept alive: its state is as large as the network.
        parameters: Those that it had when it was met; some are added or exchanged later.
        table: Its parameters.
        watcher: Measures what its steps change.
        counts: Of this optimizer, also from before a resumption.
        source: Where gradients and weights are found.
        clipping: What happens to the gradient after it is read.
        limit: ``gradient_clip_val`` of the Trainer.
        scaler: GradScaler of the run, if there is one.
        outputs: Records the gradients of the layers' outputs, if they are asked for.
        siblings: How many optimizers the run has.
        is_listed: Whether this is one of them; strategies may step others.
        executed: Layers that are known to have run at the first step.
        time: Records the gradients through time, if there may be any.
    """

    name: str
    optimizer: weakref.ref[Any]
    parameters: Sequence[Parameter]
    table: GradientTable
    watcher: StepWatcher
    counts: Counts
    source: Source
    clipping: Clipping = Clipping.NONE
    limit: float | None = None
    scaler: Any = None
    outputs: OutputGradients | None = None
    siblings: int = 1
    is_listed: bool = True
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
        return f"{self.name}/"

    def is_of(self, optimizer: Any) -> bool:
        """Return whether this optimizer was met, and with these parameters."""
        return self.optimizer() is optimizer and are_same(parameters_of(optimizer), self.parameters)

    def unscales(self) -> bool:
        """Return whether gradients still carry the loss scale when they are read."""
        optimizer = self.optimizer()
        return self.scaler is not None and bool(
            getattr(optimizer, "_step_supports_amp_scaling", False)
        )

    def factor_on_gradients(self) -> float:
        """Return what the gradients of the last record must be divided by."""
        if self.record is None or not self.unscales():
            return 1.0
        return self.record.flow.reading.loss_scale

    def count_gradients(
        self, layers: Sequence[Layer], *, here: bool
    ) -> dict[str, torch.Tensor | None]:
        """Return counts for a histogram of each layer's gradient, on the device.

        Args:
            layers: The layers of the model.
            here: Whether this rank counts; reading may take part of every rank all the same.
        """
        return count_gradients(layers, self.parameters, self.source.gradient, here=here)

    def read(self, trainer: pl.Trainer, step: int) -> tuple[Record, Record | None] | None:
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
            unscale=self.unscales(),
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
            optimizer=self.name,
            step=step,
            epoch=trainer.current_epoch,
            flow=read_flow(reading, self.counts.presence.unsteady()),
            skipped=skipped,
            clipped_norm=norm_after(self.clipping, reading.norm, self.limit, None),
            clipped_fraction=math.nan,
            updates=np.full(len(reading.watched), np.nan),
        )
        if not skipped and (optimizer := self.optimizer()) is not None:
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
        return judge_run(self.counts.presence, self.reading, patience, self.executed)

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


def known_optimizers(trainer: pl.Trainer) -> list[Any]:
    """Return the optimizers of a run without what Lightning wraps around them."""
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]


def name_of(trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> str:
    """Return what an optimizer is called in this run."""
    known = known_optimizers(trainer)
    names = name_optimizers(pl_module, known)
    pairs = zip(known, names, strict=True)
    return next((name for one, name in pairs if one is optimizer), type(optimizer).__name__)


def open_scope(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    optimizer: Optimizer,
    counts: Counts,
    *,
    name: str,
    layers: Sequence[Layer],
    source: Source,
    outputs: OutputGradients | None,
    update_ratio: bool,
    executed: frozenset[str] = frozenset(),
    time: ThroughTime | None = None,
) -> Scope:
    """Return the scope of an optimizer that is met for the first time, or that has changed.

    Args:
        trainer: It steps the optimizer.
        pl_module: The module whose layers are watched.
        optimizer: The optimizer.
        counts: Of this optimizer, also from before a resumption.
        name: What it is called.
        layers: The layers of the module.
        source: Where gradients and weights are found.
        outputs: Records the gradients of the layers' outputs, if they are asked for.
        update_ratio: Whether the change of the weights is measured.
        executed: Layers that are known to have run.
        time: Records the gradients through time, if there may be any.
    """
    parameters = parameters_of(optimizer)
    sharding = read_sharding(
        trainer.strategy.model or pl_module, parameters, always=outputs is not None
    )
    device = trainer.strategy.root_device
    table = GradientTable(pl_module, layers, parameters, sharding, device, source)
    table.last_weights = counts.weights
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return Scope(
        name,
        weakref.ref(optimizer),
        parameters,
        table,
        StepWatcher(table, update_ratio and source.in_place),
        counts,
        source,
        clipping=read_clipping(trainer, pl_module),
        limit=trainer.gradient_clip_val,
        scaler=scaler if scaler is not None and scaler.is_enabled() else None,
        outputs=outputs,
        siblings=max(len(trainer.optimizers), 1),
        is_listed=any(one is optimizer for one in known_optimizers(trainer)),
        executed=executed,
        time=time,
    )
