"""The vocabulary of diagnosis: what can be found, how findings are ranked, how they are told."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from html import escape
from typing import Any

from lightning_depth.errors import check_name

__all__ = ["MAX_SHOWN", "Finding", "FindingKind", "Severity", "rank_findings", "render_verdict"]

MAX_SHOWN = 5
"""A verdict shows at most this many findings; the rest are counted and stay in `findings.json`."""


_LINE = 120
"""Letters of a message that its short form keeps."""


class FindingKind(str, Enum):
    """What a finding says, in one word.

    Example:
        >>> FindingKind.VANISHING.value
        'VANISHING'
    """

    NON_FINITE = "NON_FINITE"
    NO_GRADIENT = "NO_GRADIENT"
    EXPLODING = "EXPLODING"
    VANISHING = "VANISHING"
    DEAD = "DEAD"
    SATURATED = "SATURATED"
    COLLAPSED = "COLLAPSED"
    MODE_GAP = "MODE_GAP"
    DEGRADATION = "DEGRADATION"
    UNDERFITTING = "UNDERFITTING"
    OVERFITTING = "OVERFITTING"
    IDLE = "IDLE"
    STILL_IMPROVING = "STILL_IMPROVING"
    INCONCLUSIVE = "INCONCLUSIVE"


class Severity(str, Enum):
    """How much a finding matters.

    ``critical`` breaks training, ``warning`` costs accuracy, ``info`` is worth knowing.

    Example:
        >>> [severity.value for severity in Severity]
        ['critical', 'warning', 'info']
    """

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, repr=False)
class Finding:
    """One diagnosis: what was seen, where, against which threshold, and what to try.

    Args:
        kind: What was found.
        severity: How much it matters.
        layers: Dotted names of the layers concerned, nearest the input first; empty for the
            whole network.
        value: The number that was measured.
        threshold: The number it was held against.
        message: One sentence for people: what was seen, with its number.
        suggestion: One sentence: what to try.
        step: Optimizer step at which the finding was first made, None where it holds for the
            whole run.
        source: Name of the callback that made the finding.

    Example:
        >>> kind, severity = FindingKind.DEAD, Severity.WARNING
        >>> finding = Finding(kind, severity, ("layer1",), 0.5, 0.1, "Half are dead.", "Lower it.")
        >>> Finding.from_dict(finding.to_dict()) == finding
        True
    """

    kind: FindingKind
    severity: Severity
    layers: tuple[str, ...]
    value: float
    threshold: float
    message: str
    suggestion: str
    step: int | None = None
    source: str = ""

    def __repr__(self) -> str:
        """Return what, where and since when in one line."""
        said = textwrap.shorten(self.message, _LINE, placeholder=" ...")
        return f"<Finding {_headline(self)}: {said}>"

    def _repr_html_(self) -> str:
        """Return the finding for a notebook; names and sentences come from outside."""
        held = f"measured {self.value:.3g}, threshold {self.threshold:.3g}"
        return (
            f"<p><b>{escape(_headline(self))}</b> ({held})<br>"
            f"{escape(self.message)}<br><i>Next: {escape(self.suggestion)}</i></p>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain containers, fit for JSON and weights-only checkpoints."""
        row = asdict(self)
        row.update(kind=self.kind.value, severity=self.severity.value, layers=list(self.layers))
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        """Return the finding that ``to_dict`` wrote.

        Args:
            row: What ``to_dict`` returned, or its JSON read back, where a non-finite number may
                have become None.

        Returns:
            The finding.

        Raises:
            ConfigurationError: The kind or severity is unknown.
        """
        return cls(
            kind=FindingKind(
                check_name("finding", row["kind"], [kind.value for kind in FindingKind])
            ),
            severity=Severity(
                check_name("severity", row["severity"], [severity.value for severity in Severity])
            ),
            layers=tuple(row["layers"]),
            value=_number(row["value"]),
            threshold=_number(row["threshold"]),
            message=str(row["message"]),
            suggestion=str(row["suggestion"]),
            step=row.get("step"),
            source=str(row.get("source", "")),
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def rank_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with the most severe first, and causes before their consequences.

    Args:
        findings: In any order; equal ones keep theirs.

    Returns:
        The same findings in rank order.

    Example:
        >>> idle = Finding(FindingKind.IDLE, Severity.INFO, (), 0.0, 0.0, "", "")
        >>> nan = Finding(FindingKind.NON_FINITE, Severity.CRITICAL, (), 1.0, 0.0, "", "")
        >>> [finding.kind.value for finding in rank_findings([idle, nan])]
        ['NON_FINITE', 'IDLE']
    """
    severities, kinds = list(Severity), list(FindingKind)
    return sorted(
        findings,
        key=lambda finding: (severities.index(finding.severity), kinds.index(finding.kind)),
    )


def render_verdict(
    findings: Sequence[Finding],
    healthy: str = "Nothing was found.",
    width: int = 100,
    notes: Sequence[str] = (),
) -> str:
    """Return the "Verdict / Why / Next" box as plain text.

    Args:
        findings: What was found, in any order; at most five are shown.
        healthy: Sentence shown when there are none.
        width: Width of the box in characters.
        notes: Further sentences, one a line or more, shown whatever was found.

    Returns:
        Lines of equal width with an ASCII frame, without a line break at the end.

    Example:
        >>> print(render_verdict([], width=40))
        +-- depth verdict ---------------------+
        | Nothing was found.                   |
        +--------------------------------------+
    """
    inner = width - 4
    ranked = rank_findings(findings)
    lines = [] if ranked else textwrap.wrap(healthy, inner)
    for number, finding in enumerate(ranked[:MAX_SHOWN], 1):
        lines += _paragraph(f"{number}. Verdict: ", _headline(finding), inner)
        lines += _paragraph("   Why:     ", finding.message, inner)
        lines += _paragraph("   Next:    ", finding.suggestion, inner)
    if len(ranked) > MAX_SHOWN:
        lines += textwrap.wrap(
            f"... and {len(ranked) - MAX_SHOWN} more, in findings.json and `.findings`.", inner
        )
    for note in notes:
        lines += _paragraph("- ", note, inner)
    top = f"+-- depth verdict {'-' * (width - 19)}+"
    return "\n".join([top, *(f"| {line:<{inner}} |" for line in lines), f"+{'-' * (width - 2)}+"])


def _headline(finding: Finding) -> str:
    where = f" in {_shorten(finding.layers)}" if finding.layers else ""
    since = f" since step {finding.step}" if finding.step is not None else ""
    return f"{finding.kind.value} ({finding.severity.value}){where}{since}"


def _shorten(layers: Sequence[str], shown: int = 3) -> str:
    if len(layers) <= shown:
        return ", ".join(layers)
    return f"{layers[0]}, {layers[1]} ... {layers[-1]} ({len(layers)} layers)"


def _paragraph(lead: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=" " * len(lead)) or [
        lead.rstrip()
    ]
