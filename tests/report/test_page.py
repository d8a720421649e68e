from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_depth.report._page import build_page
from lightning_depth.report._verdicts import answer, verdict
from lightning_depth.study import ClaimResult, StudyResult

FINDING = {"severity": "info", "kind": "IDLE", "message": "m", "suggestion": "s"}


def _claim(**changed: Any) -> ClaimResult:
    known: dict[str, Any] = {
        "text": "deep is worse",
        "kind": "comparison",
        "metric": "train_error",
        "arm": "deep",
        "than": "thin",
        "direction": "higher",
        "verdict": "supported",
        "effect": 0.81,
        "low": 0.742,
        "high": 0.878,
        "p_value": 0.0004,
        "p_holm": 0.00004,
        "n": 3,
        "reason": "Because.",
    }
    return ClaimResult(**(known | changed))


def test_difference_of_errors_is_told_in_points() -> None:
    told = verdict(_claim(), 0)
    assert told.numbers == "+81.0 points, 95 % interval +74.2 to +87.8"
    assert told.reason == "Because. p = 0.0004 (< 0.0001 with Holm's correction), 3 seeds."
    assert told.caption == "Training error of deep minus that of thin, in percentage points"


def test_difference_of_losses_keeps_its_unit() -> None:
    told = verdict(_claim(metric="val_loss", effect=-1.5, low=-2.0, high=-1.0), 0)
    assert told.numbers == "−1.50, 95 % interval −2.00 to −1.00"
    assert told.caption == "Validation loss of deep minus that of thin"


def test_share_of_time_saved_is_told_in_percent() -> None:
    told = verdict(_claim(kind="faster", metric="train_step_s", effect=0.3, low=0.25, high=0.35), 0)
    assert told.numbers == "+30.0 %, 95 % interval +25.0 to +35.0"
    assert told.caption == "Time saved by deep against thin, in %"


def test_one_seed_has_an_effect_but_no_interval() -> None:
    told = verdict(_claim(low=None, high=None, p_value=None, p_holm=None, n=1), 0)
    assert (told.numbers, told.reason, told.svg) == ("+81.0 points", "Because. 1 seed.", None)


def test_claim_without_a_pair_of_runs_has_no_numbers() -> None:
    none = dict.fromkeys(("effect", "low", "high", "p_value", "p_holm"))
    told = verdict(_claim(**none, n=0), 0)
    assert (told.numbers, told.reason, told.svg) == ("", "Because. 0 seeds.", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "This study states no claim; the table and the figures show what was measured."),
        (["contradicted"], "The claim is contradicted."),
        (["supported"] * 2, "Both claims are supported."),
        (["supported"] * 3, "All 3 claims are supported."),
        (
            ["inconclusive", "supported", "supported"],
            "Of 3 claims: 2 supported and 1 inconclusive.",
        ),
        (["inconclusive", "inconclusive"], "Nothing can be concluded from this study."),
    ],
)
def test_first_sentence_counts_the_verdicts(words: list[str], sentence: str) -> None:
    assert answer(words, 0, 3, 3) == sentence


def test_first_sentence_says_what_is_missing() -> None:
    assert answer(["supported"], 1, 4, 6) == (
        "The claim is supported. 1 of 6 runs failed and are left out. "
        "2 of 6 runs are still to be made."
    )


def _study(findings: dict[int, list[dict[str, Any]]]) -> StudyResult:
    trials = [
        {"arm": "a", "seed": seed, "status": "finished", "findings": own}
        for seed, own in findings.items()
    ]
    return StudyResult(Path("out"), {"name": "one", "arms": {"a": {}}}, trials, [], [])


def test_severe_findings_come_first_and_causes_before_effects() -> None:
    found = [
        FINDING,
        FINDING | {"kind": "VANISHING", "severity": "critical"},
        FINDING | {"kind": "NON_FINITE", "severity": "critical"},
        FINDING | {"kind": "UNHEARD_OF", "severity": "odd"},
    ]
    told = build_page(_study({0: found})).findings[0].found
    assert [one.kind for one in told] == ["Non finite", "Vanishing", "Idle", "Unheard of"]


def test_finding_of_several_seeds_is_told_once() -> None:
    told = build_page(_study({0: [FINDING, FINDING], 1: [], 2: [FINDING]})).findings[0].found
    assert [(one.kind, one.runs) for one in told] == [("Idle", "in 2 of 3 runs, here seed 0")]


def test_finding_of_the_only_run_counts_nothing() -> None:
    assert build_page(_study({0: [FINDING]})).findings[0].found[0].runs == "in the one run"
