"""What runs: trials, jobs, the events that executors tell, and what an executor is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_depth.study.spec import fingerprint

__all__ = ["Event", "Executor", "Job", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One arm with one seed: everything that decides its numbers.

    Args:
        arm: Name of the arm.
        seed: Random seed of split, weights and batches.
        content: Network, data, optimizer, scheduler, callbacks, epochs and threads.
        weight: How long it takes compared with other trials, in multiply-adds.

    Example:
        >>> len(Trial("a", 0, {}).key)
        16
    """

    arm: str
    seed: int
    content: Mapping[str, Any]
    weight: float = 0.0

    @property
    def key(self) -> str:
        """Return 16 hexadecimal characters that change with anything that decides the numbers."""
        return fingerprint({"arm": self.arm, "seed": self.seed, **self.content})[:16]

    @property
    def epochs(self) -> int:
        """Return the number of epochs."""
        return int(self.content["epochs"])


@dataclass(frozen=True)
class Job:
    """A trial and where what it says besides its result goes.

    Args:
        trial: The trial.
        folder: The study's output folder, for logs; nothing that counts is written there.
        group: Group of the runs in Weights & Biases; None for no such run.
        offline: Whether such a run is kept on disk.

    Example:
        >>> Job(Trial("a", 0, {}), "out").group is None
        True
    """

    trial: Trial
    folder: str
    group: str | None = None
    offline: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial.

    Args:
        kind: ``queued`` once for every trial that is left, then ``started``, ``epoch`` and
            ``finished``; a trial that failed is ``finished`` too.
        trial: The trial.
        epoch: Epochs done, for ``epoch``.
        record: The result, for ``finished``.

    Example:
        >>> Event("started", Trial("a", 0, {})).epoch
        0
    """

    kind: Literal["queued", "started", "epoch", "finished"]
    trial: Trial
    epoch: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)


class Executor(ABC):
    """What runs trials.

    Example:
        >>> from lightning_depth.study import LocalExecutor
        >>> issubclass(LocalExecutor, Executor)
        True
    """

    workers: int
    """How many trials run at a time; 0 where they run in this process."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Run all jobs, beginning with the first, and tell what happens.

        Args:
            jobs: The trials to run.

        Returns:
            The events. Closing the generator ends whatever still runs.
        """
