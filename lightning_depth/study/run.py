"""Running a study: plan, folder, executor, records; and showing it again when it is complete."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from lightning_depth import _extras
from lightning_depth.errors import ConfigurationError, MisuseError, check_choice, check_count
from lightning_depth.study.executors import InProcessExecutor, LocalExecutor, num_cores
from lightning_depth.study.jobs import Event, Executor, Job
from lightning_depth.study.result import StudyResult
from lightning_depth.study.spec import Study
from lightning_depth.study.store import SCHEMA, Store, now
from lightning_depth.study.versions import installed_versions, machine

if TYPE_CHECKING:
    from lightning_depth.study.plan import Plan

__all__ = ["choose_folder", "run_study"]

_RUNS = "lightning-depth-runs"
_WANDB = "https://api.wandb.ai"


def choose_folder(study: Study, output: str | Path | None = None) -> Path:
    """Return the folder in which a study is stored.

    Args:
        study: The study.
        output: The folder asked for; by default one below ``lightning-depth-runs`` in the current
            folder, named by the study and 8 characters of its hash.

    Returns:
        The folder; it need not exist.

    Example:
        >>> choose_folder(Study("one", "", (), 1), "here").name
        'here'
    """
    return Path(output) if output else Path(_RUNS) / f"{study.name}-{study.hash[:8]}"


def run_study(
    study: Study,
    executor: Literal["local"] | Executor = "local",
    *,
    output: str | Path | None = None,
    workers: int | None = None,
    fresh: bool = False,
    wandb: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> StudyResult:
    """Run a study, or what is left of it, and return its result.

    Trials that have finished are kept, those that failed run again. A trial that raises is a
    result; the others go on. Worker processes import the script that calls this, which therefore
    needs ``if __name__ == "__main__":`` around the call.

    Args:
        study: The study.
        executor: ``"local"`` for processes of this machine, or an executor.
        output: Output folder; by default ``lightning-depth-runs/<name>-<8 characters of hash>``.
        workers: Trials at a time; by default as many as processor cores allow; 0 runs them in
            this process.
        fresh: Whether stored results are removed first.
        wandb: Whether each trial is logged to Weights & Biases, grouped by study; without a key
            the runs are kept offline in the output folder.
        on_event: Called with everything that happens to a trial.

    Returns:
        The result; ``results.csv`` and ``report.html`` lie in its folder.

    Raises:
        ConfigurationError: The study, the folder or an argument is wrong; nothing has run then.

    Example:
        >>> import tempfile
        >>> arm = {"network": {"block": "plain", "hidden_layers": 1, "width": 8}}
        >>> recipe = {"name": "one", "epochs": 1, "seeds": [0], "arms": {"a": arm}, "callbacks": []}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run_study(Study.from_dict(recipe), output=folder, workers=0)
        >>> result.table[0]["params"]
        610
    """
    store = Store(choose_folder(study, output))
    runner = _choose_executor(study, executor, workers)
    store.check_free()  # said at once, before anything slow is imported
    is_left = fresh or not _is_complete(store, _stored(store, study))
    plan = _plan(study, runner) if is_left else None
    with store.locked(_command()):
        stored = _stored(store, study)
        if plan is not None:
            jobs = _prepare(store, study, plan, runner, fresh=fresh, wandb=wandb)
            _run_jobs(store, runner, jobs, on_event or (lambda _: None))
        elif stored is not None and stored["recipe"] != study.to_dict():
            claims = {"recipe": study.to_dict(), "question": study.question}
            store.write_study(stored | claims)
        return _finish(store)


def _plan(study: Study, executor: Executor) -> Plan:
    """Build every part of a study once; what it names wrongly is refused here."""
    _extras.scipy_stats()  # what is missing is told before anything is trained
    _extras.jinja2()
    if isinstance(executor, LocalExecutor):
        executor.warm_up()  # imports in the server what this process imports for the plan
    # By name: this brings in torch, which a stored study is shown without.
    plan: Plan = importlib.import_module("lightning_depth.study.plan").make_plan(study)
    return plan


def _prepare(
    store: Store, study: Study, plan: Plan, executor: Executor, *, fresh: bool, wandb: bool
) -> list[Job]:
    """Write down what will be run, and return the jobs that are left."""
    if fresh:
        store.clear()
    store.write_study(_describe(study, plan, executor))
    group = f"{study.name}-{study.hash[:8]}" if wandb else None
    offline = wandb and _is_offline()
    return [
        Job(trial, str(store.folder), group, offline)
        for trial in plan.trials
        if (record := store.read_trial(trial.key)) is None or record["status"] == "failed"
    ]


def _run_jobs(
    store: Store, executor: Executor, jobs: list[Job], tell: Callable[[Event], None]
) -> None:
    """Run jobs, write each record as it comes, and at the end how long that took."""
    begun, ended = None, 0.0
    for job in jobs:
        tell(Event("queued", job.trial))
    with closing(executor.run(jobs)) as events:
        for event in events:
            if begun is None:
                begun = time.perf_counter()
            if event.kind == "finished":
                ended = time.perf_counter()
                _keep(store, event.record)
            tell(event)
    phase = {"trial_phase_s": ended - begun if begun else 0.0, "trials_run": len(jobs)}
    store.write_study((store.read_study() or {}) | phase | {"finished": now()})


def _keep(store: Store, record: Mapping[str, Any]) -> None:
    try:
        store.write_trial(record)
    except MisuseError as error:
        raise MisuseError(
            f"{error} Trials that finished before are kept; make room and type the same command "
            f"again to go on."
        ) from error


def _choose_executor(
    study: Study, executor: Literal["local"] | Executor, workers: int | None
) -> Executor:
    if not isinstance(executor, str):
        return executor
    check_choice("executor", executor, ("local",))
    if workers is not None and check_count("workers", workers, 0) == 0:
        return InProcessExecutor()
    fitting = max(1, min(num_cores() // study.threads, len(study.arms) * len(study.seeds)))
    return LocalExecutor(workers or fitting, study.threads)


def _stored(store: Store, study: Study) -> dict[str, Any] | None:
    """Return the stored study that is to go on; refuse a folder that holds another one."""
    stored = store.read_study()
    if stored is not None and stored["hash"] != study.hash:
        raise ConfigurationError(
            f"The output folder {str(store.folder)!r} holds another study, {stored['name']!r} "
            f"({stored['hash'][:8]}), not {study.name!r} ({study.hash[:8]}). "
            f"Choose another `--output`."
        )
    return stored


def _is_complete(store: Store, stored: dict[str, Any] | None) -> bool:
    if stored is None:
        return False
    records = [store.read_trial(key) for key in stored["trials"]]
    return all(record is not None and record["status"] == "finished" for record in records)


def _is_offline() -> bool:
    """Return whether W&B runs are kept on disk: there is no key, and no mode was asked for."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return False
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _WANDB)).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc(path).authenticators(host) is None
    except (OSError, NetrcParseError):
        return True


def _describe(study: Study, plan: Plan, executor: Executor) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": study.name,
        "question": study.question,
        "hash": study.hash,
        "command": _command(),
        "recipe": study.to_dict(),
        "arms": {arm.name: arm.to_dict() for arm in plan.arms},
        "trials": [trial.key for trial in plan.trials],
        "seeds": list(study.seeds),
        "versions": installed_versions(),
        "machine": machine(),
        "started": now(),
        "finished": None,
        "trial_phase_s": None,
        "trials_run": None,
        "workers": executor.workers,
    }


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])


def _finish(store: Store) -> StudyResult:
    result = StudyResult.load(store.folder)
    result.write_csv(store.folder / "results.csv")
    result.write_report(store.folder / "report.html")
    return result
