"""What the page says, taken from a stored study: values put into words, not yet into HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_depth.findings import FindingKind, Severity
from lightning_depth.report import _format, _panels
from lightning_depth.report._canvas import embed
from lightning_depth.report._figures import Figure, Trials, error_figure, gradient_figure
from lightning_depth.report._format import MISSING, is_number, join
from lightning_depth.report._separability import separability_figure

if TYPE_CHECKING:
    from lightning_depth.study import StudyResult

__all__ = ["ArmFindings", "FoundOnce", "Page", "Verdict", "build_page"]

Record = Mapping[str, Any]
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


@dataclass(frozen=True)
class FoundOnce:
    """One kind of finding of an arm, told once for all seeds that show it."""

    kind: str
    severity: str
    runs: str
    layers: str
    message: str
    suggestion: str
    source: str


@dataclass(frozen=True)
class ArmFindings:
    """What the callbacks found in an arm; an empty list is an answer as well."""

    arm: str
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
    recipe: Any
    keys: Mapping[str, str]


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
        answer=_answer([claim.verdict for claim in result.claims], failed, len(result.trials)),
        verdicts=_verdicts(result.claims),
        rows=tuple(_row(row) for row in result.table),
        figures=tuple(figure for figure in figures if figure is not None),
        findings=tuple(ArmFindings(arm, _findings(own)) for arm, own in finished.items()),
        failed=failed,
        facts=_facts(study, result.trials),
        versions=tuple((str(k), str(v)) for k, v in (study.get("versions") or {}).items()),
        notes=tuple(result.notes),
        recipe=study.get("recipe"),
        keys={
            arm: embed(_panels.key(style), f"key-{number}", "")
            for number, (arm, style) in enumerate(styles.items())
        },
    )


def _answer(words: Sequence[str], failed: Sequence[Record], num_trials: int) -> str:
    """Return the first sentence of the page: how many claims came out how."""
    counts = Counter(words)
    if not words:
        sentence = "This study states no claim; the table and the figures show what was measured."
    elif set(words) == {"inconclusive"}:
        sentence = "Nothing can be concluded from this study."
    else:
        parts = [f"{counts[word]} {word}" for word in WORDS if counts[word]]
        sentence = f"Of {len(words)} claim{'s' * (len(words) > 1)}: {join(parts)}."
    if failed:
        sentence += f" {len(failed)} of {num_trials} runs failed and are left out."
    return sentence


def _verdicts(claims: Sequence[Any]) -> tuple[Verdict, ...]:
    return tuple(_verdict(claim, number) for number, claim in enumerate(claims))


def _verdict(claim: Any, number: int) -> Verdict:
    factor, unit = _unit(claim)
    edges = [
        factor * edge if is_number(edge) else None for edge in (claim.effect, claim.low, claim.high)
    ]
    told, caption = _told(edges, unit), _caption(claim, unit)
    svg = None
    if None not in edges:
        alternative = f"{caption}: {told}."
        svg = embed(_panels.interval(*edges), f"claim-{number}", alternative)
    reason = " ".join(part for part in (str(claim.reason), _evidence(claim)) if part)
    return Verdict(str(claim.verdict), str(claim.text), told, reason, svg, caption)


def _unit(claim: Any) -> tuple[float, str]:
    """Return what an effect is multiplied by to be shown, and the unit it then has."""
    if claim.kind == "faster":
        return 100.0, "%"
    return (100.0, "points") if str(claim.metric).endswith("error") else (1.0, "")


def _caption(claim: Any, unit: str) -> str:
    if claim.kind == "faster":
        return f"Time saved by {claim.arm} against {claim.than}, in %"
    metric = str(claim.metric).replace("train_", "training ").replace("val_", "validation ")
    scale = ", in percentage points" if unit else ""
    return f"{metric.capitalize()} of {claim.arm} minus that of {claim.than}{scale}"


def _told(edges: Sequence[float | None], unit: str) -> str:
    effect, low, high = (_format.signed(edge) for edge in edges)
    if edges[0] is None:
        return ""
    interval = f", 95 % interval {low} to {high}" if None not in edges else ""
    return f"{effect} {unit}".strip() + interval


def _evidence(claim: Any) -> str:
    """Return p values and the number of seeds as one sentence."""
    seeds = f"{claim.n} seed{'s' * (claim.n != 1)}"
    if not is_number(claim.p_value):
        return f"{seeds}.".capitalize()
    corrected = f" ({_probability(claim.p_holm)} with Holm's correction)"
    holm = corrected if is_number(claim.p_holm) else ""
    return f"p {_probability(claim.p_value)}{holm}, {seeds}."


def _probability(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


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
        "findings": str(row["findings"]),
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
    finding = next(iter(seeds.values()))
    return FoundOnce(
        kind=kind.replace("_", " ").capitalize(),
        severity=severity,
        runs=f"in {len(seeds)} of {num_runs} runs" if num_runs > 1 else "in the one run",
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
            + [f"{machine['cpu_count']} CPUs"] * bool(machine.get("cpu_count"))
        ),
        "Trained on": join(
            [*devices, *(f"{number} thread{'s' * (number != '1')} a run" for number in threads)],
            last=", ",
        ),
        "Workers": str(study.get("workers") or MISSING),
        "Started": _format.moment(study.get("started") or MISSING),
        "Training took": _format.duration(study.get("trial_phase_s")),
        "Study": str(study.get("hash") or MISSING),
    }
    return tuple((name, value) for name, value in facts.items() if value)
