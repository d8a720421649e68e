"""Prechelt's stopping criteria, and any or all of several, as objects that a YAML file can name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning_depth.errors import check_count, check_real, invalid
from lightning_depth.functional.stopping import (
    generalization_loss,
    rises_in_strips,
    training_progress,
)

__all__ = ["GL", "PQ", "UP", "AllOf", "AnyOf", "StoppingCriterion"]


class StoppingCriterion(ABC):
    """Decides from the curves of a run whether it should stop.

    Criteria combine: ``GL(5) | UP(3)`` stops when either says so, ``GL(5) & UP(3)`` when both do.

    Example:
        >>> (GL(5) | UP(3)).should_stop([0.5, 0.6], [])
        'GL = 20.0 % exceeds 5 %'
    """

    train_monitor: str | None = None
    """Key of the training loss that the criterion needs; None where it needs none."""

    @abstractmethod
    def should_stop(self, scores: Sequence[float], train_losses: Sequence[float]) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            scores: The monitored values so far, one a check, lower is better.
            train_losses: The values of ``train_monitor`` at the same checks; empty without one.
        """

    def __or__(self, other: StoppingCriterion) -> AnyOf:
        return AnyOf([self, other])

    def __and__(self, other: StoppingCriterion) -> AllOf:
        return AllOf([self, other])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # compared by value, and the values may be lists

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class GL(StoppingCriterion):
    """Stop when the generalization loss exceeds a limit (Prechelt 1998).

    The generalization loss is by how many percent the validation error lies above its lowest
    value so far.

    Args:
        alpha: Limit in percent.

    Example:
        >>> GL(alpha=5).should_stop([1.0, 0.5, 0.6], [])
        'GL = 20.0 % exceeds 5 %'
    """

    def __init__(self, alpha: float = 5.0) -> None:
        self.alpha = check_real("alpha", alpha, 0.0)

    def should_stop(self, scores: Sequence[float], train_losses: Sequence[float]) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            scores: The monitored values so far, one a check.
            train_losses: Not used.
        """
        loss = generalization_loss(scores)
        return f"GL = {loss:.1f} % exceeds {self.alpha:g} %" if loss > self.alpha else None


class PQ(StoppingCriterion):
    """Stop when the generalization loss outweighs the progress of training (Prechelt 1998).

    Progress is by how many per mille the mean training loss of the last k checks lies above
    their lowest; while training still moves fast, a rise of the validation error may be made good.
    It is looked at after each strip of k checks.

    Args:
        alpha: Limit of the quotient of generalization loss (percent) and progress (per mille).
        k: Checks in a strip.
        train_monitor: Key of the training loss among the logged metrics.

    Example:
        >>> PQ(alpha=0.5, k=2).should_stop([1.0, 0.5, 0.6, 0.7], [0.4, 0.3, 0.21, 0.2])
        'PQ = 1.60 exceeds 0.5'
    """

    def __init__(self, alpha: float = 0.5, k: int = 5, train_monitor: str = "train_loss") -> None:
        self.alpha = check_real("alpha", alpha, 0.0)
        self.k = check_count("k", k)
        self.train_monitor = train_monitor

    def should_stop(self, scores: Sequence[float], train_losses: Sequence[float]) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            scores: The monitored values so far, one a check.
            train_losses: The training losses at the same checks.
        """
        if len(scores) % self.k:
            return None
        loss, progress = generalization_loss(scores), training_progress(train_losses, self.k)
        quotient = loss / progress if progress > 0 else float("inf") * (loss > 0 or float("nan"))
        return f"PQ = {quotient:.2f} exceeds {self.alpha:g}" if quotient > self.alpha else None


class UP(StoppingCriterion):
    """Stop when the validation error has risen in s successive strips (Prechelt 1998).

    Only the sign of the change from the end of one strip to the end of the next counts, not its
    size.

    Args:
        s: Number of successive strips with a rise.
        k: Checks in a strip.

    Example:
        >>> UP(s=2, k=1).should_stop([1.0, 0.5, 0.6, 0.7], [])
        'UP: risen in 2 successive strips of 1'
    """

    def __init__(self, s: int = 3, k: int = 5) -> None:
        self.s = check_count("s", s)
        self.k = check_count("k", k)

    def should_stop(self, scores: Sequence[float], train_losses: Sequence[float]) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            scores: The monitored values so far, one a check.
            train_losses: Not used.
        """
        if len(scores) % self.k or rises_in_strips(scores, self.k) < self.s:
            return None
        return f"UP: risen in {self.s} successive strips of {self.k}"


class _Several(StoppingCriterion):
    def __init__(self, criteria: Sequence[StoppingCriterion]) -> None:
        if not criteria:
            raise invalid("criteria", "at least one criterion", criteria)
        self.criteria = list(criteria)
        keys = {one.train_monitor for one in criteria if one.train_monitor is not None}
        if len(keys) > 1:
            raise invalid(
                "criteria", "criteria with one and the same `train_monitor`", sorted(keys)
            )
        self.train_monitor = keys.pop() if keys else None

    def _reasons(self, scores: Sequence[float], train_losses: Sequence[float]) -> list[str | None]:
        return [one.should_stop(scores, train_losses) for one in self.criteria]


class AnyOf(_Several):
    """Stop when any of several criteria says so.

    Args:
        criteria: The criteria.

    Example:
        >>> AnyOf([GL(5), UP(3)]).should_stop([0.5, 0.6], [])
        'GL = 20.0 % exceeds 5 %'
    """

    def should_stop(self, scores: Sequence[float], train_losses: Sequence[float]) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            scores: The monitored values so far, one a check.
            train_losses: The training losses at the same checks.
        """
        reasons = [reason for reason in self._reasons(scores, train_losses) if reason]
        return " and ".join(reasons) or None


class AllOf(_Several):
    """Stop when all of several criteria say so at the same check.

    Args:
        criteria: The criteria.

    Example:
        >>> AllOf([GL(5), GL(30)]).should_stop([0.5, 0.6], []) is None
        True
    """

    def should_stop(self, scores: Sequence[float], train_losses: Sequence[float]) -> str | None:
        """Return why training should stop, None where it should go on.

        Args:
            scores: The monitored values so far, one a check.
            train_losses: The training losses at the same checks.
        """
        reasons = self._reasons(scores, train_losses)
        return " and ".join(filter(None, reasons)) if all(reasons) else None
