"""What came of the claims: the first words of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_depth.report import _format, _panels
from lightning_depth.report._canvas import embed
from lightning_depth.report._format import is_number, join

if TYPE_CHECKING:
    from lightning_depth.study import ClaimResult

__all__ = ["Verdict", "answer", "verdict"]

WORDS = ("supported", "contradicted", "inconclusive")


@dataclass(frozen=True)
class Verdict:
    """One claim with its answer."""

    word: str
    claim: str
    numbers: str
    reason: str
    svg: str | None
    caption: str


def answer(words: Sequence[str], num_failed: int, num_trials: int, num_planned: int) -> str:
    """Return the first sentence of the page: how many claims came out how."""
    counts = Counter(words)
    if not words:
        sentence = "This study states no claim; the table and the figures show what was measured."
    elif set(words) == {"inconclusive"}:
        sentence = "Nothing can be concluded from this study."
    elif len(counts) == 1:
        every = {1: "The claim is", 2: "Both claims are"}.get(
            len(words), f"All {len(words)} claims are"
        )
        sentence = f"{every} {words[0]}."
    else:
        parts = [f"{counts[word]} {word}" for word in WORDS if counts[word]]
        sentence = f"Of {len(words)} claims: {join(parts)}."
    if num_failed:
        sentence += f" {num_failed} of {num_planned} runs failed and are left out."
    if num_trials < num_planned:
        sentence += f" {num_planned - num_trials} of {num_planned} runs are still to be made."
    return sentence


def verdict(claim: ClaimResult, number: int) -> Verdict:
    """Return a claim with its answer, its numbers and its interval as a picture."""
    factor, unit = _unit(claim)
    ends = (claim.effect, claim.low, claim.high)
    edges = [factor * end for end in ends if is_number(end)]
    told, caption, svg = _told(edges, unit), _caption(claim, unit), None
    if len(edges) == 3:
        svg = embed(_panels.interval(*edges), f"claim-{number}", f"{caption}: {told}.")
    reason = " ".join(part for part in (str(claim.reason), _evidence(claim)) if part)
    return Verdict(str(claim.verdict), str(claim.text), told, reason, svg, caption)


def _unit(claim: ClaimResult) -> tuple[float, str]:
    """Return what an effect is multiplied by to be shown, and the unit it then has."""
    if claim.kind == "faster":
        return 100.0, "%"
    return (100.0, "points") if str(claim.metric).endswith("error") else (1.0, "")


def _caption(claim: ClaimResult, unit: str) -> str:
    if claim.kind == "faster":
        return f"Time saved by {claim.arm} against {claim.than}, in %"
    metric = str(claim.metric).replace("train_", "training ").replace("val_", "validation ")
    scale = ", in percentage points" if unit else ""
    return f"{metric.capitalize()} of {claim.arm} minus that of {claim.than}{scale}"


def _told(edges: Sequence[float], unit: str) -> str:
    """Return effect and interval in words; one seed has no interval."""
    words = [_format.signed(edge) for edge in edges]
    if not words:
        return ""
    interval = f", 95 % interval {words[1]} to {words[2]}" if len(words) == 3 else ""
    return f"{words[0]} {unit}".strip() + interval


def _evidence(claim: ClaimResult) -> str:
    """Return p values and the number of seeds as one sentence."""
    seeds = f"{claim.n} seed{'s' * (claim.n != 1)}"
    if not is_number(claim.p_value):
        return f"{seeds}.".capitalize()
    holm = ""
    if is_number(claim.p_holm):
        holm = f" ({_probability(claim.p_holm).removeprefix('= ')} with Holm's correction)"
    return f"p {_probability(claim.p_value)}{holm}, {seeds}."


def _probability(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"
