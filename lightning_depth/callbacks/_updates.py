"""What one optimizer step really changed: weights kept before it, compared after it.

A gradient says where a weight is pulled; momentum, normalised steps, decay and clipping decide
how far it goes. Only the difference of the weights holds all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._gradients import GradientTable
from lightning_depth.callbacks._norms import HostNorms, Norms
from lightning_depth.callbacks._reading import Column

__all__ = ["StepWatcher"]


class StepWatcher:
    """Keeps the weights before a step and queues the norms of their change after it.

    The buffer is made once and overwritten at every measured step. The hook on the optimizer
    lives for one batch: it does not run between measured steps, and never where a GradScaler
    skips the step. It cannot take itself off, because PyTorch is looping over the hooks.

    Args:
        table: The parameters that are watched.
        updates: Whether the change of the weights is measured.
    """

    def __init__(self, table: GradientTable, updates: bool) -> None:
        self._table = table
        self._updates = updates
        self._before: list[Tensor | None] = []
        self._handle: RemovableHandle | None = None
        self._clipped = False
        self._done = False
        self._queued: Norms | None = None
        self._num_updates = 0

    @property
    def measures_updates(self) -> bool:
        """Whether the change of the weights is measured."""
        return self._updates

    @torch.no_grad()
    def keep(self) -> Norms:
        """Queue the norms of the weights as they are now, and keep these for comparison."""
        weights = self._table.weights()
        if not self._updates:
            return self._table.queue_weights(weights)
        if not self._fits(weights):
            self._before = [None if weight is None else weight.clone() for weight in weights]
            return self._table.queue_weights(self._before)
        return self._table.queue_in_lots(weights, partial(self._overwrite, weights))

    def _overwrite(self, weights: list[Tensor | None], lot: slice) -> list[Tensor | None]:
        kept, new = _present(self._before[lot], weights[lot])
        if kept:
            torch._foreach_copy_(kept, new)
        return self._before[lot]

    def _subtract(self, weights: list[Tensor | None], lot: slice) -> list[Tensor | None]:
        kept, new = _present(self._before[lot], weights[lot])
        if kept:
            torch._foreach_sub_(kept, new)
        return self._before[lot]

    def watch(self, optimizer: Optimizer, *, clipped: bool) -> None:
        """Measure the step that is about to happen.

        Args:
            optimizer: It takes the step.
            clipped: Whether the gradient is measured again, after it was clipped.
        """
        self.release()
        if (self._updates or clipped) and _takes_hooks(optimizer):
            self._clipped, self._done = clipped, False
            self._handle = optimizer.register_step_post_hook(self._after_step)

    def take(self) -> Norms | None:
        """Return what was queued by the last watched step, once."""
        queued, self._queued = self._queued, None
        return queued

    def put_back(self, queued: Norms | None) -> None:
        """Keep for the next reading what was taken and could not be read."""
        self._queued = queued

    def split(self, values: HostNorms | None) -> tuple[Column | None, HostNorms | None]:
        """Return the RMS of each layer's change, and the norms of clipped gradients."""
        if not values:
            return None, None
        changes = values[range(self._num_updates)]
        norms = values[range(self._num_updates, len(values))]
        return self._table.layer_norms(changes) if changes else None, norms or None

    def release(self) -> None:
        """Take the hook off the optimizer, if it is still there."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _fits(self, weights: list[Tensor | None]) -> bool:
        return len(self._before) == len(weights) and all(
            (old is None) == (new is None)
            and (old is None or new is None or (old.shape, old.dtype) == (new.shape, new.dtype))
            for old, new in zip(self._before, weights, strict=True)
        )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._done:
            return
        self._done = True
        norms: Norms | None = None
        with torch.no_grad():
            if self._updates:
                change = partial(self._subtract, self._table.weights())
                norms = self._table.queue_in_lots(self._before, change)
                self._num_updates = len(self._before)
            if self._clipped:
                after = self._table.queue_exact_gradients()
                if norms is None:
                    norms = after
                else:
                    norms.absorb(after)
        self._queued = norms


def _takes_hooks(optimizer: Any) -> bool:
    """Whether it can be seen when an optimizer has stepped.

    Lightning takes optimizers that are none of PyTorch's, and wrappers that never were initialised.
    """
    return hasattr(optimizer, "_optimizer_step_post_hooks")


def _present(
    old: Sequence[Tensor | None], new: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]
