"""Testing claims: paired over seeds, with 95 % intervals and Holm's correction over the claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_depth import _extras
from lightning_depth.study.parts import Claim

__all__ = ["CONFIDENCE", "ClaimResult", "Interval", "Verdict", "evaluate_claims", "mean_interval"]

CONFIDENCE = 0.95
"""Level of every interval of a study."""

Verdict = Literal["supported", "contradicted", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its t interval.

    Args:
        mean: The mean; NaN where there is no value.
        low: Lower end; NaN where there are fewer than two values.
        high: Upper end.
        num_values: How many values went in.

    Example:
        >>> Interval(0.5, 0.4, 0.6, 3).mean
        0.5
    """

    mean: float
    low: float
    high: float
    num_values: int


@dataclass(frozen=True)
class ClaimResult:
    """What a study says about one claim.

    Args:
        text: The claim in words.
        kind: ``comparison`` or ``faster``.
        metric: The quantity compared.
        arm: The arm the claim is about.
        than: The arm it is compared with.
        direction: ``higher`` or ``lower``.
        verdict: ``supported``, ``contradicted`` or ``inconclusive``.
        effect: Mean of the paired differences, arm minus other; for ``faster`` the share of time
            saved. None where no pair of seeds could be compared.
        low: Lower end of its 95 % interval; None with fewer than two seeds.
        high: Upper end of its 95 % interval.
        p_value: Two-sided p value of the paired t test against zero or the margin.
        p_holm: The same after Holm's correction over the claims of the study.
        n: Seeds that went in.
        reason: One sentence: why this verdict.

    Example:
        >>> from lightning_depth.study import Claim
        >>> trials = [{"arm": a, "seed": 0, "status": "finished", "metrics": {"train_error": e}}
        ...           for a, e in (("deep", 0.5), ("thin", 0.1))]
        >>> evaluate_claims([Claim("deep is worse", "deep", "thin")], trials)[0].verdict
        'inconclusive'
    """

    text: str
    kind: str
    metric: str
    arm: str
    than: str
    direction: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    n: int
    reason: str


def mean_interval(values: Sequence[float], resolution: float = 0.0) -> Interval:
    """Return the mean and its t interval at 95 %.

    Args:
        values: One number a seed.
        resolution: Smallest step in which a value can change (1/N for an error counted on N
            samples); the spread over seeds is taken to be at least this, since values that agree
            by rounding are no proof of certainty.

    Returns:
        The interval; its ends are NaN for fewer than two values.

    Example:
        >>> interval = mean_interval([0.1, 0.2, 0.3])
        >>> round(interval.low, 4), round(interval.high, 4)
        (-0.0484, 0.4484)
    """
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    error = _standard_error(values, mean, resolution)
    reach = error * float(_extras.scipy_stats().t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Interval(mean, mean - reach, mean + reach, count)


def evaluate_claims(
    claims: Iterable[Claim], trials: Sequence[Mapping[str, Any]]
) -> list[ClaimResult]:
    """Return the verdict on each claim.

    A claim is supported when the 95 % interval of the paired difference lies beyond the margin in
    the stated direction, and contradicted when it lies beyond zero in the other direction, both
    after Holm's correction over all claims. One seed is always inconclusive.

    Args:
        claims: The claims of a study.
        trials: The stored records of its trials.

    Returns:
        The results, in the order of the claims.

    Example:
        >>> evaluate_claims([], [])
        []
    """
    results = [_test(claim, trials) for claim in claims]
    return [
        _judge(result, claim, holm)
        for result, claim, holm in zip(
            results, claims, _holm([result.p_value for result in results]), strict=True
        )
    ]


def _standard_error(values: Sequence[float], mean: float, resolution: float) -> float:
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return max(math.sqrt(variance), resolution) / math.sqrt(len(values))


def _test(claim: Claim, trials: Sequence[Mapping[str, Any]]) -> ClaimResult:
    """Measure one claim; the verdict waits for the p values of the others."""
    pairs, left_out = _pair(claim, trials)
    resolution = max((pair[2] for pair in pairs), default=0.0)
    differences = [_difference(claim, arm, than) for arm, than, _ in pairs]
    interval = mean_interval(differences, resolution)
    return ClaimResult(
        text=claim.text,
        kind=claim.kind,
        metric=claim.metric,
        arm=claim.arm,
        than=claim.than,
        direction=claim.direction,
        verdict="inconclusive",
        effect=_finite(interval.mean),
        low=_finite(interval.low),
        high=_finite(interval.high),
        p_value=_p_value(claim, differences, resolution),
        p_holm=None,
        n=interval.num_values,
        reason=left_out,
    )


def _difference(claim: Claim, arm: float, than: float) -> float:
    return 1 - arm / than if claim.kind == "faster" else arm - than


def _sign(claim: Claim) -> int:
    """Return +1 where a positive effect speaks for the claim."""
    return 1 if claim.kind == "faster" or claim.direction == "higher" else -1


def _p_value(claim: Claim, differences: Sequence[float], resolution: float) -> float | None:
    if len(differences) < 2:
        return None
    mean = math.fsum(differences) / len(differences)
    error = _standard_error(differences, mean, resolution)
    towards = mean * _sign(claim)
    beyond = towards - claim.margin if towards > 0 else -towards
    if beyond <= 0:
        return 1.0
    if error == 0:
        return 0.0
    return 2 * float(_extras.scipy_stats().t.sf(beyond / error, len(differences) - 1))


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values after Holm's step-down correction; those that are missing stay so."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        adjusted[place] = least
    return adjusted


def _judge(result: ClaimResult, claim: Claim, p_holm: float | None) -> ClaimResult:
    verdict, reason = _verdict(result, claim, p_holm)
    told = " ".join(part for part in (reason, result.reason) if part)
    return replace(result, verdict=verdict, p_holm=p_holm, reason=told)


def _verdict(result: ClaimResult, claim: Claim, p_holm: float | None) -> tuple[Verdict, str]:
    if result.effect is None:
        return "inconclusive", "No seed has a result of both arms."
    if result.low is None or result.high is None or p_holm is None:
        return "inconclusive", "One seed gives no interval; at least two are needed."
    ends = sorted(_sign(claim) * end for end in (result.low, result.high))
    significant = p_holm <= 1 - CONFIDENCE
    if ends[0] > claim.margin:
        if significant:
            beyond = f"the margin {claim.margin:g}" if claim.margin else "zero"
            return "supported", f"The interval lies beyond {beyond} in the stated direction."
        return "inconclusive", _after_holm(p_holm)
    if ends[1] < 0:
        if significant:
            return "contradicted", "The interval lies beyond zero in the other direction."
        return "inconclusive", _after_holm(p_holm)
    if ends[0] > 0:
        return "inconclusive", f"The difference is not beyond the margin {claim.margin:g}."
    return "inconclusive", "The interval contains zero."


def _after_holm(p_holm: float) -> str:
    return f"After Holm's correction over the claims p is {p_holm:.2g}, not below 0.05."


def _pair(
    claim: Claim, trials: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[float, float, float]], str]:
    """Return the two arms' values and their resolution, seed by seed, and what was left out."""
    sides = {
        name: {trial["seed"]: trial for trial in trials if trial["arm"] == name}
        for name in (claim.arm, claim.than)
    }
    seeds = sorted(sides[claim.arm].keys() | sides[claim.than].keys())
    pairs, missing = [], []
    for seed in seeds:
        both = [sides[name].get(seed) for name in (claim.arm, claim.than)]
        values = [_value(claim, trial) for trial in both]
        if values[0] is None or values[1] is None:
            missing.append(str(seed))
        else:
            pairs.append((values[0], values[1], max(_resolution(claim, trial) for trial in both)))
    word = "Seed" if len(missing) == 1 else "Seeds"
    verb = "is" if len(missing) == 1 else "are"
    told = (
        f"{word} {', '.join(missing)} {verb} left out: no number of both arms." if missing else ""
    )
    return pairs, told


def _value(claim: Claim, trial: Mapping[str, Any] | None) -> float | None:
    if trial is None or trial.get("status") != "finished":
        return None
    group = trial["timing"] if claim.kind == "faster" else trial["metrics"]
    return _finite(group.get(claim.metric))


def _resolution(claim: Claim, trial: Mapping[str, Any] | None) -> float:
    part, _, quantity = claim.metric.partition("_")
    if trial is None or quantity != "error":
        return 0.0
    count = trial.get("samples", {}).get(part)
    return 1 / count if count else 0.0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
