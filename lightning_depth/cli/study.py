"""``lightning-depth study``: run or resume a study and show what it says."""

from __future__ import annotations

import argparse
import sys

from lightning_depth.cli._display import Display, duration
from lightning_depth.cli._show import make_console, show_result
from lightning_depth.study import Study, StudyResult, choose_folder, run_study

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Run the study of a recipe.

    Args:
        arguments: The parsed command line.

    Returns:
        0, or 1 where a trial failed.
    """
    console = make_console()
    study = Study.from_yaml(arguments.recipe)
    folder = choose_folder(study, arguments.output)
    console.print(f"Study {study.name}: {folder}", markup=False, soft_wrap=True)
    try:
        with Display(console) as display:
            result = run_study(
                study,
                output=folder,
                workers=arguments.workers,
                fresh=arguments.fresh,
                wandb=arguments.wandb,
                on_event=display.tell,
            )
    except KeyboardInterrupt:
        sys.stderr.write(f"lightning-depth: {_stopped(display, folder)}\n")
        return 130
    show_result(console, result, folder / "report.html", _what_ran(result, display.num_finished))
    return 1 if result.failed else 0


def _stopped(display: Display, folder: object) -> str:
    if not display.num_queued:
        return "stopped before the first trial."
    return (
        f"stopped; {display.num_finished} of the {display.num_queued} trials that were left have "
        f"finished and are kept in {str(folder)!r}. The same command goes on from there."
    )


def _what_ran(result: StudyResult, num_run: int) -> str:
    if not num_run:
        return "This is the stored result; `--fresh` runs the study again."
    seconds, workers = result.study["trial_phase_s"], result.study["workers"]
    trials = "1 trial" if num_run == 1 else f"{num_run} trials"
    side = f"{workers} at a time" if workers > 1 else "one at a time"
    return f"Trial phase: {trials}, {side}, in {duration(seconds)} ({seconds:.1f} s)."
