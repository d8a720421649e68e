"""The findings on how training ended, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_depth.callbacks._training_curve import TrainingCurve
from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.functional.curves import HIGH, MIN_CHECKS, CurveVerdict, judge_curves

__all__ = ["as_errors", "find_ending", "find_untrained"]

_REMEDIES = {
    "overfitting": (
        "Keep the best weights (`restore_best_weights=True`); more data, augmentation, weight "
        "decay, dropout or a smaller network lower the best itself."
    ),
    "not_generalizing": (
        "Check that labels belong to their samples and that validation data are of the same kind; "
        "regularization comes after that."
    ),
    "unstable": "Lower the learning rate or clip gradients, and look at the gradient monitor.",
    "underfitting": (
        "More patience, a higher learning rate or a larger network; more regularization would "
        "make it worse. If a shallower network fits, shortcuts help (residual blocks)."
    ),
    "still_improving": "Train for longer: a better network is on the way.",
}
_KINDS = {
    "overfitting": (FindingKind.OVERFITTING, Severity.WARNING),
    "not_generalizing": (FindingKind.OVERFITTING, Severity.WARNING),
    "unstable": (FindingKind.INCONCLUSIVE, Severity.INFO),
    "underfitting": (FindingKind.UNDERFITTING, Severity.WARNING),
    "still_improving": (FindingKind.STILL_IMPROVING, Severity.INFO),
}


def find_ending(
    monitor: str,
    mode: str,
    epochs: Sequence[int],
    scores: Sequence[float | None],
    training: TrainingCurve | None,
    *,
    stopped: bool = False,
) -> list[Finding]:
    """Return the finding on a run's curves, if there is one.

    Args:
        monitor: Key of the validation metric.
        mode: Whether it is to be small ("min") or large ("max").
        epochs: Epoch of each check.
        scores: Its values, one a check, None where it was not finite.
        training: The curve on training data, if there is one.
        stopped: Whether training stopped because nothing improved any more.
    """
    verdict = judge_curves(
        as_errors(scores, mode),
        None if training is None else as_errors(training.values, mode),
        chance=None if training is None else training.chance,
        comparable=training is not None and training.comparable,
        stopped=stopped,
    )
    if verdict is None:
        return []
    kind, severity = _KINDS[verdict.kind]
    words = _Words(monitor, mode, epochs, scores, training)
    message, remedy = words.tell(verdict), _REMEDIES[verdict.kind]
    return [Finding(kind, severity, (), verdict.value, verdict.threshold, message, remedy)]


def find_untrained(errors: Sequence[float], chance: float | None) -> list[Finding]:
    """Return the finding on a network that never fitted its training data, if it is one.

    Args:
        errors: Training errors in evaluation mode, one a measurement.
        chance: Error of always answering the commonest class.
    """
    if len(errors) < MIN_CHECKS or not chance or errors[-1] <= HIGH * chance:
        return []
    message = (
        f"The training error in evaluation mode is {errors[-1]:.3g} at the end, where always "
        f"answering the commonest class gives {chance:.3g}: this is no over-fitting."
    )
    return [
        Finding(
            FindingKind.UNDERFITTING,
            Severity.WARNING,
            (),
            errors[-1] / chance,
            HIGH,
            message,
            _REMEDIES["underfitting"],
        )
    ]


def as_errors(scores: Sequence[float | None], mode: str) -> list[float]:
    """Return scores such that lower is better, at least 0 where the scores allow it.

    Args:
        scores: Values of a metric; of None becomes NaN.
        mode: "min" or "max".
    """
    values = [math.nan if score is None else float(score) for score in scores]
    if mode == "min":
        return values
    top = 1.0 if all(0 <= value <= 1 for value in values if math.isfinite(value)) else 0.0
    return [top - value for value in values]


@dataclass(frozen=True)
class _Words:
    """A verdict in words, in the metric's own direction and by its own name."""

    monitor: str
    mode: str
    epochs: Sequence[int]
    scores: Sequence[float | None]
    training: TrainingCurve | None

    def tell(self, verdict: CurveVerdict) -> str:
        end = _ends(self.scores)[1]
        if verdict.kind == "still_improving":
            went = "falling" if self.mode == "min" else "rising"
            return (
                f"{self.monitor} was still {went} when training ended, by {verdict.value:.2g} over "
                f"the last checks, to {end:.3g}."
            )
        assert self.training is not None
        name, (start, last) = self.training.name, _ends(self.training.values)
        trained = f"{name} went from {start:.3g} to {last:.3g}"
        if verdict.kind == "overfitting":
            return f"{self._turned(verdict)}, while {trained}."
        if verdict.kind == "unstable":
            return f"{self._turned(verdict)}, and so it did in training: {trained}."
        known = "" if self.training.chance is None else f" ({self._chance():.3g})"
        if verdict.kind == "not_generalizing":
            return (
                f"{trained}, but {self.monitor} is {end:.3g}, no better than chance{known}: what "
                "was fitted does not generalize."
            )
        error = "" if self.mode == "min" else "an error "
        return (
            f"Training is not fitted: {trained}, {error}{verdict.value:.2f} of chance{known} at "
            f"the end (limit {verdict.threshold:g}), and {self.monitor} is {end:.3g}."
        )

    def _turned(self, verdict: CurveVerdict) -> str:
        rose, lowest = ("rose", "lowest") if self.mode == "min" else ("fell", "highest")
        best = self.scores[verdict.at]
        return (
            f"{self.monitor} {rose} by {verdict.value:.3g} from its {lowest} level, {best:.3g} in "
            f"epoch {self.epochs[verdict.at]} (noise allows {verdict.threshold:.2g})"
        )

    def _chance(self) -> float:
        """Chance in the metric's own direction."""
        chance = self.training.chance if self.training else None
        assert chance is not None
        return chance if self.mode == "min" else 1 - chance


def _ends(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return known[0], known[-1]
