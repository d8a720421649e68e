"""At which steps a monitor measures.

Measured steps may hold collectives, so everything here follows from counts of batches and steps,
which are the same on every rank.
"""

from __future__ import annotations

import math

import lightning.pytorch as pl

__all__ = ["Pace", "next_due", "step_of", "writes_row"]

_PACE = 50
"""Steps between measurements where the Trainer logs nothing."""


class Pace:
    """A measurement at every n-th step, at least one in every epoch, and one at the last step.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; by default those from row
            to row of the Trainer.
    """

    def __init__(self, every_n_steps: int | None) -> None:
        self._every_n_steps = every_n_steps
        self._end: float = math.inf
        self._is_final = False

    def enter_epoch(self, trainer: pl.Trainer) -> int:
        """Return the step by which the epoch must have been measured; for its first batch.

        That is its last step. Where nobody knows which one will be the last, or in manual
        optimization, where that batch need not step every optimizer, it is the next.
        """
        now = step_of(trainer)
        self._end = now + _steps_left_in_epoch(trainer) - 1
        epochs = trainer.max_epochs
        self._is_final = epochs not in (None, -1) and trainer.current_epoch + 1 >= epochs
        module = trainer.lightning_module
        if self._end == math.inf or not module.automatic_optimization:
            return now
        return int(min(self._end, _last_by_max_steps(trainer)))

    def after(self, trainer: pl.Trainer, step: int) -> int:
        """Return the step at which the next measurement is due, after one that is taken now.

        Args:
            trainer: It is at this step, which it has not yet counted.
            step: What ``step_of`` said when the measurement began.
        """
        every = self._every_n_steps or int(getattr(trainer, "log_every_n_steps", 0)) or _PACE
        due = next_due(step, every)
        last = min(_last_by_max_steps(trainer), self._end if self._is_final else math.inf)
        return int(min(due, last)) if last > step else due


def step_of(trainer: pl.Trainer) -> int:
    """Return the step on the axis on which Lightning logs.

    ``trainer.global_step`` counts the steps of every optimizer.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def next_due(step: int, pace: int) -> int:
    """Return the next step at whose end Lightning writes a row.

    Example:
        >>> [next_due(step, 5) for step in (3, 4, 5)]
        [4, 9, 9]
    """
    return (step + 1) // pace * pace + pace - 1


def writes_row(trainer: pl.Trainer, step: int) -> bool:
    """Return whether Lightning hands the scalars of a step to the loggers.

    Logging a scalar costs more than measuring a block, and what is logged at other steps is
    dropped.
    """
    every = int(getattr(trainer, "log_every_n_steps", 0))
    return bool(trainer.loggers) and every > 0 and (step + 1) % every == 0


def _steps_left_in_epoch(trainer: pl.Trainer) -> float:
    """Steps from the current batch on, that of the current batch included."""
    total, every = trainer.num_training_batches, trainer.accumulate_grad_batches
    if total == math.inf:
        return math.inf
    whole = int(total) // every - trainer.fit_loop.batch_idx // every
    # Lightning steps at the last batch of an epoch, however few were accumulated
    incomplete = total % every and not trainer.strategy.handles_gradient_accumulation
    return whole + bool(incomplete)


def _last_by_max_steps(trainer: pl.Trainer) -> float:
    """The last step of the run; a guess where several optimizers share the steps.

    It is made again at every measurement, so a wrong one costs a measurement or two.
    """
    if trainer.max_steps == -1:
        return math.inf
    manual = not trainer.lightning_module.automatic_optimization
    optimizers = max(len(trainer.optimizers), 1) if manual else 1
    left = trainer.max_steps - trainer.global_step
    return step_of(trainer) + math.ceil(left / optimizers) - 1
