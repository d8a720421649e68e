"""How often the monitors are right: silent on healthy networks, and naming planted faults first.

Run in parts, each of which appends one line a run to a file, then render the tables::

    python -m tests.benchmarks.calibration healthy --seeds 0 1 2 --out runs.jsonl
    python -m tests.benchmarks.calibration faults --variants A B C --out runs.jsonl
    python -m tests.benchmarks.calibration render --out runs.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_depth.callbacks import ActivationMonitor, GradientFlowMonitor, TrainingErrorMonitor
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.findings import Finding, Severity, rank_findings
from tests.benchmarks._faults import run_fault
from tests.benchmarks._planted import planted_faults
from tests.benchmarks._zoo import fit, healthy_cases

_EVERY = 5
"""Steps between measurements: these runs are a few dozen steps long."""


def _monitors(*, compare_modes: bool) -> list[DepthCallback]:
    monitors: list[DepthCallback] = [
        GradientFlowMonitor(every_n_steps=_EVERY, on_finding=_ignore),
        ActivationMonitor(every_n_steps=_EVERY, on_finding=_ignore),
    ]
    return [*monitors, TrainingErrorMonitor(on_finding=_ignore)] if compare_modes else monitors


def _ignore(finding: Finding) -> None:
    """Findings are read after the run."""


def _found(monitors: list[DepthCallback]) -> list[dict[str, Any]]:
    findings = rank_findings(finding for monitor in monitors for finding in monitor.findings)
    return [finding.to_dict() for finding in findings]


def run_healthy(seeds: list[int], names: list[str]) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        for case in healthy_cases():
            if names and case.name not in names:
                continue
            monitors = _monitors(compare_modes=case.compares_modes)
            begun = time.perf_counter()
            error = fit(case, seed, list(monitors))
            seconds = time.perf_counter() - begun
            yield {
                "part": "healthy", "name": case.name, "seed": seed, "error": error,
                "found": _found(monitors), "seconds": seconds,
            }  # fmt: skip


def run_faults(variants: list[str], names: list[str], seed: int = 0) -> Iterator[dict[str, Any]]:
    for fault in planted_faults():
        if fault.variant in variants and (not names or fault.kind in names):
            monitors = _monitors(compare_modes=fault.compares_modes)
            begun = time.perf_counter()
            run_fault(fault, seed, list(monitors))
            seconds = time.perf_counter() - begun
            yield {
                "part": "faults", "name": fault.kind, "variant": fault.variant,
                "expected": fault.expected, "reason": fault.reason,
                "found": _found(monitors), "seconds": seconds,
            }  # fmt: skip


def _words(found: list[dict[str, Any]]) -> str:
    return ", ".join(finding["kind"] for finding in found) or "nothing"


def render(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the tables of docs/calibration.md."""
    healthy = [run for run in runs if run["part"] == "healthy"]
    alarms = [run for run in healthy if any(map(_is_alarm, run["found"]))]
    yield f"{len(healthy)} healthy runs, {len(alarms)} with a warning."
    yield ""
    yield "| network | error on held-out data, by seed | found |"
    yield "| --- | --- | --- |"
    for name in dict.fromkeys(run["name"] for run in healthy):
        own = [run for run in healthy if run["name"] == name]
        errors = ", ".join(f"{run['error']:.3f}" for run in own)
        words = "; ".join(f"seed {r['seed']}: {_words(r['found'])}" for r in own if r["found"])
        yield f"| {name} | {errors} | {words or 'nothing'} |"
    faults = [run for run in runs if run["part"] == "faults"]
    again = {run["name"] for run in faults if run["variant"] == "C"}
    first = [run for run in faults if run["variant"] == "A"]
    judged = [r for r in faults if r["variant"] == ("C" if r["name"] in again else "B")]
    retired = [run for run in faults if run["variant"] == "B" and run["name"] in again]
    for title, own in (
        ("were judged", judged),
        ("set the thresholds", first),
        ("were judged until they showed a mistake", retired),
    ):
        right = sum(map(_is_right, own))
        yield ""
        yield f"Variants that {title}: {right} of {len(own)} right first."
        yield ""
        yield "| planted fault | expected first | found, in order | |"
        yield "| --- | --- | --- | --- |"
        for run in own:
            verdict = "right" if _is_right(run) else "**missed**"
            expected = " or ".join(run["expected"])
            yield f"| {run['name']} | {expected} | {_words(run['found'])} | {verdict} |"


def _is_alarm(finding: dict[str, Any]) -> bool:
    return finding["severity"] != Severity.INFO.value


def _is_right(run: dict[str, Any]) -> bool:
    found = [finding["kind"] for finding in run["found"]]
    return bool(found) and found[0] in run["expected"] and len(found) <= 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["healthy", "faults", "render"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["A", "B", "C"])
    parser.add_argument("--names", nargs="*", default=[], help="networks or faults, default all")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "render":
        runs = [json.loads(line) for line in options.out.read_text().splitlines()]
        print("\n".join(render(runs)))
        return
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    chosen = (
        run_healthy(options.seeds, options.names)
        if options.part == "healthy"
        else run_faults(options.variants, options.names)
    )
    with options.out.open("a") as file:
        for run in chosen:
            file.write(json.dumps(run) + "\n")
            file.flush()
            print(f"{run['name']}: {_words(run['found'])} in {run['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
