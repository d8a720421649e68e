"""What the page says, taken from a stored study: values put into words, not yet into HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from lightning_depth.findings import FindingKind, Severity
from lightning_depth.report import _format, _panels
from lightning_depth.report._canvas import symbol
from lightning_depth.report._figures import Figure, Trials, error_figure, gradient_figure
from lightning_depth.report._format import MISSING, is_number, join
from lightning_depth.report._separability import separability_figure
from lightning_depth.report._verdicts import Verdict, answer, verdict

if TYPE_CHECKING:
    from lightning_depth.study import StudyResult

__all__ = ["ArmFindings", "FoundOnce", "Page", "build_page"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class FoundOnce:
    """One kind of finding of an arm, told once for all seeds that show it."""

    kind: str
    severity: str
    runs: str
    since: str
    layers: str
    message: str
    suggestion: str
    source: str


@dataclass(frozen=True)
class ArmFindings:
    """What the callbacks found in an arm; nothing found in some runs is an answer as well."""

    arm: str
    num_runs: int
    found: tuple[FoundOnce, ...]


@dataclass(frozen=True)
class Page:
    """Everything that the template shows, in its order."""

    name: str
    question: str
    answer: str
    verdicts: tuple[Verdict, ...]
    rows: tuple[dict[str, str], ...]
    figures: tuple[Figure, ...]
    findings: tuple[ArmFindings, ...]
    failed: tuple[Record, ...]
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    recipe: str
    keys: Mapping[str, str]
    symbols: tuple[str, ...]


def build_page(result: StudyResult) -> Page:
    """Return the page for a study; only what is stored is read, nothing that it names is run."""
    study: Record = result.study
    arms = list(study["arms"])
    finished: Trials = {
        arm: [t for t in result.trials if t["arm"] == arm and t["status"] == "finished"]
        for arm in arms
    }
    failed = tuple(trial for trial in result.trials if trial["status"] == "failed")
    styles = _panels.styles(arms)
    figures = [
        error_figure(finished, styles),
        gradient_figure(finished),
        separability_figure(finished, styles),
    ]
    return Page(
        name=str(study["name"]),
        question=str(study.get("question") or study["name"]),
        answer=answer(
            [claim.verdict for claim in result.claims],
            num_failed=len(failed),
            num_trials=len(result.trials),
            num_planned=len(study.get("trials") or result.trials),
        ),
        verdicts=tuple(verdict(claim, number) for number, claim in enumerate(result.claims)),
        rows=tuple(_row(row) for row in result.table),
        figures=tuple(figure for figure in figures if figure is not None),
        findings=tuple(ArmFindings(arm, len(own), _findings(own)) for arm, own in finished.items()),
        failed=failed,
        facts=_facts(study, result.trials),
        versions=tuple((str(k), str(v)) for k, v in (study.get("versions") or {}).items()),
        notes=tuple(result.notes),
        recipe=_recipe(study.get("recipe") or {}),
        keys={arm: f"key-{number}" for number, arm in enumerate(arms)},
        symbols=tuple(
            symbol(_panels.key(style), f"key-{number}")
            for number, style in enumerate(styles.values())
        ),
    )


def _row(row: Record) -> dict[str, str]:
    trained = f"{row['finished']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
    return {
        "arm": str(row["arm"]),
        "params": _format.count(row["params"]),
        "multiply_adds": _format.short_count(row["multiply_adds"]),
        "train_error": _error(row, "train_error"),
        "train_interval": _interval(row, "train_error"),
        "val_error": _error(row, "val_error"),
        "val_interval": _interval(row, "val_error"),
        "train_step": _format.duration(row["train_step_s"]),
        "runs": trained,
        "findings": str(row["findings"]) or ("nothing" if row["finished"] else MISSING),
    }


def _error(row: Record, column: str) -> str:
    if row["finished"] and not is_number(row[column]):
        return "not finite"
    return _format.percent(row[column])


def _interval(row: Record, column: str) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if not (is_number(low) and is_number(high)):
        return ""
    return f"{_format.percent(low)} to {_format.percent(high)}"


def _findings(trials: Sequence[Record]) -> tuple[FoundOnce, ...]:
    """Group the findings of an arm's runs by kind, most severe first, causes before effects."""
    groups: dict[tuple[str, str, str], dict[Any, Record]] = {}
    for trial in trials:
        for finding in trial.get("findings") or ():
            place = (str(finding["severity"]), str(finding["kind"]), str(finding.get("source", "")))
            groups.setdefault(place, {}).setdefault(trial["seed"], finding)
    severities = [severity.value for severity in Severity]
    kinds = [kind.value for kind in FindingKind]
    order = sorted(groups, key=lambda place: (_rank(place[0], severities), _rank(place[1], kinds)))
    return tuple(_found(place, groups[place], len(trials)) for place in order)


def _rank(word: str, words: Sequence[str]) -> int:
    return words.index(word) if word in words else len(words)


def _found(place: tuple[str, str, str], seeds: Mapping[Any, Record], num_runs: int) -> FoundOnce:
    severity, kind, source = place
    seed, finding = next(iter(seeds.items()))
    return FoundOnce(
        kind=kind.replace("_", " ").capitalize(),
        severity=severity,
        runs=f"in {len(seeds)} of {num_runs} runs, here seed {seed}"
        if num_runs > 1
        else "in the one run",
        since="" if finding.get("step") is None else f"since step {finding['step']}",
        layers=_shorten([str(layer) for layer in finding.get("layers") or ()]),
        message=str(finding.get("message", "")),
        suggestion=str(finding.get("suggestion", "")),
        source=source,
    )


def _shorten(layers: Sequence[str]) -> str:
    if len(layers) <= 3:
        return ", ".join(layers)
    return f"{layers[0]}, {layers[1]} … {layers[-1]} ({len(layers)} layers)"


def _facts(study: Record, trials: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """Return what was run as (name, value) pairs, in the order of the page."""
    machine = study.get("machine") or {}
    devices = sorted({str((t.get("timing") or {}).get("device", "")) for t in trials} - {""})
    threads = sorted({str((t.get("timing") or {}).get("threads", "")) for t in trials} - {""})
    seeds = study.get("seeds") or ()
    facts = {
        "Command": str(study.get("command") or MISSING),
        "Runs": f"{len(trials)}: {len(study['arms'])} arms, seeds {join([str(s) for s in seeds])}",
        "Machine": ", ".join(
            [str(machine[name]) for name in ("platform", "processor") if machine.get(name)]
            + [f"{cores} CPUs" for cores in [machine.get("cpu_count")] if cores]
        ),
        "Trained on": join(
            [*devices, *(f"{number} thread{'s' * (number != '1')} a run" for number in threads)],
            last=", ",
        ),
        "Workers": str(study.get("workers") or MISSING),
        "Started": _format.moment(study.get("started") or MISSING),
        "Training took": _format.duration(study.get("trial_phase_s")),
        "Study": str(study.get("hash") or MISSING)[:16],
    }
    return tuple((name, value) for name, value in facts.items() if value)


def _recipe(recipe: Record) -> str:
    """Return the recipe as YAML, ready to be copied and run again."""
    text: str = yaml.safe_dump(
        dict(recipe), sort_keys=False, default_flow_style=None, allow_unicode=True, width=88
    )
    return text
