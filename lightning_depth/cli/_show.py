"""The result of a study in the terminal: one table, the verdicts, and where the report is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_depth import _extras
from lightning_depth.study import ClaimResult, StudyResult, brief

__all__ = ["make_console", "show_result"]

_COLORS = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}
_PLAIN_WIDTH = 160


def make_console() -> Any:
    """Return a rich console; where the output is no terminal, one wide enough for the table."""
    console = _extras.rich("console").Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    return console


def show_result(console: Any, result: StudyResult, report: Path, ran: str = "") -> None:
    """Print table, verdicts, notes and where everything is.

    Args:
        console: A rich console.
        result: The result.
        report: The report's file.
        ran: One sentence on what was run.
    """
    escape = _extras.rich("markup").escape
    if result.study["question"]:
        console.print(f"\n[bold]{escape(result.study['question'])}[/bold]")
    console.print(_table(result))
    for claim in result.claims:
        console.print(_verdict(claim, escape))
    if result.claims and all(claim.verdict == "inconclusive" for claim in result.claims):
        console.print("Nothing can be concluded from this study; more seeds would tell more.")
    for trial in result.failed:
        told = f"{trial['arm']}, seed {trial['seed']}: {brief(trial['error'])}"
        console.print(f"[red]Failed:[/red] {escape(told)}")
    for note in result.notes:
        console.print(f"Note: {escape(note)}")
    console.print(f"\n{escape(ran)}" if ran else "")
    console.print(f"Report: {escape(str(report))}", soft_wrap=True)
    console.print(f"Stored in: {escape(str(result.folder))}", soft_wrap=True)


def _table(result: StudyResult) -> Any:
    table = _extras.rich("table").Table(box=_extras.rich("box").SIMPLE_HEAD)
    table.add_column("arm", overflow="fold")
    for name in ("parameters", "multiply-adds", "training error", "validation error"):
        table.add_column(name, justify="right")
    table.add_column("what the callbacks found (trials)", overflow="fold")
    text = _extras.rich("text").Text
    for row in result.table:
        cells = (
            row["arm"],
            f"{row['params']:,}",
            f"{row['multiply_adds']:,}",
            _interval(row, "train_error"),
            _interval(row, "val_error"),
            _found(row),
        )
        table.add_row(*map(text, cells))
    table.caption = "mean over seeds with its 95 % interval; training error in eval mode"
    return table


def _interval(row: Mapping[str, Any], metric: str) -> str:
    mean, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    return f"{mean:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _found(row: Mapping[str, Any]) -> str:
    failed = f"{row['failed']} failed: {row['reason']}" if row["failed"] else ""
    return "; ".join(part for part in (failed, row["findings"]) if part) or "-"


def _verdict(claim: ClaimResult, escape: Any) -> str:
    color = _COLORS[claim.verdict]
    return f"{escape(claim.text)}: [bold {color}]{claim.verdict}[/]\n  {escape(_numbers(claim))}"


def _numbers(claim: ClaimResult) -> str:
    if claim.effect is None:
        return claim.reason
    what = "time saved" if claim.kind == "faster" else f"difference of {claim.metric}"
    unit = "{:.1%}" if claim.kind == "faster" else "{:+.3f}"
    told = f"{what} {unit.format(claim.effect)}"
    if claim.low is not None and claim.high is not None and claim.p_holm is not None:
        told += f" [{unit.format(claim.low)}, {unit.format(claim.high)}]"
        told += f", p {claim.p_holm:.2g} after Holm, {claim.n} seeds"
    return f"{told}. {claim.reason}"
