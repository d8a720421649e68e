"""What every callback of the package shares: findings, history, state, and how they are told.

A callback measures in its own hooks. It adds findings and records, logs a few scalars and a
figure, and says at the end what it concludes; what becomes of these is decided here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import torch

from lightning_depth.callbacks._actions import (
    FindingError,
    FindingWarning,
    OnFinding,
    act_on,
    check_on_finding,
)
from lightning_depth.callbacks._figure_pace import FigurePace
from lightning_depth.callbacks._guard import (
    STRICT,
    Failure,
    guard_hooks,
    may_pass,
    warn_of_failure,
)
from lightning_depth.callbacks._handover import Handover
from lightning_depth.callbacks._history import History
from lightning_depth.callbacks._loggers import send_figure, send_file, takes_figures
from lightning_depth.callbacks._logging import (
    can_draw,
    is_quiet,
    log_scalars,
    run_folder,
    say,
    survive_full_disk,
)
from lightning_depth.callbacks._showing import Shown
from lightning_depth.callbacks._verdict import HEALTHY, verdict_box, write_findings
from lightning_depth.errors import MisuseError, invalid
from lightning_depth.findings import Finding, rank_findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DepthCallback", "FindingError", "FindingWarning", "OnFinding"]

_STATE_KEY = "lightning_depth"
_MEETINGS = ("on_train_epoch_end", "on_validation_epoch_end", "on_train_end")
"""Hooks that every rank reaches; a callback that one rank gave up all give up here at last."""


class DepthCallback(Shown, pl.Callback):
    """Base of the package's callbacks.

    A subclass measures in its own hooks, calls ``super()`` in those that it overrides, and may
    override ``_conclude``, ``_summary``, ``_detach``, ``_extra_state``, ``_load_extra_state`` and
    ``_reset``.

    An error in a hook of a subclass never ends the run: it is warned about once, the callback
    detaches itself, and it measures nothing further in that run. What was asked for passes: an
    error of ``on_finding="raise"`` or of a callable ``on_finding``, and a refused argument in
    ``setup`` or ``on_fit_start``. With ``LIGHTNING_DEPTH_STRICT=1`` in the environment all pass.

    Args:
        prefix: First part of every logged key.
        on_finding: What happens when something is found during training: "log" prints it, "warn"
            warns, "stop" ends training after the step, "raise" raises an error, and a callable
            is handed the finding. Findings that are merely worth knowing wait for the verdict.
        history: Where measurements are kept; 1,000 records by default.
        figures: Whether figures are logged or written: at most one an epoch and for a hundredth
            of the time, and one at the end.
    """

    _observes: ClassVar[bool] = True
    """Whether the run would be the same without the callback; hooks of others are not guarded."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls._observes:
            guard_hooks(cls)

    def __init__(
        self,
        prefix: str,
        on_finding: OnFinding = "warn",
        history: History | None = None,
        *,
        figures: bool = True,
    ) -> None:
        if not isinstance(prefix, str) or not prefix:
            raise invalid("prefix", "the first part of the logged keys, a word", prefix)
        self._prefix = prefix
        self._on_finding = check_on_finding(on_finding)
        self._history = history if history is not None else History()
        self._found: list[Finding] = []
        self.figures = figures
        self._figures: dict[str, Callable[[], Figure]] = {}
        self._owed: set[str] = set()
        self._figure_pace = FigurePace()
        self._handover = Handover()
        self._ran = False
        self._failure: Failure | None = None
        self._retired = False
        self._met = False
        self._has_peers = False
        self._is_over = False

    # What users read.

    @property
    def findings(self) -> list[Finding]:
        """What was found, the most severe first."""
        self._check_ran("findings")
        return rank_findings(self._found)

    @property
    def history(self) -> dict[str, list[Any]]:
        """What was measured, as columns of one length; ``pandas.DataFrame`` accepts them."""
        self._check_ran("history")
        return self._history.table()

    def plot(self) -> tuple[Figure, Axes]:
        """Draw what was measured."""
        raise NotImplementedError

    # What subclasses fill in.

    def _conclude(self, trainer: pl.Trainer) -> list[Finding]:
        """Return what is found once the whole run is seen; called once, at the end of fit."""
        return []

    def _summary(self) -> str:
        """Return one sentence on what was measured, for the verdict on a healthy run."""
        return f"{type(self).__name__} took {len(self._history)} measurements."

    def _detach(self) -> None:
        """Remove what was hung on modules; called after every run, however it ended.

        It may be called at any moment and more than once, and must not wait for other ranks.
        """

    def _meets(self, trainer: pl.Trainer, hook: str) -> bool:
        """Return whether the ranks wait for each other in a hook; the same on every rank.

        Asked before the hook runs, also on a rank that measures no more.
        """
        return hook in _MEETINGS

    def _reset(self) -> None:
        """Forget an earlier run; called when a run begins from its first step."""
        self._history.clear()
        self._found.clear()
        self._figures.clear()
        self._owed.clear()

    def _extra_state(self) -> dict[str, Any]:
        """Return further state as plain containers and tensors."""
        return {}

    def _load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``_extra_state`` returned."""

    # What subclasses call.

    def _log(
        self,
        pl_module: pl.LightningModule,
        scalars: Mapping[str, float | torch.Tensor],
        *,
        epoch_end: bool = False,
    ) -> None:
        """Log scalars under the prefix, on every rank; ``epoch_end`` in hooks that end an epoch."""
        trainer = pl_module.trainer
        if is_quiet(trainer):
            return
        if epoch_end and not self._met and not self._agree(trainer):
            return  # Lightning reduces what is logged at the end of an epoch
        with self._guard(trainer, "logging"):
            prefixed = {f"{self._prefix}/{key}": value for key, value in scalars.items()}
            log_scalars(pl_module, prefixed, epoch_end=epoch_end)

    def _log_figure(
        self, trainer: pl.Trainer, key: str = "profile", draw: Callable[[], Figure] | None = None
    ) -> None:
        """Hand loggers that take one a figure, now if it is due and else at the end of fit.

        The other loggers get its last state as a file, at the end. ``draw`` must not be a lambda,
        or the callback cannot be pickled; default: ``plot``.
        """
        if not self.figures or is_quiet(trainer) or not trainer.is_global_zero or not can_draw():
            return
        self._figures[key] = draw or self._draw
        self._owed.add(key)
        if trainer.state.fn != "fit" or self._figure_pace.is_due(trainer.current_epoch):
            with self._guard(trainer, "drawing a figure"):
                self._send_figures(trainer)

    def _add_finding(self, trainer: pl.Trainer, finding: Finding) -> None:
        """Keep a finding, unless its kind is known of the same layers, and act on it."""
        if (kept := self._keep(finding)) is not None:
            act_on(kept, self._on_finding, trainer)

    def _agree(self, trainer: pl.Trainer) -> bool:
        """Return whether all ranks still measure; from now on none does where one gave up.

        A collective. In a hook for which ``_meets`` is true every rank goes through exactly one,
        and a hook that joins what the ranks measured calls it right before it does.
        """
        self._met = True
        failed = self._failure is not None
        if self._has_peers:
            failed = trainer.strategy.reduce_boolean_decision(failed, all=False)
        if failed and not self._retired:
            self._retire(trainer)
        return not failed

    # Hooks.

    @property
    def state_key(self) -> str:
        """Two callbacks of one class may be used together where their prefixes differ."""
        return self._generate_state_key(prefix=self._prefix)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew where the run begins at its first step."""
        self._ran = True
        self._failure, self._retired, self._is_over = None, False, False
        self._has_peers = trainer.world_size > 1
        self._handover.discard()
        if stage == "fit":
            self._figure_pace.start()
            if trainer.global_step == 0:
                self._reset()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Conclude; the last callback of the package tells the verdict of all."""
        if is_quiet(trainer):
            return
        self._is_over = True
        if self._agree(trainer):
            with self._guard(trainer, "judging the run"):
                self._conclude_all(trainer)
        if trainer.is_global_zero:
            with self._guard(trainer, "drawing a figure"):
                self._send_figures(trainer)
                self._write_figures(trainer)
            self._tell_if_last(trainer, finished=True)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Clean up and tell what was found: Lightning calls no other hook after an exception."""
        with self._guard(trainer, "removing its hooks"):
            self._close(trainer)
        if trainer.is_global_zero and not is_quiet(trainer):
            with self._guard(trainer, "drawing a figure"):
                self._send_figures(trainer)
            self._tell_if_last(trainer, finished=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind on the modules."""
        with self._guard(trainer, "removing its hooks"):
            self._close(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was measured and found, as plain containers and tensors."""
        return {**super().state_dict(), _STATE_KEY: self._depth_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; one that Lightning's own class wrote is accepted.

        Args:
            state_dict: State of the same callback, from a checkpoint.
        """
        super().load_state_dict(state_dict)
        if _STATE_KEY in state_dict:
            self._load_depth_state(state_dict[_STATE_KEY])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what ties the callback to a run: Lightning hangs the module's ``log`` on it."""
        tied = {"log", "log_dict"}
        state = {name: value for name, value in vars(self).items() if name not in tied}
        return {**state, "_figures": {}, "_owed": set(), "_figure_pace": FigurePace()}

    # Inside.

    def _begin_meeting(self, trainer: pl.Trainer, hook: str) -> bool:
        """Return whether the ranks meet in a hook that is about to run."""
        self._met = False
        return self._meets(trainer, hook)

    @contextmanager
    def _guard(self, trainer: pl.Trainer | None, what: str) -> Iterator[None]:
        """Warn of an error instead of raising it, once, and stop measuring."""
        try:
            yield
        except Exception as error:
            self._catch(trainer, error, what)

    def _catch(
        self, trainer: pl.Trainer | None, error: Exception, what: str, *, refuses: bool = False
    ) -> None:
        """Stop measuring because of an error, or raise it where it is wanted."""
        if may_pass(error, refuses=refuses):
            raise error
        if self._failure is None:
            step = trainer.global_step if trainer is not None else None
            failure = Failure.of(error, what, None if self._is_over else step)
            self._fail(trainer, replace(failure, at_end=self._is_over))

    def _fail(self, trainer: pl.Trainer | None, failure: Failure) -> None:
        """Stop measuring on this rank; where there are others, they hear of it when they meet."""
        self._failure = failure
        after = "It measures no more in this run, and training goes on"
        if self._is_over or not self._observes:
            after = "Training is not affected"
        warn_of_failure(
            f"{type(self).__name__} {failure.sentence}. {after}; set {STRICT}=1 in the environment "
            "to make this an error."
        )
        if self._has_peers:
            self._let_go(trainer)
        else:
            self._retire(trainer)

    def _retire(self, trainer: pl.Trainer | None) -> None:
        """Stop measuring for the rest of the run."""
        self._retired = True
        if self._failure is None:
            step = trainer.global_step if trainer else None
            self._failure = Failure("measuring", "an error on another process", step)
        self._let_go(trainer)

    def _let_go(self, trainer: pl.Trainer | None) -> None:
        if self._observes:
            with self._guard(trainer, "removing its hooks"):
                self._detach()

    def _conclude_all(self, trainer: pl.Trainer) -> None:
        for finding in self._conclude(trainer):
            kept = self._keep(finding)
            if kept is not None and callable(self._on_finding):
                act_on(kept, self._on_finding, trainer)

    def _depth_state(self) -> dict[str, Any]:
        return {
            "history": self._history.state_dict(),
            "findings": [finding.to_dict() for finding in self._found],
            "extra": self._extra_state(),
        }

    def _load_depth_state(self, state: Mapping[str, Any]) -> None:
        self._ran = True
        self._history.load_state_dict(state["history"])
        self._found = [Finding.from_dict(row) for row in state["findings"]]
        self._load_extra_state(state["extra"])

    def _keep(self, finding: Finding) -> Finding | None:
        """Return the finding as it is kept, None where its kind is known of the same layers."""
        if any(
            (other.kind, other.layers) == (finding.kind, finding.layers) for other in self._found
        ):
            return None
        kept = replace(finding, source=finding.source or type(self).__name__)
        self._found.append(kept)
        return kept

    def _draw(self) -> Figure:
        return self.plot()[0]

    def _send_figures(self, trainer: pl.Trainer) -> None:
        """Draw the figures that the loggers were not sent yet."""
        owed, self._owed = sorted(self._owed), set()
        if owed and any(takes_figures(logger) for logger in trainer.loggers):
            with self._figure_pace.drawing(trainer.current_epoch):
                for key in owed:
                    send_figure(trainer, f"{self._prefix}/{key}", self._figures[key]())

    def _write_figures(self, trainer: pl.Trainer) -> None:
        """Figures for loggers that take none, and for runs without a logger but with a folder."""
        folder, loggers = run_folder(trainer), trainer.loggers
        if folder is None or (loggers and all(takes_figures(logger) for logger in loggers)):
            return
        for key, draw in self._figures.items():
            path = folder / f"{self._prefix}-{key}.png".replace("/", "-")
            with survive_full_disk(path):
                folder.mkdir(parents=True, exist_ok=True)
                draw().savefig(path)

    def _tell_if_last(self, trainer: pl.Trainer, *, finished: bool) -> None:
        """Write one file and print one box for all callbacks of the package.

        A run that broke off is never called healthy: it is told only what was found.
        """
        watchers = _watchers(trainer)
        if watchers[-1] is not self:
            return
        findings = [finding for watcher in watchers for finding in watcher._found]
        if findings or finished:
            with _surviving("writing findings.json"):
                _keep_findings(trainer, findings)
        notes = [note for watcher in watchers if (note := watcher._note())] if finished else []
        if findings or notes:
            measured = any(len(watcher._history) for watcher in watchers if watcher._observes)
            with _surviving("printing the verdict"):
                say(verdict_box(findings, notes, healthy=HEALTHY if measured else ""))

    def _note(self) -> str:
        """What the box says of this callback beside its findings."""
        summary = ""
        if self._failure is None or self._failure.at_end or not self._observes:
            with self._guard(None, "summing up"):
                summary = self._summary()
        if self._failure is None:
            return summary
        measured = "" if self._failure.at_end or not self._observes else " and measured no more"
        name, sentence = type(self).__name__, self._failure.sentence
        return f"{summary} {name} {sentence}{measured}.".strip()

    def _close(self, trainer: pl.Trainer) -> None:
        self._detach()
        if trainer.is_global_zero and not is_quiet(trainer):
            self._handover.leave(self.state_dict)

    def _check_ran(self, what: str) -> None:
        """Take over what a child process measured; nothing measured is not the same as healthy."""
        if (state := self._handover.collect()) is not None:
            self.load_state_dict(state)
        if not self._ran:
            raise MisuseError(
                f"`{type(self).__name__}.{what}` cannot be read because no run has reached this "
                "object: call `trainer.fit` first; where a spawning or forking strategy ran, rank "
                "zero left nothing."
            )


guard_hooks(DepthCallback)


@contextmanager
def _surviving(what: str) -> Iterator[None]:
    """Warn of an error in what all callbacks of the package do together."""
    try:
        yield
    except Exception as error:
        if may_pass(error, refuses=False):
            raise
        warn_of_failure(f"lightning-depth {Failure.of(error, what).sentence}.")


def _keep_findings(trainer: pl.Trainer, findings: list[Finding]) -> None:
    """Write the file, and hand it to the loggers that keep files with a run."""
    if (folder := run_folder(trainer)) is None:
        return
    path = folder / "findings.json"
    with survive_full_disk(path):
        write_findings(folder, findings)
        send_file(trainer, path)


def _watchers(trainer: pl.Trainer) -> list[DepthCallback]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    return [callback for callback in callbacks if isinstance(callback, DepthCallback)]
