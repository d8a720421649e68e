"""When figures are drawn: at most one an epoch, for a hundredth of the time, and one at the end."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lightning_depth.callbacks
from lightning_depth.callbacks._base import DepthCallback
from lightning_depth.callbacks._figure_pace import FigurePace
from tests.callbacks._runs import (
    NUM_BATCHES,
    Toy,
    every_callback,
    every_observer,
    fit,
    loader,
    make,
    trainer,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Drawer(DepthCallback):
    """Draws at every validation pass and takes its time."""

    def __init__(self, clock: Clock, seconds_an_epoch: float, **options: Any) -> None:
        super().__init__("drawer", "log", **options)
        self.clock, self.seconds_an_epoch = clock, seconds_an_epoch
        self._figure_pace = FigurePace(clock=clock)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.now += self.seconds_an_epoch

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log_figure(trainer)

    def plot(self) -> tuple[Figure, Axes]:
        self.clock.now += 2.0
        figure = Figure(figsize=(1, 1))
        return figure, figure.subplots()


def _shown(monkeypatch: pytest.MonkeyPatch, logger: TensorBoardLogger) -> list[int]:
    steps: list[int] = []
    monkeypatch.setattr(
        logger.experiment, "add_figure", lambda key, figure, global_step: steps.append(global_step)
    )
    return steps


# The rule


def _drawn(pace: FigurePace, clock: Clock, epoch: int, seconds: float) -> None:
    with pace.drawing(epoch):
        clock.now += seconds


def test_first_figure_waits_until_the_guess_is_a_hundredth_of_the_time() -> None:
    clock = Clock()
    pace = FigurePace(clock=clock, seconds=1.0)
    pace.start()
    clock.now = 99.0
    assert not pace.is_due(epoch=0)
    clock.now = 100.0
    assert pace.is_due(epoch=0)


def test_next_figure_waits_a_hundred_times_as_long_as_drawing_takes() -> None:
    clock = Clock()
    pace = FigurePace(clock=clock, seconds=1.0)
    pace.start()
    clock.now = 100.0
    _drawn(pace, clock, epoch=0, seconds=3.0)
    clock.now += 299.0
    assert not pace.is_due(epoch=1)
    clock.now += 1.0
    assert pace.is_due(epoch=1)


def test_estimate_follows_what_drawing_took() -> None:
    clock = Clock()
    pace = FigurePace(clock=clock)
    pace.start()
    for epoch, seconds in enumerate((4.0, 2.0, 1.0)):  # 4, then (4 + 2) / 2 = 3, (3 + 1) / 2 = 2
        _drawn(pace, clock, epoch, seconds)
    assert pace.seconds == 2.0


def test_never_twice_in_an_epoch() -> None:
    clock = Clock()
    pace = FigurePace(clock=clock)
    pace.start()
    _drawn(pace, clock, epoch=3, seconds=0.0)
    clock.now += 1e6
    assert not pace.is_due(epoch=3)
    assert pace.is_due(epoch=4)


def test_drawing_that_fails_counts_too() -> None:
    clock = Clock()
    pace = FigurePace(clock=clock)
    pace.start()

    def run_dry() -> None:
        with pace.drawing(0):
            clock.now += 5.0
            raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match=r"^no ink$"):
        run_dry()
    assert pace.seconds == 5.0
    assert not pace.is_due(epoch=1)


def test_at_most_a_hundredth_of_a_long_run_is_spent_on_figures() -> None:
    clock = Clock()
    pace = FigurePace(clock=clock)
    pace.start()
    spent = 0.0
    for epoch in range(2000):
        clock.now += 7.0
        if pace.is_due(epoch):
            seconds = 0.5 + epoch / 4000  # drawing takes longer as the history grows
            _drawn(pace, clock, epoch, seconds)
            spent += seconds
    assert 0.005 < spent / clock.now < 0.0101


# What loggers get


def test_short_run_sends_one_figure_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    fit(Drawer(Clock(), 1.0), logger=logger, max_epochs=4)
    assert steps == [4 * NUM_BATCHES - 1]


def test_long_epochs_send_a_figure_each_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    fit(Drawer(Clock(), 1000.0), logger=logger)
    assert steps == [NUM_BATCHES - 1, 2 * NUM_BATCHES - 1]


def test_several_validation_passes_of_an_epoch_send_one_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    fit(Drawer(Clock(), 1000.0), logger=logger, val_check_interval=2)
    assert len(steps) == 3  # the first pass of each epoch, and the last state at the end
    assert steps[-1] == 2 * NUM_BATCHES - 1


def test_validation_outside_of_fit_sends_its_figure_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    trainer(Drawer(Clock(), 1.0), logger=logger).validate(Toy(), loader(), verbose=False)
    assert steps == [0]


def test_run_that_breaks_off_sends_the_figure_that_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == NUM_BATCHES + 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        fit(Drawer(Clock(), 1.0), module=Broken(), logger=logger)
    assert steps == [NUM_BATCHES + 2]


@every_observer
def test_every_observer_sends_one_figure_of_a_short_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    fit(make(name), logger=logger)
    assert steps == [2 * NUM_BATCHES - 1]


@every_callback
def test_figures_can_be_turned_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)
    steps = _shown(monkeypatch, logger)
    fit(make(name, figures=False), logger=[logger, CSVLogger(tmp_path, "csv", "")])
    assert steps == []
    assert not list(tmp_path.rglob("*.png"))


@every_callback
def test_figures_is_a_documented_keyword(name: str) -> None:
    kind = getattr(lightning_depth.callbacks, name)
    parameter = inspect.signature(kind).parameters["figures"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is True
    assert "        figures: " in kind.__doc__
