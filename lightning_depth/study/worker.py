"""What a worker process does: one trial, its output in a log file, and an end with its parent."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lightning_depth.study.jobs import Job, Trial
from lightning_depth.study.store import SCHEMA, now

__all__ = ["TRIAL_MODULE", "failure", "log_file", "run_job", "work"]

TRIAL_MODULE = "lightning_depth.study.trial"
"""Imported by name, so that the process which only starts workers does not import Lightning."""


def log_file(job: Job) -> Path:
    """Return where a job's output goes."""
    return Path(job.folder) / "logs" / f"{job.trial.key}.txt"


def work(job: Job, connection: Connection) -> None:
    """Run one trial in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _redirect_output(log_file(job))
    record = run_job(job, lambda epoch: connection.send(("epoch", epoch)))
    connection.send(("finished", record))
    connection.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _redirect_output(path: Path) -> None:
    """Send what the trial prints, and what a crash of native code prints, to its log file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a real text stream here


def run_job(job: Job, notify: Callable[[int], None]) -> dict[str, Any]:
    """Return the record of a trial, whatever happens in it."""
    started = now()
    try:
        record: dict[str, Any] = importlib.import_module(TRIAL_MODULE).run_trial(job, notify)
    except Exception as error:  # a trial that fails is a result
        told = "".join(traceback.format_exception(error))
        record = failure(job.trial, type(error).__name__, str(error), told)
    return record | {"started": started, "finished": now()}


def failure(trial: Trial, kind: str, message: str, told: str) -> dict[str, Any]:
    """Return the record of a trial that failed, with the error's class, message and traceback."""
    return {
        "schema": SCHEMA,
        "key": trial.key,
        "arm": trial.arm,
        "seed": trial.seed,
        "status": "failed",
        "error": {"type": kind, "message": message, "traceback": told},
        "metrics": {},
        "samples": {},
        "curves": {},
        "callbacks": {},
        "findings": [],
        "timing": {},
        "versions": {},
        "started": now(),
        "finished": now(),
    }
