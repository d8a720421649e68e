"""What each parameter is, and which of them begin at zero or near it by design.

A head, a gate or a layer scale that begins at zero takes the gradient from all that lies before it
or in its branch until it has grown. That is how such networks are meant to begin, and no fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from torch import nn
from torch.nn.parameter import Parameter

from lightning_depth.callbacks._reading import Column, Start
from lightning_depth.layers import clean_name, is_scale, is_weight

__all__ = ["UNNAMED", "Held", "Starts", "hold_parameters"]

SMALL_SCALE = 1e-2
"""A scale of this RMS or less is small by design: layer scales begin at 1e-6 to 1e-4."""
GROWN = 1e-2
"""A weight that began at zero counts as grown when it has this share of the size of the others."""
UNNAMED = "unnamed"
"""What a parameter is called that the model does not hold, or no longer holds."""


@dataclass(frozen=True)
class Held:
    """A parameter of the optimizer.

    Args:
        name: Its dotted name, "unnamed" where the model does not hold it.
        branch: As that of ``Start``.
        is_weight: As ``lightning_depth.layers.is_weight`` says.
        is_scale: As ``lightning_depth.layers.is_scale`` says.
    """

    name: str
    branch: str
    is_weight: bool
    is_scale: bool


def hold_parameters(
    model: nn.Module, parameters: Sequence[Parameter], shapes: Sequence[Sequence[int]]
) -> list[Held]:
    """Return what each of some parameters is.

    Args:
        model: The module that holds them, or most of them.
        parameters: The parameters.
        shapes: The shape of each in the user's code.
    """
    holders: dict[int, tuple[nn.Module, str, str]] = {}
    for path, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full = clean_name(f"{path}.{name}" if path else name)
            holders.setdefault(id(parameter), (owner, name, full))
    nobody = (model, UNNAMED, UNNAMED)
    found = [holders.get(id(parameter), nobody) for parameter in parameters]
    return [
        Held(full, _branch(owner, full), is_weight(*kind), is_scale(*kind))
        for (owner, name, full), shape in zip(found, shapes, strict=True)
        for kind in [(owner, name, shape)]
    ]


class Starts:
    """Remembers what was tiny when it was first read.

    Args:
        held: The parameters.
        layers: For each parameter the place of its layer, None where it is in none.
        compared: Places of the parameters whose values every reading has.
        root_numel: For each parameter the root of its number of elements.
    """

    def __init__(
        self,
        held: Sequence[Held],
        layers: Sequence[int | None],
        compared: Sequence[int],
        root_numel: Column,
    ) -> None:
        self._held = held
        self._layers = layers
        self._root_numel = root_numel
        known = set(compared)
        self._unread = [
            p for p, each in enumerate(held) if (each.is_scale or each.is_weight) and p not in known
        ]
        self._found: tuple[Start, ...] | None = None

    @property
    def noted(self) -> bool:
        """Whether the first reading has been taken."""
        return self._found is not None

    @property
    def wanted(self) -> list[int]:
        """Places of the parameters whose values are needed now; none once they were noted."""
        return [] if self.noted else self._unread

    def note(self, values: Column, weights: Column) -> None:
        """Take the norms of what was wanted, and of all weights that every reading has."""
        norms = weights.copy()
        norms[self._unread] = values
        rms = norms / self._root_numel
        limits = np.array([SMALL_SCALE if held.is_scale else 0.0 for held in self._held])
        counts = np.array([held.is_weight or held.is_scale for held in self._held], dtype=bool)
        self._found = tuple(
            Start(
                name=self._held[p].name,
                layer=self._layers[p],
                branch=self._held[p].branch,
                is_weight=self._held[p].is_weight,
                rms=float(rms[p]),
                place=p,
            )
            for p in np.flatnonzero(counts & (rms <= limits)).tolist()
        )

    def moving(self, gradients: Column) -> tuple[Start, ...]:
        """Return those that have a gradient other than zero."""
        return tuple(start for start in self._found or () if gradients[start.place] > 0)

    def unborn(self, judged: Sequence[Sequence[int]]) -> frozenset[int]:
        """Return the layers of which every weight began at zero."""
        zero = {start.place for start in self._found or () if start.is_weight}
        return frozenset(
            place
            for place, members in enumerate(judged)
            if zero.issuperset(members) and any(self._held[p].is_weight for p in members)
        )

    def are_growing(self, weights: Column, gradients: Column) -> bool:
        """Return whether a weight that began at zero and moves is still small beside the others."""
        zero = [start.place for start in self.moving(gradients) if start.is_weight]
        if not zero:
            return False
        rms = weights / self._root_numel
        others = [value for value in np.delete(rms, zero).tolist() if value > 0]
        return bool(others) and bool((rms[zero] < GROWN * median(others)).any())


def _branch(owner: nn.Module, name: str) -> str:
    inside = next(owner.children(), None) is None
    return name.rsplit(".", 2 if inside else 1)[0] if "." in name else ""
