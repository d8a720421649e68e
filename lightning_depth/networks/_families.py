"""How many blocks a depth stands for, in the formula of the family it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_depth.errors import ConfigurationError, check_count

__all__ = ["Family", "check_depth"]


@dataclass(frozen=True)
class Family:
    """Depths ``step * n + offset``: n blocks in each of the stages, and the layers around them.

    Args:
        name: Name of the block, for messages.
        step: Weight layers that one more block in every stage adds.
        offset: What the family counts beside the blocks.
    """

    name: str
    step: int
    offset: int

    def blocks_per_stage(self, depth: int, what: str = "depth") -> int:
        """Return n, or raise an error that names the nearest two depths that exist."""
        check_count(what, depth)
        n, rest = divmod(depth - self.offset, self.step)
        if n >= 1 and not rest:
            return n
        lower = self.step * max(n, 1) + self.offset
        raise ConfigurationError(
            f"`{what}` of a {self.name} net must be {self.step}n+{self.offset}, but got {depth}. "
            f"The nearest are {lower} and {lower + self.step}."
        )


def check_depth(name: str, depth: int, known: Iterable[int]) -> int:
    """Return a depth that the family has, or raise an error that names the nearest two."""
    check_count("depth", depth)
    depths = sorted(known)
    if depth in depths:
        return depth
    first, second = sorted(sorted(depths, key=lambda other: abs(other - depth))[:2])
    raise ConfigurationError(
        f"`depth` of a {name} net for large images must be one of "
        f"{', '.join(map(str, depths))}, but got {depth}. The nearest are {first} and {second}."
    )
