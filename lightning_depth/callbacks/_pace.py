"""At which steps a monitor measures."""

from __future__ import annotations

import lightning.pytorch as pl

__all__ = ["next_due", "step_of", "steps_between", "writes_row"]

_PACE = 50
"""Steps between measurements where the Trainer logs nothing."""


def step_of(trainer: pl.Trainer) -> int:
    """Return the step on the axis on which Lightning logs.

    ``trainer.global_step`` counts the steps of every optimizer.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def steps_between(trainer: pl.Trainer, every_n_steps: int | None) -> int:
    """Return the steps from one measurement to the next, by default those from row to row."""
    return every_n_steps or int(getattr(trainer, "log_every_n_steps", 0)) or _PACE


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
