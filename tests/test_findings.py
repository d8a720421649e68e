from __future__ import annotations

import json

import pytest

from lightning_depth.errors import ConfigurationError
from lightning_depth.findings import (
    Finding,
    FindingKind,
    Severity,
    rank_findings,
    render_verdict,
)


def make(kind: FindingKind, severity: Severity = Severity.WARNING, layers: int = 1) -> Finding:
    names = tuple(f"layer{number}" for number in range(1, layers + 1))
    return Finding(kind, severity, names, 0.5, 0.1, f"{kind.value} was seen.", "Mend it.", step=7)


def test_severity_outranks_kind() -> None:
    mild, grave = make(FindingKind.NON_FINITE), make(FindingKind.IDLE, Severity.CRITICAL)
    assert rank_findings([mild, grave]) == [grave, mild]


def test_causes_stand_before_consequences() -> None:
    idle, vanishing = make(FindingKind.IDLE), make(FindingKind.VANISHING)
    assert rank_findings([idle, vanishing]) == [vanishing, idle]


def test_finding_survives_json() -> None:
    finding = make(FindingKind.VANISHING, layers=3)
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


def test_stored_finding_of_unknown_kind_is_refused() -> None:
    row = {**make(FindingKind.DEAD).to_dict(), "kind": "DEDA"}
    with pytest.raises(
        ConfigurationError, match=r"^Unknown finding 'DEDA'\. Did you mean 'DEAD'\?"
    ):
        Finding.from_dict(row)


def test_box_lines_are_equally_wide_and_ascii() -> None:
    box = render_verdict([make(FindingKind.EXPLODING, layers=9)], width=72)
    assert {len(line) for line in box.splitlines()} == {72}
    assert box.isascii()


def test_box_shows_at_most_five_and_counts_the_rest() -> None:
    box = render_verdict([make(kind) for kind in list(FindingKind)[:7]])
    assert box.count("Verdict:") == 5
    assert "... and 2 more" in box


def test_long_list_of_layers_is_shortened() -> None:
    box = render_verdict([make(FindingKind.VANISHING, layers=54)])
    assert "layer1, layer2 ... layer54 (54 layers)" in box
