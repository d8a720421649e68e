"""What happens at the moment at which something is found."""

from __future__ import annotations

from typing import Literal, Protocol

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_depth.callbacks._logging import say
from lightning_depth.errors import LightningDepthError, check_choice
from lightning_depth.findings import Finding, Severity

__all__ = [
    "FindingAction",
    "FindingError",
    "FindingWarning",
    "OnFinding",
    "act_on",
    "check_on_finding",
]


class FindingWarning(UserWarning):
    """A finding made during training by a callback with ``on_finding="warn"``.

    Example:
        >>> issubclass(FindingWarning, UserWarning)
        True
    """


class FindingError(LightningDepthError, RuntimeError):
    """A finding that ends training, by a callback with ``on_finding="raise"``.

    Example:
        >>> issubclass(FindingError, RuntimeError)
        True
    """


class FindingAction(Protocol):
    """What to do with a finding; called on every rank.

    A protocol and not a bare callable, which would let a YAML file name any function.
    """

    def __call__(self, finding: Finding) -> None:
        """Act on one finding, at the step at which it is first made."""


OnFinding = Literal["log", "warn", "stop", "raise"] | FindingAction


def check_on_finding(on_finding: OnFinding) -> OnFinding:
    """Return the argument if it is a callable or one of the four words, otherwise raise."""
    if not callable(on_finding):
        check_choice("on_finding", on_finding, ("log", "warn", "stop", "raise"))
    return on_finding


def act_on(finding: Finding, on_finding: OnFinding, trainer: pl.Trainer) -> None:
    """Do what was asked for; findings that are merely worth knowing wait for the verdict.

    An error that comes of it is one that the user asked for, and is marked as wanted.

    Raises:
        FindingError: The finding matters and ``on_finding`` is "raise".
    """
    try:
        _act(finding, on_finding, trainer)
    except Exception as error:
        error._is_wanted = True  # type: ignore[attr-defined] # read by the guard
        raise


def _act(finding: Finding, on_finding: OnFinding, trainer: pl.Trainer) -> None:
    if callable(on_finding):
        on_finding(finding)
        return
    if finding.severity is Severity.INFO:
        return
    text = f"{finding.kind.value}: {finding.message} {finding.suggestion}"
    if on_finding == "raise":
        raise FindingError(text)
    if on_finding == "warn":
        rank_zero_warn(text, category=FindingWarning)
    elif trainer.is_global_zero:
        say(text)
    if on_finding == "stop":
        trainer.should_stop = True
