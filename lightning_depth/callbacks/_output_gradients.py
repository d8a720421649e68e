"""The gradient of the loss with respect to the outputs of layers, at measured steps.

Tensor hooks on outputs see it without the copies of full backward hooks, which fail where the
next operation works in place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._norms import Norms, exact_norm
from lightning_depth.layers import Layer, main_tensor

__all__ = ["OutputGradients"]


class OutputGradients:
    """Hooks on the outputs of layers, from ``attach`` until ``release``.

    Args:
        layers: The layers that are watched.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = [layer for layer in layers if layer.has_output]
        self._handles: list[RemovableHandle] = []
        self._norms: dict[str, list[Tensor]] = {}
        self._numels: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The layers, in the order of their slots."""
        return [layer.name for layer in self._layers]

    def attach(self) -> None:
        """Begin to record; what an earlier micro-batch of the same step left is kept."""
        for layer in [] if self._handles else self._layers:
            mark = partial(self._mark, layer.name)
            self._handles.append(layer.module.register_forward_hook(mark))

    def release(self) -> None:
        """Take the hooks off the layers, and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._norms, self._numels = {}, {}

    def take(self, device: torch.device, own: Collection[str]) -> tuple[Norms, dict[str, int]]:
        """Return the norms on their way to the host, a slot a layer, and the elements of each.

        A layer that ran several times in a step has one norm over all of its runs.

        Args:
            device: Where the norms are joined.
            own: Layers of the optimizer that is about to step; what belongs to others is kept.
        """
        norms = Norms(device)
        norms.add([self._joined(name) if name in own else None for name in self.names])
        numels = {name: self._numels.pop(name) for name in own if name in self._numels}
        return norms, numels

    def _joined(self, name: str) -> Tensor | None:
        parts = self._norms.pop(name, None)
        return torch.stack(parts) if parts else None

    def _mark(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor = main_tensor(output)
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(partial(self._note, name))  # type: ignore[no-untyped-call]

    def _note(self, name: str, gradient: Tensor) -> None:
        self._norms.setdefault(name, []).append(exact_norm(gradient.detach()))
        self._numels[name] = self._numels.get(name, 0) + gradient.numel()
