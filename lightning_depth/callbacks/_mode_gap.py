"""A network that is good with the statistics of each batch and bad with the running ones.

The only difference between the two passes is which statistics the normalization layers use:
dropout, augmentation and branches on ``self.training`` are in evaluation mode in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_depth.findings import Finding, FindingKind, Severity

__all__ = [
    "GAP_SAMPLES",
    "LONG",
    "PATIENCE",
    "UPDATES",
    "Losses",
    "ModeGap",
    "describe_gap",
    "find_gap_key",
    "find_running",
    "is_settled",
]

GAP_SAMPLES = 500
"""Samples on which the two are compared."""
RATIO = 3.0
"""How many times the loss must be with running statistics."""
SHARE = 0.1
"""The difference must be this share of the largest loss seen: small losses differ by noise."""
PATIENCE = 3
"""Measurements in a row after which a gap at the end of training counts."""
LONG = 10
"""Measurements in a row after which one counts while training goes on: the running statistics of a
healthy network that learns fast lag behind for a few epochs, and then follow."""
STILL = 1e-3
"""With a momentum below this, running statistics are taken to stand still."""
UPDATES = 50
"""Running statistics that moved less often than this are not judged."""


def find_running(module: nn.Module) -> dict[str, nn.Module]:
    """Return the normalization layers that train with batch statistics and evaluate without."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _NormBase) and part.training and part.running_mean is not None
    }


def find_gap_key(columns: Sequence[str]) -> str | None:
    """Return the column that is a loss."""
    losses = [name for name in columns if "loss" in name.lower() or name.lower() in ("nll", "mse")]
    return "loss" if "loss" in losses else (losses[0] if losses else None)


def is_settled(layers: Mapping[str, nn.Module], step: int) -> bool:
    """Whether running statistics had time to follow, by the momentum that they have.

    Args:
        layers: Normalization layers; one that hardly moves at all will never have followed.
        step: Optimizer steps so far.
    """
    momenta = [float(getattr(part, "momentum", None) or 0.0) for part in layers.values()]
    slowest = min((momentum for momentum in momenta if momentum >= STILL), default=1.0)
    return step >= max(UPDATES, 5 / slowest)


@dataclass(frozen=True)
class Losses:
    """The loss on the same samples, under three settings.

    Args:
        running: In evaluation mode, with running statistics.
        batch: The same with the statistics of each batch.
        training: With every module in training mode; only asked for where the two differ.
    """

    running: float
    batch: float
    training: float = 0.0


@dataclass
class ModeGap:
    """What is known of the gap so far.

    Args:
        largest: Largest loss seen with batch statistics.
        streak: Measurements in a row that showed a gap.
        settled: Those of them at which running statistics had had time to follow.
        ratio: Loss with running statistics over loss with those of each batch, last seen.
    """

    largest: float = 0.0
    streak: int = 0
    settled: int = 0
    ratio: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether the network has been good in training mode only for long enough."""
        return self.streak >= PATIENCE

    def is_wide(self, losses: Losses) -> bool:
        """Whether a measurement is worth a look at training mode itself.

        Args:
            losses: The first two suffice.
        """
        running, batch = losses.running, losses.batch
        return running > RATIO * batch > 0 and self._matters(running - batch)

    def take(self, losses: Losses, *, settled: bool) -> None:
        """Take in a measurement.

        Args:
            losses: All three, where the first two differ.
            settled: Whether running statistics had time to follow.
        """
        running, batch = losses.running, losses.batch
        if batch > 0 and math.isfinite(batch):  # others, as of a likelihood, have no ratio
            self.largest = max(self.largest, batch)
            self.ratio = running / batch
        # where evaluation is bad with batch statistics too, they are not what differs
        good = batch <= RATIO * losses.training or not self._matters(batch - losses.training)
        wide = self.is_wide(losses) and good
        self.streak = self.streak + 1 if wide else 0
        self.settled = self.settled + 1 if wide and settled else 0

    def _matters(self, difference: float) -> bool:
        return difference > SHARE * self.largest


def describe_gap(
    losses: Losses,
    column: str,
    *,
    layers: Mapping[str, nn.Module],
    num_samples: int,
    epoch: int,
    step: int,
) -> Finding:
    """Return the finding.

    Args:
        losses: The last measurement.
        column: What the loss is called.
        layers: Normalization layers.
        num_samples: Samples on which it was measured.
        epoch: The last epoch.
        step: Optimizer steps so far.
    """
    still = [
        name
        for name, part in layers.items()
        if (momentum := getattr(part, "momentum", None)) is not None and momentum < STILL
    ]
    if still:
        remedy = (
            f"{len(still)} of {len(layers)} normalization layers have a momentum below {STILL:g}, "
            "so their running statistics hardly move: torch's default is 0.1."
        )
    else:
        remedy = (
            "Larger batches, `sync_batchnorm=True` on several devices, another momentum, or "
            "GroupNorm: running statistics do not describe the batches of training."
        )
    message = (
        f"On the same {num_samples} training samples {column} is {losses.running:.3g} with the "
        f"running statistics that evaluation mode uses and {losses.batch:.3g} with those of each "
        f"batch, for {PATIENCE} measurements or more (epoch {epoch}): the network is good in "
        "training mode only, which is no over-fitting."
    )
    return Finding(
        FindingKind.MODE_GAP,
        Severity.WARNING,
        tuple(layers),
        losses.running / losses.batch,
        RATIO,
        message,
        remedy,
        step=step,
    )
