"""Loggers of every make: what each takes beside scalars, told by what it can do, not by its class.

None of their packages is imported: who uses one has imported it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl

__all__ = ["send_figure", "send_file", "takes_figures"]


class _Kind(NamedTuple):
    """One make of loggers."""

    fits: Callable[[Any, Any], bool]
    """Whether a logger and its experiment are of this make."""
    send_figure: Callable[[Any, str, Any, int], object] | None
    """Takes the logger, a key, a figure and a step."""
    send_file: Callable[[Any, Path], object]


def send_figure(trainer: pl.Trainer, key: str, figure: Any) -> None:
    """Hand a figure to the loggers that take one, at the step at which Lightning logs an epoch."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    if not trainer.validating:
        step = max(step - 1, 0)  # counted up before the end of the epoch: fit_loop.on_advance_end
    for logger in trainer.loggers:
        kind = _kind(logger)
        if kind is not None and kind.send_figure is not None:
            kind.send_figure(logger, key, figure, step)


def send_file(trainer: pl.Trainer, path: Path) -> None:
    """Hand a file of text to the loggers that keep one with the run."""
    for logger in trainer.loggers:
        if (kind := _kind(logger)) is not None:
            kind.send_file(logger, path)


def takes_figures(logger: Any) -> bool:
    """Whether a logger shows figures; the others have them written to a file."""
    kind = _kind(logger)
    return kind is not None and kind.send_figure is not None


def _kind(logger: Any) -> _Kind | None:
    experiment = getattr(logger, "experiment", None)
    return next((kind for kind in _KINDS if kind.fits(logger, experiment)), None)


def _send_to_wandb(logger: Any, path: Path) -> None:
    """A copy in the run's own folder is uploaded without a word; a link would not outlive it."""
    folder = logger.experiment.dir
    logger.experiment.save(shutil.copy(path, folder), base_path=folder, policy="now")


def _show_in_tensorboard(logger: Any, path: Path) -> None:
    """TensorBoard keeps no files: the content as a block of code, in Markdown."""
    lines = path.read_text(encoding="utf-8").splitlines()
    logger.experiment.add_text(path.stem, "\n".join(f"    {line}" for line in lines))


_KINDS = (
    _Kind(  # Weights & Biases
        lambda logger, _: hasattr(logger, "log_image"),
        lambda logger, key, figure, step: logger.log_image(key=key, images=[figure], step=step),
        _send_to_wandb,
    ),
    _Kind(  # MLflow: what is logged of a run is named by the run
        lambda logger, experiment: hasattr(logger, "run_id") and hasattr(experiment, "log_figure"),
        lambda logger, key, figure, step: logger.experiment.log_figure(
            logger.run_id, figure, f"{key}/{step:06d}.png"
        ),
        lambda logger, path: logger.experiment.log_artifact(logger.run_id, str(path)),
    ),
    _Kind(  # Comet
        lambda _, experiment: hasattr(experiment, "log_asset"),
        lambda logger, key, figure, step: logger.experiment.log_figure(
            figure_name=key, figure=figure, step=step
        ),
        lambda logger, path: logger.experiment.log_asset(str(path), file_name=path.name),
    ),
    _Kind(  # TensorBoard
        lambda _, experiment: hasattr(experiment, "add_figure"),
        lambda logger, key, figure, step: logger.experiment.add_figure(
            key, figure, global_step=step
        ),
        _show_in_tensorboard,
    ),
    _Kind(  # Neptune
        lambda logger, experiment: hasattr(logger, "run") and hasattr(experiment, "__getitem__"),
        lambda logger, key, figure, step: logger.experiment[key].append(figure, step=step),
        lambda logger, path: logger.experiment[path.stem].upload(str(path)),
    ),
    _Kind(  # Lightning's own platform keeps files, and has no name for a figure
        lambda logger, _: hasattr(logger, "log_file"),
        None,
        lambda logger, path: logger.log_file(str(path)),
    ),
)
