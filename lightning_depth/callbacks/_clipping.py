"""How the gradient is clipped, and with which norm it comes out."""

from __future__ import annotations

import math
from enum import Enum

import lightning.pytorch as pl

from lightning_depth.callbacks._norms import HostNorms
from lightning_depth.functional.gradients import clipped_norm

__all__ = ["Clipping", "norm_after", "read_clipping"]


class Clipping(Enum):
    """What happens to the gradient after it is read."""

    NONE = "none"
    BY_NORM = "by norm"
    """The norm afterward follows from the norm before."""
    OTHER = "other"
    """By value, or by the user's own code: the norm afterward has to be measured."""


def read_clipping(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Clipping:
    """Return how a Trainer clips.

    In manual optimization Lightning clips nothing: a gradient that the user's code clips before
    the step is read as it comes out.
    """
    if not pl_module.automatic_optimization:
        return Clipping.NONE
    if not _is_lightnings(type(pl_module).configure_gradient_clipping):
        return Clipping.OTHER
    if not trainer.gradient_clip_val:
        return Clipping.NONE
    by_value = str(getattr(trainer.gradient_clip_algorithm, "value", "norm") or "norm") == "value"
    return Clipping.OTHER if by_value else Clipping.BY_NORM


def _is_lightnings(method: object) -> bool:
    """Whether a method is Lightning's own, of whichever of its two packages."""
    package = getattr(method, "__module__", "").partition(".")[0]
    return package in {"lightning", "pytorch_lightning"}


def norm_after(
    clipping: Clipping, norm: float, limit: float | None, measured: HostNorms | None
) -> float:
    """Return the norm after clipping; not-a-number where it is not known (yet)."""
    if clipping is Clipping.NONE:
        return norm
    if clipping is Clipping.BY_NORM and limit:
        return clipped_norm(norm, float(limit))
    if measured is None:
        return math.nan
    return measured.total()
