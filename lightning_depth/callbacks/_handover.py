"""Carrying what a callback measured from a spawned or forked process back to the script.

With ``ddp_spawn`` and ``ddp_fork`` the callback that ran is a copy in a child process, and the
object in the user's script has seen nothing. Lightning brings back only its own metrics.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_depth.callbacks._logging import survive_full_disk

__all__ = ["Handover"]


class Handover:
    """A file in the temporary folder, known to an object and to its copies in child processes.

    Example:
        >>> Handover().collect() is None
        True
    """

    def __init__(self) -> None:
        self._home = os.getpid()
        self._name = _new_name(self, self._home)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._home == os.getpid():  # a copy in the same process is an object of its own
            self._name = _new_name(self, self._home)

    def __eq__(self, other: object) -> bool:
        """Names differ by design, so that a callback still equals its copy."""
        return isinstance(other, Handover)

    __hash__ = object.__hash__

    def leave(self, make_state: Callable[[], dict[str, Any]]) -> None:
        """Write a state, if this is a copy in a child of the process of the original.

        Args:
            make_state: Returns plain containers and tensors; called only if they are wanted.
        """
        parent = multiprocessing.parent_process()
        if parent is None or parent.pid != self._home:
            return
        part = _path(f"{self._name}.{os.getpid()}")
        with survive_full_disk(part):
            with part.open("xb") as file:
                torch.save(make_state(), file)
            part.replace(_path(self._name))

    def discard(self) -> None:
        """Drop what a child process left: the original itself runs now."""
        _discard(self._name, self._home)

    def collect(self) -> dict[str, Any] | None:
        """Return what a child process left, once; None where there is nothing."""
        path = _path(self._name)
        if self._home != os.getpid() or not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        path.unlink()
        return state


def _new_name(owner: Handover, home: int) -> str:
    name = f"lightning-depth-{uuid.uuid4().hex}.pt"
    weakref.finalize(owner, _discard, name, home)
    return name


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / name


def _discard(name: str, home: int) -> None:
    if os.getpid() == home:
        _path(name).unlink(missing_ok=True)
