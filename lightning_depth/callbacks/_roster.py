"""The layers of a model that may gain, lose or exchange modules while it trains.

Objects are compared, never their ids, which Python gives away again once an object is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import is_
from typing import Any

from torch import nn
from torch.nn.parameter import Parameter

from lightning_depth.callbacks._order import ExecutionOrder
from lightning_depth.errors import ConfigurationError
from lightning_depth.layers import (
    Granularity,
    Layer,
    layer_parameters,
    order_by_execution,
    select_layers,
    unwatched_parameters,
    watched_share,
)

__all__ = ["Roster", "are_same"]

_MOST_NAMED = 3
"""Parameters that a sentence names."""


class Roster:
    """The layers that are watched, in order of execution as far as that was seen.

    Args:
        model: The module that holds the layers.
        granularity: As in ``select_layers``.
        include: As in ``select_layers``.
        exclude: As in ``select_layers``.

    Raises:
        ConfigurationError: A pattern matches no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        granularity: Granularity,
        include: str | Sequence[str] | None,
        exclude: str | Sequence[str] | None,
    ) -> None:
        self._model = model
        self._choose = partial(select_layers, model, granularity, include, exclude)
        self._order: ExecutionOrder | None = None
        self._newcomers: set[str] = set()
        self.executed: frozenset[str] = frozenset()
        self._take(self._choose(), _parts(model))
        self.is_ordered = False

    def _take(self, layers: list[Layer], parts: list[object]) -> None:
        self.layers = layers
        self._held = parts
        self._owned = _owned(layers)
        self._share = watched_share(self._model, layers)
        self._unwatched = unwatched_parameters(self._model, layers)

    def refresh(self) -> list[str] | None:
        """Choose the layers again where the model has other parts than before.

        Returns:
            Names of the layers that are gone, or that now have other parameters; None where the
            layers are what they were.
        """
        parts = _parts(self._model)
        if are_same(parts, self._held):
            return None
        before, names = self._owned, [layer.name for layer in self.layers]
        self._take(order_by_execution(self._choose_again(parts), names), parts)
        gone = [
            name for name, own in before.items() if not are_same(own, self._owned.get(name, ()))
        ]
        new = {name for name in self._owned if name in gone or name not in before}
        if not gone and not new:
            return None
        self._newcomers |= new
        self.release()
        self.is_ordered = False
        self.executed -= set(gone)
        return gone

    def describe_share(self) -> str:
        """Say how many layers are watched, which share of the weights, and what is left out."""
        named = ", ".join(self._unwatched[:_MOST_NAMED])
        more = len(self._unwatched) - _MOST_NAMED
        named += f" and {more} more" if more > 0 else ""
        count = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        left_out = f"; not watched: {named}" if named else ""
        return f"{count} ({self._share:.2f} of the weights{left_out})"

    def describe_untrained(self, held: Iterable[Parameter]) -> str:
        """Name the layers that came during training and of which no optimizer holds anything.

        Args:
            held: The parameters of all optimizers.
        """
        known = set(map(id, held))
        names = [
            layer.name
            for layer in self.layers
            if layer.name in self._newcomers
            and (wanting := [p for p in self._owned[layer.name][1:] if p.requires_grad])
            and not any(id(parameter) in known for parameter in wanting)
        ]
        told = f" No optimizer holds what came during training: {', '.join(names)}."
        return told if names else ""

    def _choose_again(self, parts: Sequence[object]) -> list[Layer]:
        """A pattern that no longer matches is no mistake now: what is left is watched."""
        try:
            return self._choose()
        except ConfigurationError:
            return [layer for layer in self.layers if any(layer.module is part for part in parts)]

    def listen(self) -> None:
        """Note the order of execution in the next forward pass, where it is not known."""
        if not self.is_ordered and self._order is None:
            self._order = ExecutionOrder(self._model, self.layers)

    def settle(self) -> bool:
        """Put the layers in the order that was noted, and return whether they had another."""
        if self._order is None:
            return False
        self.executed |= self._order.executed
        before, self.layers = self.layers, self._order.finish()
        self._order, self.is_ordered = None, True
        return self.layers != before

    def release(self) -> None:
        """Remove the hooks."""
        if self._order is not None:
            self._order.release()
            self._order = None


def are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Return whether two sequences hold the same objects.

    Example:
        >>> one, other = [1], [1]
        >>> are_same([one], [one]), are_same([one], [other])
        (True, False)
    """
    return len(some) == len(others) and all(map(is_, some, others))


def _parts(model: nn.Module) -> list[object]:
    """Every module and every parameter of a model; ``parameters`` takes twice as long."""
    parts: list[object] = []
    waiting: list[nn.Module | None] = [model]
    seen: set[int] = set()
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            parts.append(module)
            parts.extend(module._parameters.values())
            waiting.extend(module._modules.values())
    return parts


def _owned(layers: Sequence[Layer]) -> dict[str, list[Any]]:
    """For each layer its module and its parameters."""
    parameters = layer_parameters(layers)
    return {
        layer.name: [layer.module, *(own for _, own in parameters[layer.name])] for layer in layers
    }
