"""The parts of a study as plain data: arms, matches, claims, and the quantities they compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["METRICS", "TIMINGS", "Arm", "Budget", "Claim", "Match", "Rounding"]

METRICS = ("train_error", "train_loss", "val_error", "val_loss")
"""What a trial is measured by, in eval mode at the end of training."""

TIMINGS = ("train_step_s", "inference_batch_s")
"""What claims of the kind ``faster`` compare, in seconds."""

Budget = Literal["params", "multiply_adds", "activation_bytes"]
Rounding = Literal["nearest", "floor", "ceil"]


@dataclass(frozen=True)
class Match:
    """Which arm's cost sets the width of an arm.

    Args:
        arm: Name of the arm whose cost is the target.
        by: What is made equal: ``params``, ``multiply_adds`` or ``activation_bytes``.
        rounding: Which whole width is taken: ``nearest``, ``floor`` or ``ceil``.
        count_bias: Whether biases of linear and convolution layers count.
        multiple_of: The width is a multiple of this.

    Example:
        >>> Match("deep").by
        'params'
    """

    arm: str
    by: Budget = "params"
    rounding: Rounding = "nearest"
    count_bias: bool = True
    multiple_of: int = 1


@dataclass(frozen=True)
class Arm:
    """One architecture under comparison.

    Args:
        name: What tables and claims call it.
        network: The network as the recipe states it.
        match: Which arm's cost sets its width; None where the recipe states the width.

    Example:
        >>> Arm("plain-20", {"block": "plain", "depth": 20, "width": 8}).match is None
        True
    """

    name: str
    network: Mapping[str, Any]
    match: Match | None = None


@dataclass(frozen=True)
class Claim:
    """A statement that a study tests.

    Args:
        text: The statement in words.
        arm: The arm it is about.
        than: The arm it is compared with.
        kind: ``comparison`` of a measured quantity, or ``faster``.
        metric: The quantity compared.
        direction: Whether the arm's quantity is said to be ``higher`` or ``lower``.
        margin: The least difference that counts, in the metric's unit; for ``faster`` the least
            share of time saved.

    Example:
        >>> Claim("a is worse than b", "a", "b").metric
        'train_error'
    """

    text: str
    arm: str
    than: str
    kind: str = "comparison"
    metric: str = "train_error"
    direction: str = "higher"
    margin: float = 0.0
