"""The command `study`, and `report` on what it stored, as a user sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_depth.cli import main
from lightning_depth.study.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Capture = pytest.CaptureFixture[str]
RECIPE: dict[str, Any] = {
    "question": "Does <b>depth</b> [bold]help[/bold]?",
    "data": {"name": "digits", "batch_size": 256},
    "seeds": [0, 1],
    "epochs": 1,
    "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}},
    "callbacks": ["TrainingErrorMonitor"],
    "arms": {
        "thin": {"network": {"block": "plain", "hidden_layers": 1, "width": 4}},
        "deep": {"network": {"block": "plain", "hidden_layers": 3, "width": 4}},
    },
    "claims": [{"arm": "deep", "than": "thin"}],
}


def _write(**changes: Any) -> str:
    Path("mine.yaml").write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False))
    return "mine.yaml"


def test_result_is_shown_and_stored_where_it_says(capsys: Capture) -> None:
    assert main(["study", _write()]) == 0
    told = capsys.readouterr().out
    first, *_, last = told.strip().splitlines()
    folder = first.removeprefix("Study mine: ")
    assert re.fullmatch(r"lightning-depth-runs/mine-[0-9a-f]{8}", folder)
    assert last == f"Stored in: {folder}"
    assert Path(folder, "report.html").is_file()
    assert f"Report: {folder}/report.html" in told
    assert re.search(r"\[4/4\] \w+, seed \d: training error 0\.", told)
    assert "Does <b>depth</b> [bold]help[/bold]?" in told
    for column in ("arm", "parameters", "multiply-adds", "training error", "validation error"):
        assert column in told
    assert "what the callbacks found" in told
    assert re.search(r"deep\s+350\s+", told)
    assert re.search(r"deep has a higher training error than thin: \w+\n", told)
    assert re.search(r"Trial phase: 4 trials, 2 at a time, in .* s\)\.", told)


def test_same_command_shows_the_stored_result(capsys: Capture) -> None:
    recipe = _write()
    main(["study", recipe])
    before = capsys.readouterr().out
    assert main(["study", recipe]) == 0
    again = capsys.readouterr().out
    assert "This is the stored result; `--fresh` runs the study again." in again
    assert "[1/4]" not in again
    table = re.compile(r"^  (?:thin|deep) .*$", re.MULTILINE)
    assert table.findall(again) == table.findall(before)
    assert main(["study", recipe, "--fresh", "--workers", "1"]) == 0
    assert "Trial phase: 4 trials, one at a time, in " in capsys.readouterr().out


def test_trial_that_raises_is_told_and_the_status_is_not_zero(capsys: Capture) -> None:
    bad = {"network": {"class_path": "tests.study.nets.Raising"}}
    assert main(["study", _write(arms=RECIPE["arms"] | {"bad": bad}, seeds=[0])]) == 1
    told = capsys.readouterr().out
    assert "bad, seed 0: failed: RuntimeError: the cat sat on the <keyboard>" in told
    assert "Failed: bad, seed 0: RuntimeError: the cat sat on the <keyboard>" in told
    assert "1 failed: RuntimeError: the cat sat on the" in told
    assert "Nothing can be concluded from this study; more seeds would tell more." in told


def test_report_is_rebuilt_from_what_is_stored(capsys: Capture) -> None:
    main(["study", _write(), "--output", "out"])
    Path("out/report.html").unlink()
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert "Report: out/report.html" in capsys.readouterr().out
    assert Path("out/report.html").is_file()
    assert main(["report", "out", "--output", "other.html"]) == 0
    assert Path("other.html").read_text() == Path("out/report.html").read_text()


REFUSALS: dict[str, tuple[Callable[[], list[str]], str]] = {
    "misspelt recipe": (
        lambda: ["study", "degradatoin"],
        "Unknown recipe 'degradatoin'. Did you mean 'degradation'? "
        "Known: degradation, deep_vs_wide.",
    ),
    "epochs of zero": (
        lambda: ["study", _write(epochs=0)],
        "mine.yaml, epochs: `epochs` must be a whole number of at least 1, but got 0.",
    ),
    "depth that the family lacks": (
        lambda: [
            "study",
            _write(arms={"a": {"network": {"block": "plain", "depth": 57, "width": 4}}}, claims=[]),
        ],
        "mine.yaml, arms.a.network.depth: `depth` of a plain net must be 6n+2, but got 57. "
        "The nearest are 56 and 62.",
    ),
    "output that cannot be written": (
        lambda: ["study", _write(), "--output", "mine.yaml/out"],
        "The output folder 'mine.yaml/out' cannot be written: Not a directory.",
    ),
    "folder without a study": (
        lambda: ["report", "nowhere"],
        "The folder 'nowhere' holds no study.",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_gets_one_sentence_and_status_2(
    words: Callable[[], list[str]], sentence: str, capsys: Capture
) -> None:
    assert main(words()) == 2
    assert capsys.readouterr().err == f"lightning-depth: {sentence}\n"


def test_output_that_holds_another_study_is_refused(capsys: Capture) -> None:
    main(["study", _write(seeds=[0]), "--output", "out"])
    capsys.readouterr()
    assert main(["study", _write(seeds=[1]), "--output", "out"]) == 2
    assert re.fullmatch(
        r"lightning-depth: The output folder 'out' holds another study, 'mine' \(\w{8}\), "
        r"not 'mine' \(\w{8}\)\. Choose another `--output`\.\n",
        capsys.readouterr().err,
    )


def test_folder_in_use_is_refused(capsys: Capture) -> None:
    with Store("out").locked("another command"):
        assert main(["study", _write(), "--output", "out"]) == 2
    assert "The output folder 'out' is in use by process " in capsys.readouterr().err


def test_offline_runs_of_wandb_are_grouped_by_study(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["study", _write(seeds=[0]), "--wandb", "--output", "out"]) == 0
    runs = list(Path("out/wandb").glob("offline-run-*"))
    assert len(runs) == 2
    stored = b"".join(next(run.glob("*.wandb")).read_bytes() for run in runs)
    assert b"deep-seed0" in stored
    assert b"thin-seed0" in stored
    assert len(re.findall(rb"mine-[0-9a-f]{8}", stored)) >= 2
    for key in (b"train_error/error", b"train_error/loss", b"val/error", b"val/loss"):
        assert b"final/" + key in stored
