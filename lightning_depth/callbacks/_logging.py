"""What leaves a callback during a run: scalars, words and files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_depth import _extras

__all__ = [
    "can_draw",
    "is_quiet",
    "log_scalars",
    "notebook_display",
    "run_folder",
    "say",
    "survive_full_disk",
]


def is_quiet(trainer: pl.Trainer) -> bool:
    """Whether nothing may be logged or written: a sanity check or a run that is a mere trial."""
    trial = trainer.fast_dev_run  # type: ignore[attr-defined] # set by one of its connectors
    return bool(trainer.sanity_checking or trial or trainer.barebones)


def say(text: str) -> None:
    """Print text without tearing a progress bar.

    tqdm clears its bars first; Rich stands in for standard output while its display is live. In a
    notebook the text becomes an output of its own: there, several lines printed through both of
    them end in a RecursionError.
    """
    if (display := notebook_display()) is not None:
        html = f"<pre style='white-space: pre'>{escape(text)}</pre>"
        display({"text/plain": text, "text/html": html}, raw=True)
        return
    whole = f"{text}\n"  # in one piece, or Rich draws its bars before the last line
    try:
        tqdm.write(whole, end="")
    except UnicodeEncodeError:  # a terminal or a log that knows ASCII only
        tqdm.write(whole.encode("ascii", "replace").decode(), end="")


def notebook_display() -> Callable[..., Any] | None:
    """Return IPython's ``display`` where a notebook runs the code, None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if not hasattr(shell, "kernel"):
        return None
    return sys.modules["IPython.display"].display  # type: ignore[no-any-return]


def log_scalars(
    pl_module: pl.LightningModule,
    scalars: Mapping[str, float | torch.Tensor],
    *,
    epoch_end: bool,
) -> None:
    """Log scalars through the module, so that they reach every logger and can be monitored.

    ``batch_size`` keeps Lightning from guessing it, which fails for batches of unknown types.
    Values are equal on every rank already: at the end of an epoch they are reduced all the same,
    because Lightning warns that they might not be.
    """
    reduce = epoch_end and pl_module.trainer.world_size > 1
    for key, value in scalars.items():
        number = value if isinstance(value, torch.Tensor) else float(value)
        pl_module.log(key, number, batch_size=1, sync_dist=reduce)


def can_draw() -> bool:
    """Whether matplotlib is there; says what is missing where it is not."""
    available = _extras.available("matplotlib")
    if not available:
        _explain_missing_figures()
    return available


@cache
def _explain_missing_figures() -> None:
    say(
        "lightning-depth draws no figures because matplotlib is not installed; "
        "install it with `pip install lightning-depth[plot]`."
    )


@contextmanager
def survive_full_disk(path: Path) -> Iterator[None]:
    """Warn instead of failing where a file cannot be written: the training itself has succeeded."""
    try:
        yield
    except OSError as error:
        rank_zero_warn(f"lightning-depth could not write {path}: {error}.")


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Return the folder of the run, beside its checkpoints; None where the user named none."""
    root = trainer.default_root_dir
    given = root != str(Path.cwd())  # what Trainer falls back to
    folder = Path(root) if given else None
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        root = str(logger.save_dir or root)
        folder = Path(root) / str(logger.name) / version
    return None if "://" in root else folder
