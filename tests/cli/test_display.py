"""The progress display: what runs, what is left, how long it will take."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lightning_depth.cli import _display
from lightning_depth.cli._display import Display, duration
from lightning_depth.study import Event, Trial

TRIALS = [
    Trial("deep", 0, {"epochs": 4}, weight=30.0),
    Trial("thin", 0, {"epochs": 4}, weight=10.0),
]
DONE: dict[str, Any] = {
    "status": "finished",
    "metrics": {"train_error": 0.25},
    "timing": {"fit_s": 12.3},
}
FAILED = {"status": "failed", "error": {"type": "ValueError", "message": "no [bold]luck[/bold]"}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_display.time, "perf_counter", lambda: now[0])
    return now


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=120, color_system=None), stream


def test_plain_lines_tell_outcome_and_time_left(clock: list[float]) -> None:
    console, stream = _console(terminal=False)
    with Display(console) as display:
        for trial in TRIALS:
            display.tell(Event("queued", trial))
        display.tell(Event("started", TRIALS[0]))
        clock[0] += 30
        display.tell(Event("finished", TRIALS[0], record=DONE))
        display.tell(Event("started", TRIALS[1]))
        display.tell(Event("finished", TRIALS[1], record=FAILED))
    assert stream.getvalue().splitlines() == [
        "[1/2] deep, seed 0: training error 0.250 after 12 s; about 10 s left",
        "[2/2] thin, seed 0: failed: ValueError: no [bold]luck[/bold]",
    ]


def test_terminal_shows_what_runs_and_its_epochs(clock: list[float]) -> None:
    console, stream = _console(terminal=True)
    with Display(console) as display:
        for trial in TRIALS:
            display.tell(Event("queued", trial))
        display.tell(Event("started", TRIALS[0]))
        clock[0] += 10
        display.tell(Event("epoch", TRIALS[0], epoch=2))
        display._progress.refresh()
    shown = stream.getvalue()
    assert "deep, seed 0" in shown
    assert "2/4 epochs" in shown
    assert "0/2 trials" in shown
    assert "about 17 s left" in shown  # 15 of 40 took 10 s


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.51, "0.5 s"), (42.4, "42 s"), (61.0, "1 min 1 s"), (3723.0, "1 h 2 min")],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_number_of_trials_is_kept_for_the_last_words() -> None:
    console, _ = _console(terminal=False)
    with Display(console) as display:
        display.tell(Event("queued", TRIALS[0]))
    assert (display.num_queued, display.num_finished) == (1, 0)
