"""The findings on how training ended, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_depth.findings import Finding, FindingKind, Severity
from lightning_depth.functional.curves import HIGH, MIN_CHECKS, CurveVerdict, judge_curves

__all__ = ["as_errors", "find_ending", "find_untrained", "is_rate", "match_epochs"]

_REMEDIES = {
    "overfitting": (
        "Keep the best weights (`restore_best_weights=True`); more data, augmentation, weight "
        "decay, dropout or a smaller network lower the best itself."
    ),
    "not_generalizing": (
        "Check that labels belong to their samples and that validation data are of the same kind; "
        "regularisation comes after that."
    ),
    "unstable": "Lower the learning rate or clip gradients, and look at the gradient monitor.",
    "underfitting": (
        "More patience, a higher learning rate or a larger network; more regularisation would "
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
    epochs: Sequence[int],
    validation: Sequence[float],
    training: Sequence[float] | None,
    *,
    chance: float | None = None,
    stopped: bool = False,
) -> list[Finding]:
    """Return the finding on a run's curves, if there is one.

    Args:
        monitor: Key of the validation metric.
        epochs: Epoch of each check.
        validation: Its values as errors, one a check.
        training: The same on training data, if known.
        chance: What a network that looks at nothing gets.
        stopped: Whether training stopped because nothing improved any more.
    """
    verdict = judge_curves(validation, training, chance=chance, stopped=stopped)
    if verdict is None:
        return []
    kind, severity = _KINDS[verdict.kind]
    message = _tell(verdict, monitor, epochs, validation, training)
    remedy = _REMEDIES[verdict.kind]
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


def is_rate(monitor: str) -> bool:
    """Whether a metric's name says that it is an error rate or an accuracy."""
    return re.search(r"err|acc|top_?\d|f1|auroc", monitor, re.IGNORECASE) is not None


def as_errors(scores: Sequence[float], mode: str) -> list[float]:
    """Return scores such that lower is better, at least 0 where the scores allow it.

    Args:
        scores: Values of a metric.
        mode: "min" or "max".
    """
    if mode == "min":
        return list(scores)
    top = 1.0 if all(0 <= score <= 1 for score in scores) else 0.0
    return [top - score for score in scores]


def match_epochs(
    table: Mapping[str, Sequence[Any]], epochs: Sequence[int], column: str
) -> list[float] | None:
    """Return a column of another callback's history at the given epochs, if it has them all."""
    by_epoch = dict(zip(table.get("epoch", ()), table.get(column, ()), strict=True))
    matched = [by_epoch.get(epoch) for epoch in epochs]
    return None if None in matched else [float(value) for value in matched if value is not None]


def _tell(
    verdict: CurveVerdict,
    monitor: str,
    epochs: Sequence[int],
    validation: Sequence[float],
    training: Sequence[float] | None,
) -> str:
    best, end = validation[verdict.at], validation[-1]
    trained = f"{training[0]:.3g} to {training[-1]:.3g}" if training else "unknown"
    if verdict.kind == "overfitting":
        return (
            f"{monitor} rose by {verdict.value:.3g} from its lowest level, {best:.3g} in epoch "
            f"{epochs[verdict.at]} (noise allows {verdict.threshold:.2g}), while training went "
            f"on falling, from {trained}."
        )
    if verdict.kind == "not_generalizing":
        return (
            f"Training fell from {trained}, but {monitor} is {end:.3g}, no better than chance: "
            "what was fitted does not generalise."
        )
    if verdict.kind == "unstable":
        return f"{monitor} rose by {verdict.value:.3g}, and training rose with it, from {trained}."
    if verdict.kind == "underfitting":
        return (
            f"Both are high at the end: training went from {trained}, {verdict.value:.2f} of "
            f"chance (limit {verdict.threshold:g}), and {monitor} is {end:.3g}."
        )
    return (
        f"{monitor} was still falling when training ended, by {verdict.value:.2g} over the last "
        f"checks, to {end:.3g}."
    )
