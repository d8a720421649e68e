"""How the training error is measured: by the module's own step, by its classes, or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import lightning.pytorch as pl
from torch import nn
from torchmetrics import Metric

from lightning_depth.callbacks._class_step import ClassStep
from lightning_depth.callbacks._evaluation import (
    Evaluation,
    WeightsChangedError,
    add_ranks,
    evaluate,
    is_told_everywhere,
    told,
    total,
    untouched,
)
from lightning_depth.callbacks._training_samples import Batches
from lightning_depth.functional.classification import chance_error, chance_loss

__all__ = ["Ask", "Measured", "Record", "choose_way", "find_known", "has_own_step", "measure"]

Way = Literal["step", "classes"]
Quantity = Literal["error", "accuracy", "loss"]


@dataclass(frozen=True)
class Ask:
    """What the user said of how to measure.

    Args:
        predict: Method that returns outputs and targets of a batch.
        loss: Module that takes both and returns their mean loss.
        error: Metric that takes both.
    """

    predict: str | None = None
    loss: nn.Module | None = None
    error: Metric | None = None

    @property
    def anything(self) -> bool:
        """Whether the module's own step is not what the user wants."""
        return any(part is not None for part in (self.predict, self.loss, self.error))


@dataclass
class Measured:
    """One pass, added over all ranks.

    Args:
        values: Quantities by the key under which the step logged them.
        num_samples: Samples that went through.
        failure: Why there are none, empty where there are.
        note: Why the end of the epoch was left out, empty where it was not.
        class_counts: How often each class is the answer; empty where unknown.
    """

    values: dict[str, float] = field(default_factory=dict)
    num_samples: int = 0
    failure: str = ""
    note: str = ""
    class_counts: list[float] = field(default_factory=list)


@dataclass
class Record:
    """What is known of how a run is measured; plain containers only.

    Args:
        way: The module's own step, or classes; None where nothing was decided yet.
        columns: Column of the history for each key that the step logs.
        known: Columns that were seen to be the error, accuracy or cross-entropy of classes.
        class_counts: How often each class is the answer in the share.
        reason: Why nothing is measured; empty where something is.
        note: What else must be said of the measurement.
    """

    way: Way | None = None
    columns: dict[str, str] = field(default_factory=dict)
    known: dict[str, Quantity] = field(default_factory=dict)
    class_counts: list[float] = field(default_factory=list)
    reason: str = ""
    note: str = ""

    def chance(self, quantity: Quantity) -> float | None:
        """Return what always answering the classes' shares gives; None where it is not known.

        Args:
            quantity: What is asked for; some column must be of the same kind.
        """
        is_loss = quantity == "loss"
        asked = {name for name in self.known.values() if (name == "loss") is is_loss}
        if not asked or not sum(self.class_counts):
            return None
        if is_loss:
            return chance_loss(self.class_counts)
        error = chance_error(self.class_counts)
        return 1 - error if quantity == "accuracy" else error

    def column_of(self, *quantities: Quantity) -> str | None:
        """Return a column known to be one of these quantities, the first named preferred."""
        found = (
            column
            for quantity in quantities
            for column, known in self.known.items()
            if known == quantity
        )
        return next(found, None)


def measure(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    batches: Batches,
    ask: Ask | None = None,
    *,
    weights: bool = False,
    batch_statistics: Sequence[nn.Module] = (),
) -> Measured:
    """Run one pass and leave everything as it was; called on all ranks.

    Args:
        trainer: The Trainer.
        pl_module: The user's module.
        batches: The share, as many batches on every rank.
        ask: How classes are counted; None for the module's own step.
        weights: Whether parameters are compared and put back too.
        batch_statistics: Modules that stay in training mode.
    """
    seen, step = Evaluation(), None
    try:
        with untouched(trainer, pl_module, weights=weights):
            if ask is not None:
                step = ClassStep(pl_module, ask.predict, ask.loss, ask.error)
            evaluate(
                trainer,
                pl_module,
                batches,
                step=step,
                batch_statistics=batch_statistics,
                result=seen,
            )
    except WeightsChangedError as error:
        seen.failure = seen.failure or str(error)
    except Exception as error:
        if trainer.world_size == 1:
            raise
        seen.failure = seen.failure or told(error)
    if not seen.is_shared:  # the others wait for the word on the pass itself
        is_told_everywhere(trainer, seen)
    if is_told_everywhere(trainer, seen):
        return Measured(failure=seen.failure)
    counts: list[float] = []
    if step is not None:
        seen.entries = step.entries()
        counts = add_ranks(trainer, step.class_counts())
    values, num_samples = total(trainer, seen)
    return Measured(values, num_samples, note=seen.note, class_counts=counts)


def choose_way(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batches: Batches, ask: Ask
) -> Record:
    """Try on a few batches what measures them: the module's step, else its classes.

    Args:
        trainer: The Trainer.
        pl_module: The user's module.
        batches: A batch is enough.
        ask: What the user said.
    """
    if not len(batches):
        return Record(
            reason="no training batch went through the Trainer: a `training_step` that "
            "takes the iterator fetches them itself"
        )
    why = "the module has no `validation_step`"
    if has_own_step(pl_module) and not ask.anything:
        tried = measure(trainer, pl_module, batches, weights=True)
        if not tried.failure and tried.values:
            return Record("step")
        why = f"`validation_step` on training batches failed ({tried.failure})"
        if not tried.failure:
            why = "`validation_step` logs nothing by `self.log` on training batches"
            why += f" ({tried.note})" if tried.note else ""
    tried = measure(trainer, pl_module, batches, ask, weights=True)
    if not tried.failure:
        return Record("classes", note="" if ask.anything else f"by class error, as {why}")
    if ask.anything:
        named = f"`{ask.predict}`" if ask.predict is not None else "`module(x)`"
        return Record(reason=f"{named} does not give what is asked of it ({tried.failure})")
    return Record(
        reason=f"{why}, and it is no classification by `module(x)` ({tried.failure}): give the "
        "module a `validation_step` that logs and takes training batches, or name a method that "
        "returns outputs and targets, as `TrainingErrorMonitor(predict='my_method', loss=..., "
        "error=...)`"
    )


def has_own_step(pl_module: pl.LightningModule) -> bool:
    """Whether a module has a ``validation_step``, by its class or put on it."""
    if "validation_step" in vars(pl_module) and pl_module._compiler_ctx is None:
        return True
    function = type(pl_module).validation_step
    return not function.__module__.startswith(("lightning.pytorch.", "pytorch_lightning."))


def find_known(own: Mapping[str, float], classes: Measured) -> dict[str, Quantity]:
    """Return the columns that agree with what classes give on the same data.

    Args:
        own: What the module's step logged, by column.
        classes: What was counted.
    """
    if classes.failure or not classes.class_counts:
        return {}
    error, loss = classes.values.get("error", math.nan), classes.values.get("loss", math.nan)
    known: dict[str, Quantity] = {}
    for column, value in own.items():
        if math.isclose(value, loss, rel_tol=1e-3):
            known[column] = "loss"
        elif "acc" in column.lower() and math.isclose(value, 1 - error, abs_tol=1e-4):
            known[column] = "accuracy"
        elif "err" in column.lower() and math.isclose(value, error, abs_tol=1e-4):
            known[column] = "error"
    return known
