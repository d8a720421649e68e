"""The result of a study, read from its folder: trials, table and claims; runs nothing."""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_depth.errors import ConfigurationError
from lightning_depth.study.claims import ClaimResult, Interval, evaluate_claims, mean_interval
from lightning_depth.study.parts import METRICS, TIMINGS
from lightning_depth.study.spec import Study
from lightning_depth.study.store import Store, write_text
from lightning_depth.study.versions import installed_versions

__all__ = ["StudyResult", "brief"]

_COSTS = ("params", "multiply_adds", "activation_bytes")
_NAMED_VERSIONS = ("lightning-depth", "torch")


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Args:
        folder: Where it is stored.
        study: Content of ``study.json``: what was run, where, and when.
        trials: The stored records, failed ones too, by arm and seed.
        claims: The verdict on each claim.
        table: One row an arm: cost, errors with their intervals, what the callbacks found.
        notes: Sentences on what a reader should know, such as results of other versions.

    Example:
        >>> StudyResult(Path("out"), {"name": "one"}, [], [], []).notes
        []
    """

    folder: Path
    study: Mapping[str, Any]
    trials: list[dict[str, Any]]
    claims: list[ClaimResult]
    table: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: str | Path) -> StudyResult:
        """Return the result stored in a folder.

        Args:
            folder: The output folder of a study.

        Returns:
            The result of the trials that are there.

        Raises:
            ConfigurationError: The folder holds no study that can be read.
        """
        store = Store(folder)
        study = store.read_study()
        if study is None:
            raise ConfigurationError(f"The folder {str(folder)!r} holds no study.")
        spec = Study.from_dict(study["recipe"], str(store.folder / "study.json"))
        trials = _belonging(store.read_trials(), study)
        return cls(
            folder=store.folder,
            study=study,
            trials=trials,
            claims=evaluate_claims(spec.claims, trials),
            table=[_row(arm, study["arms"][arm], trials) for arm in study["arms"]],
            notes=_notes(study, trials),
        )

    @property
    def spec(self) -> Study:
        """Return the study as it was specified."""
        return Study.from_dict(self.study["recipe"], str(self.folder / "study.json"))

    @property
    def arms(self) -> Mapping[str, Any]:
        """Return cost, network and width of every arm by name."""
        arms: Mapping[str, Any] = self.study["arms"]
        return arms

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Return the records of the trials that failed."""
        return [trial for trial in self.trials if trial["status"] == "failed"]

    @property
    def complete(self) -> bool:
        """Return whether every trial of the study has finished."""
        done = {trial["key"] for trial in self.trials if trial["status"] == "finished"}
        return set(self.study["trials"]) <= done

    def write_report(self, path: str | Path) -> Path:
        """Write the report as one HTML file that needs nothing else.

        Args:
            path: The file.

        Returns:
            The file.
        """
        # The report stands above the study: it reads results, and the study knows it by name only.
        report = importlib.import_module("lightning_depth.report")
        report.write_report(self, Path(path))
        return Path(path)

    def write_csv(self, path: str | Path) -> Path:
        """Write one row a trial as CSV.

        Args:
            path: The file.

        Returns:
            The file.
        """
        columns = ("arm", "seed", "status", *_COSTS, *METRICS, *TIMINGS, "fit_s", "key")
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for trial in self.trials:
            cost = self.study["arms"][trial["arm"]]["cost"]
            writer.writerow({**cost, **trial["metrics"], **trial["timing"], **trial})
        write_text(Path(path), stream.getvalue())
        return Path(path)


def brief(error: Mapping[str, str]) -> str:
    """Return what went wrong in a trial in one line.

    Args:
        error: The ``error`` of its record.

    Returns:
        Class and first line of the message.

    Example:
        >>> brief({"type": "ValueError", "message": "no luck"})
        'ValueError: no luck'
    """
    first, *_ = error["message"].strip().splitlines() or [""]
    return f"{error['type']}: {first}"


def _belonging(trials: list[dict[str, Any]], study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the trials of the study as it stands, by arm in the recipe's order, then seed."""
    arms, keys = list(study["arms"]), set(study["trials"])
    mine = [trial for trial in trials if trial["key"] in keys]
    return sorted(mine, key=lambda trial: (arms.index(trial["arm"]), trial["seed"]))


def _row(
    arm: str, planned: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    mine = [trial for trial in trials if trial["arm"] == arm]
    finished = [trial for trial in mine if trial["status"] == "finished"]
    row: dict[str, Any] = {"arm": arm, **planned["cost"], "width": planned["width"]}
    for metric in METRICS:
        values = _values(finished, "metrics", metric)
        ends = _ends(mean_interval(values, _resolution(finished, metric)), metric)
        row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), ends, strict=True))
    for timing in TIMINGS:
        values = _values(finished, "timing", timing)
        row[timing] = mean_interval(values).mean if values else None
    row["finished"], row["failed"] = len(finished), len(mine) - len(finished)
    row["findings"] = _findings(finished)
    row["reason"] = _reason(mine)
    return row


def _ends(interval: Interval, metric: str) -> list[float | None]:
    """Return mean, low and high, None for what is not known; an error lies between 0 and 1."""
    low, high = interval.low, interval.high
    if metric.endswith("error"):
        low, high = max(low, 0.0), min(high, 1.0)
    return [value if math.isfinite(value) else None for value in (interval.mean, low, high)]


def _values(trials: Sequence[Mapping[str, Any]], group: str, name: str) -> list[float]:
    found = [trial[group].get(name) for trial in trials]
    return [value for value in found if value is not None]


def _resolution(trials: Sequence[Mapping[str, Any]], metric: str) -> float:
    part, _, quantity = metric.partition("_")
    counts = [trial.get("samples", {}).get(part) for trial in trials]
    return (
        max((1 / count for count in counts if count), default=0.0) if quantity == "error" else 0.0
    )


def _findings(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return what was found and in how many trials, the most frequent first."""
    counts = Counter(
        kind for trial in trials for kind in sorted({row["kind"] for row in trial["findings"]})
    )
    return ", ".join(f"{kind} {count}/{len(trials)}" for kind, count in counts.most_common())


def _reason(trials: Sequence[Mapping[str, Any]]) -> str:
    errors = {brief(trial["error"]) for trial in trials if trial["status"] == "failed"}
    return "; ".join(sorted(errors))


def _notes(study: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> list[str]:
    here, notes = installed_versions(), []
    for package in _NAMED_VERSIONS:
        others = Counter(
            trial["versions"][package]
            for trial in trials
            if trial["versions"].get(package, here[package]) != here[package]
        )
        notes += [
            f"{count} of {len(trials)} trials were run with {package} {other}; "
            f"installed is {here[package]}."
            for other, count in others.items()
        ]
    missing = len(study["trials"]) - len(trials)
    if missing:
        notes.append(f"{missing} of {len(study['trials'])} trials have not been run yet.")
    return notes
