"""What early stopping says: how it was made, which weights are in place, which rivals it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from lightning_depth.errors import ConfigurationError

__all__ = ["best_check", "refuse_rivals", "weights_in_place"]


def best_check(table: Mapping[str, Sequence[Any]]) -> int | None:
    """Return which check was the best, None where none was.

    Args:
        table: History of early stopping.

    Example:
        >>> best_check({"best_score": [None, 3.0, 2.0, 2.0]})
        2
    """
    bests = table.get("best_score", ())
    changes = [
        check
        for check, (before, best) in enumerate(zip([None, *bests], bests, strict=False))
        if best not in (None, before)
    ]
    return changes[-1] if changes else None


def weights_in_place(
    table: Mapping[str, Sequence[Any]], monitor: str, epoch: int | None, step: int | None
) -> str:
    """Return which weights were given back, with their number and that of the last check.

    Args:
        table: History of early stopping.
        monitor: Key of the metric.
        epoch: Epoch of the best weights.
        step: Their optimizer step.
    """
    weights, scores = f"The weights of epoch {epoch} (step {step})", table.get("score", [])
    best = best_check(table)
    if best is None or scores[best] is None:
        return f"{weights} are in place."
    if best == len(scores) - 1:
        return f"{weights}, the last check, are in place: {monitor} {scores[best]:.4g}."
    last = "a value that is not finite" if scores[-1] is None else f"{scores[-1]:.4g}"
    return (
        f"{weights} are in place: {monitor} {scores[best]:.4g}; the last check, in epoch "
        f"{table['epoch'][-1]}, had {last}."
    )


def refuse_rivals(callback: Any, trainer: pl.Trainer) -> None:
    """Refuse a second callback of one state key: a checkpoint would hold the state of one.

    Args:
        callback: An early stopping of ours.
        trainer: The Trainer.

    Raises:
        ConfigurationError: There is one.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    for other in callbacks:
        if other is not callback and other.state_key == callback.state_key:
            ours = isinstance(other, type(callback))
            name = other._as_written() if ours else f"Lightning's {type(other).__name__}"
            raise ConfigurationError(
                f"Two callbacks watch {callback.monitor!r} and would share one state in a "
                f"checkpoint: {callback._as_written()} and {name}. Keep one; where both are meant, "
                "log the metric under a second name and let one watch that."
            )
