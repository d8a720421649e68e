"""Running trials: in this process, or in worker processes of this machine.

An executor turns jobs into events and knows neither stores nor claims; another one (many machines)
needs one method. Every job runs in a process of its own, forked from a server that has imported
Lightning once: a crash takes one trial with it, and nothing leaks from one trial into the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from lightning_depth.study.jobs import Event, Executor, Job
from lightning_depth.study.worker import TRIAL_MODULE, failure, log_file, run_job, work

__all__ = ["InProcessExecutor", "LocalExecutor", "num_cores"]

_PRELOADED = [TRIAL_MODULE, "sklearn.datasets", "sklearn.model_selection"]
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PATIENCE_S = 10.0


def num_cores() -> int:
    """Return the number of processor cores that this process may use.

    Returns:
        The number of cores.

    Example:
        >>> num_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class InProcessExecutor(Executor):
    """Runs trials one after the other in this process, for debugging and small studies.

    Example:
        >>> list(InProcessExecutor().run([]))
        []
    """

    workers = 0

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Run all jobs in their order.

        Args:
            jobs: The trials to run.

        Returns:
            The events.
        """
        for job in jobs:
            yield Event("started", job.trial)
            yield Event("finished", job.trial, record=run_job(job, lambda _: None))


class LocalExecutor(Executor):
    """Runs trials in processes of this machine.

    Args:
        workers: How many trials run at a time.
        threads: Threads of each trial.

    Example:
        >>> list(LocalExecutor(2).run([]))
        []
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.workers = workers
        self.threads = threads
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )

    def warm_up(self) -> None:
        """Start importing Lightning in the server, while this process does something else."""
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(_PRELOADED)
            with _threads_set(self.threads), _quiet_tracker(), _interrupts_ignored():
                forkserver.ensure_running()

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Run all jobs, beginning with the first, as many at a time as there are workers.

        Args:
            jobs: The trials to run.

        Returns:
            The events. Closing the iterator kills whatever still runs.
        """
        waiting = deque(jobs)
        running: dict[Connection, tuple[Job, Any]] = {}
        if waiting:
            self.warm_up()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    job = waiting.popleft()
                    connection, process = self._start(job)
                    running[connection] = job, process
                    yield Event("started", job.trial)
                for connection in cast("list[Connection]", wait(list(running))):
                    event = _receive(connection, *running[connection])
                    if event.kind == "finished":
                        _end(connection, running.pop(connection)[1], _PATIENCE_S)
                    yield event
        finally:
            for connection, (_, process) in running.items():
                process.kill()
                _end(connection, process, None)

    def _start(self, job: Job) -> tuple[Connection, Any]:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(job, theirs), daemon=False)
        with _threads_set(self.threads):
            process.start()
        theirs.close()
        return ours, process


def _threads_set(threads: int) -> AbstractContextManager[None]:
    """Hand the number of threads to a new process."""
    return _environment(dict.fromkeys(_THREAD_SETTINGS, str(threads)))


def _quiet_tracker() -> AbstractContextManager[None]:
    """Keep Python's tracker of resources from telling of a lock that a killed worker had."""
    filters = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"]
    return _environment({"PYTHONWARNINGS": ",".join(filter(None, filters))})


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Hand settings to a new process through its environment."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let a new process ignore Ctrl-C, also while it imports: its parent is the one to end it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change how signals are handled
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _receive(connection: Connection, job: Job, process: Any) -> Event:
    try:
        kind, value = connection.recv()
    except EOFError:
        process.join(_PATIENCE_S)
        return Event("finished", job.trial, record=failure(job.trial, *_death(job, process)))
    if kind == "epoch":
        return Event("epoch", job.trial, epoch=value)
    return Event("finished", job.trial, record=value)


def _death(job: Job, process: Any) -> tuple[str, str, str]:
    log = log_file(job)
    told = log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.exists() else ""
    code = process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    return "WorkerDied", f"The worker process ended with {how}; see {str(log)!r}.", told


def _end(connection: Connection, process: Any, patience: float | None) -> None:
    """Wait for a process that has nothing left to do; one that does not end is killed."""
    connection.close()
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
