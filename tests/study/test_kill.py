"""A study killed with `kill -9` at any moment goes on where it was, and leaves no worker behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_depth.study import Study, StudyResult, run_study
from lightning_depth.study.store import Store

CLOCKED = {"timing", "started", "finished", "checksum"}
SLOW: dict[str, Any] = {"network": {"class_path": "tests.study.nets.Slow"}}
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "lightning_depth.cli", "study")


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """Return a recipe whose trials last for about a second each."""
    tiny |= {"arms": {"a": SLOW, "b": SLOW, "c": SLOW}, "claims": [], "seeds": [0, 1]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


@pytest.fixture
def started(recipe: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the study as a user would, in a session of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, str(recipe), "--workers", "2", "--output", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def _until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def _members(session: int) -> list[str]:
    """Return the command lines of what lives in a session, zombies apart."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it ended while we looked
                continue
    return found


def _num_stored() -> int:
    return len(list(Path("out/trials").glob("*.json")))


MOMENTS: dict[str, Callable[[], bool]] = {
    "before the first trial": lambda: Path("out/.lock").exists(),
    "in the first trials": lambda: len(list(Path("out/logs").glob("*"))) == 2,
    "between trials": lambda: _num_stored() >= 3,
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_killed_study_goes_on(
    recipe: Path, started: subprocess.Popen[str], moment: Callable[[], bool]
) -> None:
    _until(moment)
    started.send_signal(signal.SIGKILL)
    _until(lambda: not _members(started.pid), 60)
    kept = {path.name: path.stat().st_mtime_ns for path in Path("out/trials").glob("*.json")}
    assert all(Store("out").read_trial(Path(name).stem) for name in kept)

    ran: list[str] = []
    study = Study.from_yaml(recipe)
    resumed = run_study(
        study,
        output="out",
        workers=2,
        on_event=lambda event: ran.append(event.trial.key) if event.kind == "finished" else None,
    )
    assert resumed.complete
    assert len(ran) + len(kept) == 6
    assert not {f"{key}.json" for key in ran} & kept.keys()
    assert {name: Path("out/trials", name).stat().st_mtime_ns for name in kept} == kept
    assert not list(Path("out").rglob("*.part"))
    undisturbed = run_study(study, output="undisturbed", workers=2)
    assert _numbers(resumed) == _numbers(undisturbed)
    assert _table(resumed) == _table(undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_interrupted_study_keeps_what_has_finished_and_says_how_to_go_on(
    started: subprocess.Popen[str],
) -> None:
    _until(lambda: _num_stored() >= 1)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    _, told = started.communicate(timeout=120)
    assert started.returncode == 130
    stored = _num_stored()
    assert told == (
        f"lightning-depth: stopped; {stored} of the 6 trials that were left have finished and are "
        "kept in 'out'. The same command goes on from there.\n"
    )
    _until(lambda: not _members(started.pid), 60)
    assert all(Store("out").read_trial(path.stem) for path in Path("out/trials").glob("*.json"))
    result = StudyResult.load("out")
    assert result.notes == [f"{6 - stored} of 6 trials have not been run yet."]


def _numbers(result: StudyResult) -> list[dict[str, Any]]:
    return [{key: trial[key] for key in trial.keys() - CLOCKED} for trial in result.trials]


def _table(result: StudyResult) -> list[dict[str, Any]]:
    clocked = {"train_step_s", "inference_batch_s"}
    return [{key: row[key] for key in row.keys() - clocked} for row in result.table]
