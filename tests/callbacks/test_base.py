"""What every callback of the package shares, tried on one that only counts."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from lightning_depth import _extras
from lightning_depth.callbacks import FindingError, FindingWarning, _logging
from lightning_depth.callbacks._base import DepthCallback, OnFinding
from lightning_depth.callbacks._history import History
from lightning_depth.callbacks._logging import run_folder
from lightning_depth.errors import ConfigurationError, MisuseError
from lightning_depth.findings import Finding, FindingKind, Severity
from tests.callbacks._runs import (
    BATCH_SIZE,
    NUM_BATCHES,
    Toy,
    as_batch,
    fit,
    loader,
    samples,
    trainer,
)

DEAD = Finding(
    *(FindingKind.DEAD, Severity.WARNING, ("net.1",), 0.5, 0.1),
    *("Half the units are dead.", "Lower the learning rate."),
)
IDLE = Finding(FindingKind.IDLE, Severity.INFO, (), 0.0, 0.0, "It idles.", "Take fewer layers.")


class Counter(DepthCallback):
    """Counts steps; makes a finding at one step, concludes another at the end."""

    def __init__(
        self,
        finding: Finding | None = None,
        at_step: int = 2,
        conclusion: Finding | None = None,
        on_finding: OnFinding = "log",
        prefix: str = "counter",
    ) -> None:
        super().__init__(prefix, on_finding, History(floats=("count",)))
        self.finding, self.at_step, self.conclusion = finding, at_step, conclusion
        self.closed = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._history.append(step=trainer.global_step, layer=("net",), count=[1.0])
        self._log(pl_module, {"count": 2})
        if self.finding is not None and trainer.global_step >= self.at_step:
            self._add_finding(trainer, self.finding)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, {"total": torch.tensor(3.0)}, epoch_end=True)
        self._log_figure(trainer)

    def plot(self) -> tuple[Figure, Axes]:
        figure = Figure(figsize=(1, 1))
        return figure, figure.subplots()

    def _conclude(self, trainer: Trainer) -> list[Finding]:
        return [] if self.conclusion is None else [self.conclusion]

    def _detach(self) -> None:
        self.closed += 1


def _boxes(text: str) -> int:
    return text.count("+-- depth verdict")


# Findings


def test_finding_is_kept_once_with_its_source() -> None:
    counter = Counter(DEAD)
    fit(counter)
    assert [(found.kind, found.source) for found in counter.findings] == [
        (FindingKind.DEAD, "Counter")
    ]


def test_findings_are_ranked() -> None:
    counter = Counter(IDLE, conclusion=DEAD)
    fit(counter)
    assert [found.kind for found in counter.findings] == [FindingKind.DEAD, FindingKind.IDLE]


def test_log_says_the_finding_where_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Counter(DEAD, on_finding="log"))
    assert "DEAD: Half the units are dead. Lower the learning rate.\n" in capsys.readouterr().out


def test_warn_warns_once() -> None:
    sentence = r"^DEAD: Half the units are dead\. Lower the learning rate\.$"
    with pytest.warns(FindingWarning, match=sentence) as caught:
        fit(Counter(DEAD, on_finding="warn"))
    assert [warning.category for warning in caught].count(FindingWarning) == 1


def test_stop_ends_training_after_the_step() -> None:
    counter = Counter(DEAD, at_step=3, on_finding="stop")
    fit(counter)
    assert counter.history["step"] == [1, 2, 3]


def test_raise_ends_the_run_with_the_finding() -> None:
    counter = Counter(DEAD, on_finding="raise")
    sentence = r"^DEAD: Half the units are dead\. Lower the learning rate\.$"
    with pytest.raises(FindingError, match=sentence):
        fit(counter)
    assert counter.findings[0].kind is FindingKind.DEAD


def test_callable_is_handed_findings_of_the_run_and_of_its_end() -> None:
    seen: list[Finding] = []

    def note(finding: Finding) -> None:
        seen.append(finding)

    fit(Counter(IDLE, conclusion=DEAD, on_finding=note))
    assert seen == [replace(finding, source="Counter") for finding in (IDLE, DEAD)]


@pytest.mark.parametrize("action", ["warn", "stop", "raise"])
def test_finding_that_is_merely_worth_knowing_waits_for_the_verdict(
    action: OnFinding, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = Counter(IDLE, on_finding=action)
    fit(counter)
    assert len(counter.history["step"]) == 2 * NUM_BATCHES
    assert "IDLE (info)" in capsys.readouterr().out


def test_unknown_action_is_refused() -> None:
    sentence = "^`on_finding` must be one of 'log', 'warn', 'stop', 'raise', but got 'warm'."
    with pytest.raises(ConfigurationError, match=sentence):
        Counter(on_finding="warm")  # type: ignore[arg-type]


# The verdict


def test_one_box_for_all_callbacks(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Counter(DEAD), Counter(conclusion=IDLE, prefix="other"))
    text = capsys.readouterr().out
    assert _boxes(text) == 1
    assert "1. Verdict: DEAD (warning) in net.1" in text
    assert "2. Verdict: IDLE (info)" in text


def test_healthy_run_says_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Counter())
    text = " ".join(re.sub(r"[|+-]+", " ", capsys.readouterr().out).split())
    sentence = "No problem of depth was found in what was measured. Counter took 12 measurements."
    assert sentence in text


def test_run_that_measured_nothing_is_not_called_healthy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit(Counter(), limit_train_batches=0)
    text = capsys.readouterr().out
    assert "Counter took 0 measurements." in text
    assert "No problem of depth" not in text


def test_callback_with_nothing_to_say_prints_no_box(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counter, "_summary", lambda self: "")
    fit(Counter(), limit_train_batches=0)
    assert _boxes(capsys.readouterr().out) == 0


@pytest.mark.parametrize(
    "bar",
    [
        lambda: RichProgressBar(console_kwargs={"force_terminal": True, "width": 100}),
        TQDMProgressBar,
    ],
    ids=["rich", "tqdm"],
)
def test_text_does_not_tear_a_progress_bar(
    bar: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Counter(DEAD), bar(), enable_progress_bar=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    lines = re.split(r"[\r\n]+", plain)
    assert "DEAD: Half the units are dead. Lower the learning rate." in lines
    box = [line for line in lines if line[:1] in ("+", "|")]
    assert box[1].startswith("| 1. Verdict: DEAD (warning) in net.1")
    assert [len(line) for line in box] == [80] * 6


@pytest.mark.parametrize(("columns", "width"), [("20", 40), ("72", 72), ("300", 100)])
def test_box_is_as_wide_as_the_terminal(
    columns: str,
    width: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    fit(Counter(DEAD), max_epochs=1)
    box = [line for line in capsys.readouterr().out.splitlines() if line[:1] in ("+", "|")]
    assert {len(line) for line in box} == {width}


def test_findings_so_far_are_told_after_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FindingError):
        fit(Counter(DEAD, on_finding="raise"), Counter(conclusion=IDLE, prefix="other"))
    text = capsys.readouterr().out
    assert _boxes(text) == 1
    assert "IDLE" not in text


def test_run_that_broke_off_is_not_called_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Toy):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        fit(Counter(), module=Broken(), num_sanity_val_steps=0, default_root_dir=tmp_path)
    assert _boxes(capsys.readouterr().out) == 0
    assert not (tmp_path / "findings.json").exists()


def test_findings_are_written_beside_the_logs(tmp_path: Path) -> None:
    nan = Finding(FindingKind.NON_FINITE, Severity.CRITICAL, (), float("nan"), 0.0, "NaN.", "Stop.")
    fit(Counter(IDLE, conclusion=nan), logger=CSVLogger(tmp_path, name="runs", version="a"))
    written = json.loads((tmp_path / "runs" / "a" / "findings.json").read_text())
    assert written["schema"] == 1
    assert [row["kind"] for row in written["findings"]] == ["NON_FINITE", "IDLE"]
    assert written["findings"][0]["value"] is None
    assert Finding.from_dict(written["findings"][1]).source == "Counter"


def test_findings_are_written_to_a_given_root(tmp_path: Path) -> None:
    fit(Counter(DEAD), default_root_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "counter-profile.png",
        "findings.json",
    ]


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}, {"barebones": True}])
def test_nothing_is_written_unasked(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "fast_dev_run" in options:
        options = {**options, "default_root_dir": str(tmp_path / "root")}
    fit(Counter(DEAD, conclusion=IDLE), **options)
    assert list(tmp_path.rglob("*")) == []


def test_folder_that_cannot_be_written_is_told_and_the_run_succeeds(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    sentence = r"^lightning-depth could not write .*root/[a-z-]*\.[a-z]*: .*File exists.*\.$"
    with pytest.warns(UserWarning, match=sentence) as caught:
        fit(Counter(DEAD), default_root_dir=tmp_path / "root")
    told = " ".join(str(warning.message) for warning in caught)
    assert re.findall(r"([a-z.-]+): \[Errno", told) == ["counter-profile.png", "findings.json"]


@pytest.mark.parametrize("option", ["fast_dev_run", "barebones"])
def test_trial_runs_print_no_box(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {option: True}
    fit(Counter(conclusion=DEAD), **options)
    assert _boxes(capsys.readouterr().out) == 0


def test_folder_of_a_remote_run_is_not_a_local_path() -> None:
    logger = SimpleNamespace(save_dir="s3://bucket/runs", name="a", version="b")
    assert run_folder(SimpleNamespace(loggers=[logger], default_root_dir="x")) is None  # type: ignore[arg-type]


# Logging


def _rows(folder: Path) -> list[dict[str, str]]:
    import csv

    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_scalars_are_logged_under_the_prefix_on_lightnings_axis(tmp_path: Path) -> None:
    fit(Counter(), logger=CSVLogger(tmp_path, name="", version=""), limit_val_batches=0)
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows if row["counter/count"]] == [
        str(step) for step in range(2 * NUM_BATCHES)
    ]
    assert {row["step"]: row["counter/total"] for row in rows if row["counter/total"]} == {
        "5": "3.0",
        "11": "3.0",
    }


def test_logged_scalars_can_be_monitored() -> None:
    run = trainer(Counter(), max_epochs=1)
    run.fit(Toy(), loader(), loader())
    assert run.callback_metrics["counter/total"] == 3.0


def test_size_of_a_batch_of_an_unknown_type_is_not_guessed() -> None:
    class Validating(Counter):
        def on_validation_batch_end(self, *arguments: Any) -> None:
            self._log(arguments[1], {"seen": 1.0})

    run = trainer(Validating())
    train, val = (DataLoader(samples(), BATCH_SIZE, collate_fn=as_batch) for _ in range(2))
    run.fit(Toy(), train, val)
    assert run.callback_metrics["counter/seen"] == 1.0


def test_figures_reach_tensorboard_at_the_step_of_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(
        logger.experiment,
        "add_figure",
        lambda key, figure, global_step: shown.append((key, global_step)),
    )
    fit(Counter(), logger=logger)
    assert shown == [("counter/profile", 11)]
    assert not list(tmp_path.glob("*.png"))


def test_other_loggers_get_the_last_figure_as_a_file(tmp_path: Path) -> None:
    fit(Counter(), logger=CSVLogger(tmp_path, name="", version=""))
    assert [path.name for path in tmp_path.glob("*.png")] == ["counter-profile.png"]


def test_without_matplotlib_no_figure_is_drawn_and_one_sentence_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_extras, "available", lambda package: package != "matplotlib")
    _logging._explain_missing_figures.cache_clear()
    fit(Counter(), logger=CSVLogger(tmp_path, name="", version=""))
    assert not list(tmp_path.glob("*.png"))
    sentence = (
        "lightning-depth draws no figures because matplotlib is not installed; "
        "install it with `pip install lightning-depth[plot]`.\n"
    )
    assert capsys.readouterr().out.count(sentence) == 1


# State


def test_reading_before_a_run_is_refused() -> None:
    for what in ("findings", "history"):
        sentence = (
            f"^`Counter.{what}` cannot be read because no run has reached this object: call "
            "`trainer.fit` first; where a spawning or forking strategy ran, rank zero left "
            r"nothing\.$"
        )
        with pytest.raises(MisuseError, match=sentence):
            getattr(Counter(), what)


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    counter = Counter(DEAD)
    fit(counter)
    torch.save(counter.state_dict(), tmp_path / "state.pt")
    other = Counter()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.history == counter.history
    assert other.findings == counter.findings


def test_state_of_another_class_is_ignored() -> None:
    counter = Counter()
    counter.load_state_dict({"wait_count": 3})
    with pytest.raises(MisuseError):
        _ = counter.findings


def test_second_trainer_begins_anew() -> None:
    counter = Counter(DEAD)
    fit(counter)
    fit(counter, max_epochs=1)
    assert counter.history["step"] == list(range(1, NUM_BATCHES + 1))
    assert len(counter.findings) == 1


def test_second_fit_of_one_trainer_goes_on() -> None:
    counter, toy = Counter(), Toy()
    run = trainer(counter, max_epochs=1)
    run.fit(toy, loader(), loader())
    run.fit_loop.max_epochs = 2
    run.fit(toy, loader(), loader())
    assert counter.history["step"] == list(range(1, 2 * NUM_BATCHES + 1))


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda value: pickle.loads(pickle.dumps(value)),
        lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
    ],
    ids=["deepcopy", "pickle", "cloudpickle"],
)
@pytest.mark.parametrize("after_fit", [False, True])
def test_copies_are_equal(again: Callable[[Any], Any], after_fit: bool) -> None:
    counter = Counter(DEAD)
    if after_fit:
        fit(counter)
    other = again(counter)
    assert vars(other) == counter.__getstate__()
    fit(other, max_epochs=1)
    assert len(other.history["step"]) == NUM_BATCHES


def test_hooks_are_removed_after_a_run_and_after_an_exception() -> None:
    counter = Counter()
    fit(counter)
    assert counter.closed == 1
    with pytest.raises(FindingError):
        fit(counter_that_raises := Counter(DEAD, on_finding="raise"))
    assert counter_that_raises.closed == 1


def test_subclass_without_a_plot_says_so() -> None:
    with pytest.raises(NotImplementedError):
        DepthCallback("x").plot()
