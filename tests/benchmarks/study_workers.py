"""Seconds of a study with one worker and with two: the trial phase, and the whole command.

    python tests/benchmarks/study_workers.py [RECIPE] [ROUNDS]

Each round runs the study with one worker, with two, and with one again; the last pair is the A/A
line. Needs two idle cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(recipe: str, workers: int, folder: Path) -> tuple[float, float, list[object]]:
    """Return seconds of the trial phase and of the command, and the numbers found."""
    command = [sys.executable, "-m", "lightning_depth.cli", "study", recipe]
    begun = time.perf_counter()
    subprocess.run(
        [*command, "--workers", str(workers), "--output", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    whole = time.perf_counter() - begun
    study = json.loads((folder / "study.json").read_text())
    numbers = [
        (name, trial["metrics"], trial["curves"], trial["callbacks"])
        for name in sorted(path.name for path in (folder / "trials").iterdir())
        for trial in [json.loads((folder / "trials" / name).read_text())]
    ]
    return study["trial_phase_s"], whole, numbers


def main() -> None:
    """Print every round and the medians."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "degradation"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    ratios: dict[str, list[float]] = {"phase": [], "command": [], "A/A": []}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            runs = [run(recipe, n, Path(folder, str(i))) for i, n in enumerate((1, 2, 1))]
        assert runs[0][2] == runs[1][2] == runs[2][2], "the numbers depend on the workers"
        for (phase, whole, _), workers in zip(runs, (1, 2, 1), strict=True):
            print(
                f"round {number}: {workers} worker(s): phase {phase:.1f} s, command {whole:.1f} s"
            )
        one = statistics.mean([runs[0][0], runs[2][0]])
        ratios["phase"].append(runs[1][0] / one)
        ratios["command"].append(runs[1][1] / statistics.mean([runs[0][1], runs[2][1]]))
        ratios["A/A"].append(runs[2][0] / runs[0][0])
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
