"""What is seen while a study runs: which trials run, what is left, how long it will take."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from lightning_depth import _extras
from lightning_depth.study import Event, Trial, brief

__all__ = ["Display", "duration"]


class Display:
    """Shows bars in a terminal and plain lines elsewhere.

    Args:
        console: A rich console.
    """

    def __init__(self, console: Any) -> None:
        self.num_queued = 0
        self.num_finished = 0
        self._console = console
        self._begun = 0.0
        self._weight = 0.0
        self._weights_done: dict[str, float] = {}
        self._rows: dict[str, Any] = {}
        progress = _extras.rich("progress")
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[told]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._total = self._progress.add_task("checking the recipe", total=None, told="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tell(self, event: Event) -> None:
        """Show what happened to a trial.

        Args:
            event: What happened.
        """
        getattr(self, f"_on_{event.kind}")(event)

    def _on_queued(self, event: Event) -> None:
        self.num_queued += 1
        self._weight += event.trial.weight
        self._update_total()

    def _on_started(self, event: Event) -> None:
        self._begun = self._begun or time.perf_counter()
        self._rows[event.trial.key] = self._progress.add_task(
            f"  {_label(event.trial)}", total=event.trial.epochs, told=_epochs(event)
        )

    def _on_epoch(self, event: Event) -> None:
        self._weights_done[event.trial.key] = event.trial.weight * event.epoch / event.trial.epochs
        self._progress.update(
            self._rows[event.trial.key], completed=event.epoch, told=_epochs(event)
        )
        self._update_total()

    def _on_finished(self, event: Event) -> None:
        self.num_finished += 1
        self._weights_done[event.trial.key] = event.trial.weight
        self._progress.remove_task(self._rows.pop(event.trial.key))
        self._update_total()
        width = len(str(self.num_queued))
        self._console.print(
            f"[{self.num_finished:>{width}}/{self.num_queued}] {_label(event.trial)}: "
            f"{_outcome(event.record)}{self._left()}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _update_total(self) -> None:
        self._progress.update(
            self._total,
            description="trials",
            total=self.num_queued,
            completed=self.num_finished,
            told=f"{self.num_finished}/{self.num_queued} trials{self._left()}",
        )

    def _left(self) -> str:
        """Return how long the rest will take, judged by the multiply-adds that are done."""
        done = sum(self._weights_done.values())
        if not done or self.num_finished == self.num_queued:
            return ""
        elapsed = time.perf_counter() - self._begun
        return f"; about {duration(elapsed * (self._weight - done) / done)} left"


def duration(seconds: float) -> str:
    """Return a duration for people.

    Args:
        seconds: How long.
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _label(trial: Trial) -> str:
    return f"{trial.arm}, seed {trial.seed}"


def _epochs(event: Event) -> str:
    return f"{event.epoch}/{event.trial.epochs} epochs"


def _outcome(record: Any) -> str:
    if record["status"] == "failed":
        return f"failed: {brief(record['error'])}"
    error = record["metrics"]["train_error"]
    return f"training error {error:.3f} after {duration(record['timing']['fit_s'])}"
