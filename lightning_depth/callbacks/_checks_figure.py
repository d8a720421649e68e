"""The figure of early stopping: the metric over its checks, training beside it, best and stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_depth import _extras
from lightning_depth.callbacks._curves_figure import draw_curves
from lightning_depth.callbacks._training_curve import TrainingCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_checks"]


def draw_checks(
    table: Mapping[str, Sequence[Any]],
    monitor: str,
    training: TrainingCurve | None,
    *,
    best: int | None,
    stopped: bool,
) -> tuple[Figure, Axes]:
    """Draw the metric over the checks, the training curve, the best check and the stop.

    Epochs are counted as Lightning does, from 0; where an epoch has several checks, optimizer
    steps take their place.

    Args:
        table: History of early stopping.
        monitor: Key of the metric.
        training: The curve on training data, if there is one.
        best: Which check was the best.
        stopped: Whether early stopping ended training.
    """
    figure = _extras.matplotlib_figure().Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    epochs, steps = table.get("epoch", []), table.get("step", [])
    by_epoch = len(set(epochs)) == len(epochs)
    counts = epochs if by_epoch else steps
    curves = {monitor: table.get("score", [])}
    if training is not None:
        curves[training.name] = training.values
    draw_curves(axes, counts, curves)
    marks = {"best": best, "stop": len(epochs) - 1 if stopped else None}
    for (word, check), style in zip(marks.items(), ("--", ":"), strict=True):
        if check is not None and check < len(epochs):
            label = f"{word}: epoch {epochs[check]}, step {steps[check]}"
            axes.axvline(counts[check], color="0.4", linestyle=style, label=label)
    axes.set(
        xlabel="epoch" if by_epoch else "optimizer step",
        ylabel=monitor,
        title="Checks of early stopping",
    )
    axes.legend()
    return figure, axes
