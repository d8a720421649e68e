"""Studies: arms and seeds compared fairly, from a recipe to a verdict on stated claims."""

from __future__ import annotations

from lightning_depth.study.claims import ClaimResult, Interval, evaluate_claims, mean_interval
from lightning_depth.study.executors import InProcessExecutor, LocalExecutor
from lightning_depth.study.jobs import Event, Executor, Job, Trial
from lightning_depth.study.parts import Arm, Claim, Match
from lightning_depth.study.recipes import find_recipe, list_recipes
from lightning_depth.study.result import StudyResult, brief
from lightning_depth.study.run import choose_folder, run_study
from lightning_depth.study.spec import Study

__all__ = [
    "Arm",
    "Claim",
    "ClaimResult",
    "Event",
    "Executor",
    "InProcessExecutor",
    "Interval",
    "Job",
    "LocalExecutor",
    "Match",
    "Study",
    "StudyResult",
    "Trial",
    "brief",
    "choose_folder",
    "evaluate_claims",
    "find_recipe",
    "list_recipes",
    "mean_interval",
    "run_study",
]
