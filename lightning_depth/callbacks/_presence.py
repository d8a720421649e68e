"""At how many steps each layer and each parameter had a gradient.

Stochastic depth, routed experts and heads that take turns leave parameters without a gradient at
some steps. Only what never had one, while it was looked at often enough, has none at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from lightning_depth.callbacks._reading import Reading

__all__ = ["Presence", "is_part_of"]

_CHANCE = 1e-6
"""A silence that chance brings about less often than this is no turn that others took."""

_STEADY = 0.9
"""Share of the looks at which a layer in the trend over depth has a gradient, at least."""


@dataclass
class Presence:
    """Counts over the looks at one optimizer; what always had a gradient takes no place.

    Args:
        looks: Steps at which something had a gradient.
        first_step: The first of them.
        parameters: For what once had none: looks at which it wanted a gradient, and had one.
        layers: For what once had none but zeros: looks at which it wanted one, those at which it
            had one, and the looks since it last had one.
        has_gone: Whether a layer that had a gradient had none later.
        takes_turns: Whether one came back.
        told: The parameters of which it was said that they have none.
        joined: For parameters that joined later, or were set free, the first step of this kind.
    """

    looks: int = 0
    first_step: int = 0
    parameters: dict[str, list[int]] = field(default_factory=dict)
    layers: dict[str, list[int]] = field(default_factory=dict)
    has_gone: bool = False
    takes_turns: bool = False
    told: list[str] = field(default_factory=list)
    joined: dict[str, int] = field(default_factory=dict)

    def meet(self, names: Iterable[str]) -> None:
        """Take up parameters that joined the optimizer, of which nothing was seen so far."""
        for name in names if self.looks else ():
            self.parameters.setdefault(name, [0, 0])

    def forget(self, layers: Collection[str]) -> None:
        """Drop layers that are gone with their parameters; new ones may have their names."""
        self.layers = {name: seen for name, seen in self.layers.items() if name not in layers}
        self.parameters = {
            name: seen for name, seen in self.parameters.items() if not is_part_of(name, layers)
        }
        self.told = [name for name in self.told if not is_part_of(name, layers)]
        self.joined = {
            name: step for name, step in self.joined.items() if not is_part_of(name, layers)
        }

    def add(self, step: int, reading: Reading) -> None:
        """Count a reading; one whose whole gradient is zero says nothing of its parts."""
        if not reading.norm:
            return
        if not self.looks:
            self.first_step = step
        for name in (*reading.bare, *reading.frozen):
            self.parameters.setdefault(name, [self.looks, self.looks])
        for name in reading.idle:
            self.layers.setdefault(name, [self.looks, self.looks, 0])
        self.looks += 1
        bare, frozen = set(reading.bare), set(reading.frozen)
        for name, counts in self.parameters.items():
            if not counts[0] and name not in frozen:
                self.joined.setdefault(name, step)
            counts[0] += name not in frozen
            counts[1] += name not in frozen and name not in bare
        for name, counts in self.layers.items():
            self._count(counts, name in reading.idle, name in frozen)

    def _count(self, counts: list[int], idle: bool, frozen: bool) -> None:
        if idle or frozen:
            counts[0] += idle
            counts[2] += idle
            self.has_gone |= idle and counts[1] > 0
            return
        self.takes_turns |= counts[1] > 0 and counts[2] > 0
        counts[0] += 1
        counts[1] += 1
        counts[2] = 0

    def never(self, at_least: int) -> tuple[str, ...]:
        """Return the parameters that had no gradient at any look and are not yet told.

        Args:
            at_least: Looks at which they wanted one.
        """
        return tuple(
            name
            for name, (asked, given) in self.parameters.items()
            if not given and asked >= at_least and name not in self.told
        )

    def look(self, name: str, *, given: bool) -> None:
        """Count a look at one parameter, at a step that was not measured."""
        self.parameters[name][0] += 1
        self.parameters[name][1] += given

    def turning(self) -> frozenset[str]:
        """Return the layers whose silence may be a turn that others take.

        One that always had a gradient is soon missed; one that had it at every other look, later.
        """
        return frozenset(name for name, counts in self.layers.items() if _may_return(*counts))

    def unsteady(self) -> frozenset[str]:
        """Return the layers that had a gradient at some looks only, as those in turns have."""
        return frozenset(
            name for name, (asked, moved, _) in self.layers.items() if moved < _STEADY * asked
        )

    def never_moved(self) -> frozenset[str]:
        """Return the layers that had no gradient but zeros at any look."""
        return frozenset(name for name, (_, moved, _) in self.layers.items() if not moved)

    def rare(self, at_least: int, at_most: float) -> dict[str, tuple[int, int]]:
        """Return layers that seldom had a gradient, with the looks at which they had, and all.

        Args:
            at_least: Looks at which it wanted one.
            at_most: Share of these at which it had one.
        """
        return {
            name: (moved, asked)
            for name, (asked, moved, _) in self.layers.items()
            if asked >= at_least and 0 < moved <= at_most * asked
        }


def is_part_of(name: str, layers: Collection[str]) -> bool:
    """Return whether a parameter's dotted name lies within one of some layers.

    Example:
        >>> [is_part_of(f"blocks.{n}.weight", ["blocks.1"]) for n in (1, 10)]
        [True, False]
    """
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


def _may_return(asked: int, moved: int, silence: int) -> bool:
    before = asked - silence
    share = (before - moved + 1) / (before + 2)
    return silence > 0 and share**silence > _CHANCE
