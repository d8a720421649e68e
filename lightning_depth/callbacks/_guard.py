"""Keeping an error of an observing callback away from the run that it observes.

Lightning runs a callback's hooks inside its own loops, so that an error in one of them ends the
training. Nobody loses a night's training for a picture that could not be drawn: the first error
is warned about, the callback removes its hooks, and the run goes on without it.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl

from lightning_depth.errors import LightningDepthError

__all__ = [
    "STRICT",
    "Failure",
    "ObserverWarning",
    "doing",
    "guard_hooks",
    "is_strict",
    "may_pass",
    "warn_of_failure",
]

STRICT = "LIGHTNING_DEPTH_STRICT"
"""Environment variable that, set to anything but 0, leaves errors of observers as they are."""

_REFUSING = ("setup", "on_fit_start")
"""Hooks before training, in which the package refuses what it was asked for."""

_TELLING = ("setup", "on_fit_end", "on_exception", "teardown")
"""Hooks that also run where nothing is measured any more."""

_DOING = {
    "setup": "preparing the run",
    "on_fit_start": "choosing what to watch",
    "on_before_optimizer_step": "reading the gradients",
    "on_train_batch_start": "preparing a measurement",
    "on_validation_epoch_start": "preparing a measurement",
    "on_validation_batch_start": "reading a batch",
    "teardown": "removing its hooks",
}


class ObserverWarning(UserWarning):
    """A callback that only observes met an error and stopped measuring; training goes on.

    Example:
        >>> issubclass(ObserverWarning, UserWarning)
        True
    """


@dataclass(frozen=True)
class Failure:
    """What went wrong in a callback.

    Args:
        doing: What it was doing.
        error: The error, its class and its message.
        step: Optimizer step of the Trainer at that moment, None outside a step.
        at_end: Whether training was over, so that nothing was missed.

    Example:
        >>> Failure("drawing a figure", "ValueError: too small", step=3).sentence
        'met an error at step 3, while drawing a figure: ValueError: too small'
    """

    doing: str
    error: str
    step: int | None = None
    at_end: bool = False

    @property
    def sentence(self) -> str:
        """What happened, without a subject and without a full stop."""
        when = "" if self.step is None else f" at step {self.step}"
        return f"met an error{when}, while {self.doing}: {self.error}"

    @classmethod
    def of(cls, error: Exception, what: str, step: int | None = None) -> Failure:
        """Return the failure that an error is, with the innermost thing that was being done."""
        text = " ".join(str(error).split())
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        return cls(getattr(error, "_was_doing", what), f"{text[:_LONGEST]}{place}", step)


_LONGEST = 300
"""Characters of an error's message that are repeated; those of compilers fill screens."""

F = TypeVar("F", bound=Callable[..., Any])


def is_strict() -> bool:
    """Whether the environment asks for errors instead of warnings."""
    return os.environ.get(STRICT, "0") not in ("", "0")


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Note on an error that passes what was being done, unless something nearer has.

    Args:
        what: The activity, as in "drawing a figure".
    """
    try:
        yield
    except Exception as error:
        if not hasattr(error, "_was_doing"):
            error._was_doing = what  # type: ignore[attr-defined] # read by `Failure.of`
        raise


def warn_of_failure(sentence: str) -> None:
    """Warn, on whichever rank it happened; a filter that makes warnings errors only logs it."""
    try:
        warnings.warn(sentence, category=ObserverWarning, stacklevel=2)
    except ObserverWarning:
        logging.getLogger(__name__).warning(sentence)


def guard_hooks(cls: type) -> None:
    """Wrap the Trainer's hooks, and the two methods of state, that a class defines itself.

    Args:
        cls: A subclass of ``DepthCallback`` that only observes.
    """
    for name, method in list(vars(cls).items()):
        if name in ("state_dict", "load_state_dict"):
            setattr(cls, name, _guarded_state(method))
        elif name in ("setup", "teardown") or (name.startswith("on_") and callable(method)):
            setattr(cls, name, _guarded(name, method))


def _guarded(name: str, hook: Callable[..., None]) -> Callable[..., None]:
    what = f"{_DOING.get(name, 'measuring')} (`{name}`)"
    telling = name in _TELLING

    @wraps(hook)
    def run(self: Any, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not self._observes:
            hook(self, trainer, *args, **kwargs)
            return
        if not telling and self._retired:
            return
        meets = self._has_peers and self._begin_meeting(trainer, name)
        try:
            if telling or self._failure is None:
                hook(self, trainer, *args, **kwargs)
        except Exception as error:
            self._catch(trainer, error, what, refuses=name in _REFUSING)
        if meets and not self._met:
            self._agree(trainer)

    return run


def _guarded_state(method: F) -> F:
    """Lightning calls these without a Trainer; where one fails an empty state is returned."""
    what = "saving its state" if method.__name__ == "state_dict" else "taking over its state"

    @wraps(method)
    def run(self: Any, *args: Any) -> Any:
        if not self._observes:
            return method(self, *args)
        with self._guard(None, what):
            return method(self, *args)
        return {}

    return run  # type: ignore[return-value]


def may_pass(error: Exception, *, refuses: bool) -> bool:
    """Whether an error is wanted: by a user's switch, or because something was asked for wrongly.

    Args:
        error: What was raised.
        refuses: Whether the hook is one that refuses bad arguments.
    """
    wanted = getattr(error, "_is_wanted", False)
    return wanted or is_strict() or (refuses and isinstance(error, LightningDepthError))
