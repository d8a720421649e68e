"""The one box at the end of fit, and the same findings as a file beside the logs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_depth.findings import Finding, rank_findings, render_verdict

__all__ = ["HEALTHY", "verdict_box", "write_findings"]

HEALTHY = "No problem of depth was found in what was measured."
_NARROWEST, _WIDEST = 40, 100


def verdict_box(findings: Sequence[Finding], notes: Sequence[str], healthy: str) -> str:
    """Return the box for all findings of a run, as wide as the terminal.

    Args:
        findings: What all callbacks of the run found.
        notes: What each callback has to say beside its findings.
        healthy: What to say where nothing was found.
    """
    columns = shutil.get_terminal_size().columns
    width = max(_NARROWEST, min(_WIDEST, columns))
    return render_verdict(findings, healthy=healthy, width=width, notes=notes)


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Write ``findings.json``, which is never seen half-written.

    Args:
        folder: Where to; made if it is not there.
        findings: What all callbacks of the run found.
    """
    rows = [_json_safe(finding.to_dict()) for finding in rank_findings(findings)]
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "findings.json.part"
    text = json.dumps({"schema": 1, "findings": rows}, indent=2, allow_nan=False)
    part.write_text(f"{text}\n", encoding="utf-8")
    part.replace(folder / "findings.json")


def _json_safe(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
