"""When the best weights are copied, from which module, and into which they come back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning.pytorch as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_depth.callbacks._best_weights import BestWeights, Place
from lightning_depth.callbacks._logging import run_folder
from lightning_depth.errors import ConfigurationError

__all__ = ["WeightKeeper", "changes_before_check"]


@dataclass
class WeightKeeper:
    """Keeps the best weights of a run, those that were measured, and gives them back.

    Args:
        place: Where the copy is held.
        best: The copy.
        candidate: A copy from validation that the check has yet to judge, where the weights
            change between the two.
        folder: Where files go, the same on all ranks.
        run: Part of the names of files, so that runs in one folder keep apart.
    """

    place: Place
    best: BestWeights = field(init=False)
    candidate: BestWeights | None = None
    folder: str = ""
    run: str = ""

    def __post_init__(self) -> None:
        self.best = BestWeights(self.place)

    def start(self, trainer: pl.Trainer) -> None:
        """Refuse what cannot be copied.

        Args:
            trainer: The Trainer, with the module as the strategy has set it up.
        """
        model = trainer.strategy.model
        assert model is not None
        hidden = None
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            hidden = "FSDP1"
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            hidden = "DeepSpeed ZeRO stage 3"
        if hidden:
            raise ConfigurationError(
                f"`restore_best_weights` cannot copy weights that {hidden} has cut up: restore "
                "from `ModelCheckpoint(monitor=...)` or shard with `ModelParallelStrategy` (FSDP2)."
            )

    def overwrites(self, trainer: pl.Trainer) -> str | None:
        """Return the class of a callback whose average would be lost, None where there is none.

        The average of ``StochasticWeightAveraging`` is written into the module when training ends;
        that of ``WeightAveraging`` is what validation measures, and is what is kept.

        Args:
            trainer: The Trainer.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        for callback in callbacks:
            if hasattr(callback, "_average_model") and not hasattr(callback, "_swap_models"):
                return type(callback).__name__
        return None

    def look_ahead(self, trainer: pl.Trainer, pl_module: pl.LightningModule, monitor: str) -> None:
        """Copy what a validation has just measured, for a check that comes later.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
            monitor: Key of the metric, for the name of the file.
        """
        if self.candidate is not None:
            self.candidate.discard()
        self.candidate = BestWeights(self.place)
        module = _measured(trainer, pl_module, from_validation=True)
        step = trainer.global_step
        self.candidate.capture(module, step, self._path(trainer, monitor, step))

    def keep(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        monitor: str,
        from_validation: bool,
    ) -> None:
        """Copy the weights that a check has found to be the best.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
            monitor: Key of the metric, for the name of the file.
            from_validation: Whether validation measured it, on averaged weights where there are
                any.
        """
        if self.candidate is not None:
            self.candidate.follow(self.best)
            self.best, self.candidate = self.candidate, None
            return
        module = _measured(trainer, pl_module, from_validation)
        step = trainer.global_step
        self.best.capture(module, step, self._path(trainer, monitor, step))

    def forget_candidate(self) -> None:
        """Let go of a copy that the check did not take."""
        if self.candidate is not None:
            self.candidate.discard()
            self.candidate = None

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best weights into the module, and into averages that would overwrite it.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
        """
        self.best.apply(pl_module, *_averages(trainer))

    def to_state(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what a checkpoint keeps; called on every rank.

        Args:
            trainer: The Trainer.
            pl_module: The user's module.
        """
        state = {**self.best.to_state(pl_module), "folder": self.folder, "run": self.run}
        if self.candidate is not None:
            waiting = {**self.candidate.to_state(pl_module), "step": self.candidate.step}
            state["candidate"] = waiting
        return state

    def from_state(self, state: Mapping[str, Any] | None, step: int | None) -> None:
        """Take over what ``to_state`` returned, in place of all that is held.

        Args:
            state: Part of a checkpoint; None where there is none, and what is held is let go
                unless it is what the rest of the state speaks of.
            step: Step of the best weights, None where there are none.
        """
        self.forget_candidate()
        if state is not None:
            self.best.from_state(state)
            self.folder, self.run = state["folder"], state["run"]
            if waiting := state.get("candidate"):
                self.candidate = BestWeights(self.place, step=waiting["step"])
                self.candidate.from_state(waiting)
        elif step != self.best.step:
            self.best.discard()
        self.best.step = step or 0

    def _path(self, trainer: pl.Trainer, monitor: str, step: int) -> Path | None:
        """Return a file name, the same on all ranks; the first call is a collective."""
        if self.place != "disk":
            return None
        if not self.run:
            folder = run_folder(trainer) or Path(trainer.default_root_dir)
            names = (str(folder.absolute() / "best_weights"), uuid4().hex[:8])
            self.folder, self.run = trainer.strategy.broadcast(names)
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", monitor)[:60]
        return Path(self.folder) / f"{safe}-{self.run}-step{step}"


def _averages(trainer: pl.Trainer) -> list[nn.Module]:
    """Averages that other callbacks keep and copy into the module when training ends."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    averages = [getattr(callback, "_average_model", None) for callback in callbacks]
    return [
        average.module if isinstance(average, AveragedModel) else average
        for average in averages
        if isinstance(average, nn.Module)
    ]


def _measured(
    trainer: pl.Trainer, pl_module: pl.LightningModule, from_validation: bool
) -> nn.Module:
    """Return the module whose weights the metric was measured on.

    ``WeightAveraging`` swaps its average in for validation and out again before the check.
    """
    if from_validation:
        for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by a connector
            average = getattr(callback, "_average_model", None)
            if hasattr(callback, "_swap_models") and average is not None:
                return average.module  # type: ignore[no-any-return]
    return pl_module


def changes_before_check(trainer: pl.Trainer) -> bool:
    """Whether weights may change between a validation and the end of its epoch."""
    return not trainer.is_last_batch or bool(_averages(trainer))
