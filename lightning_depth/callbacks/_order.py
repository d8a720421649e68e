"""In which order the layers of a model run, seen once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_depth.layers import Layer, order_by_execution

__all__ = ["ExecutionOrder", "is_compiled"]


class ExecutionOrder:
    """Notes which layers run, from now until it is asked, and leaves nothing behind.

    A compiled module is left alone: a hook would change what is compiled.

    Args:
        model: The module that holds the layers.
        layers: Its layers.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._layers = list(layers)
        self._executed: list[str] = []
        self._handles: list[RemovableHandle] = []
        if not any(is_compiled(module) for module in model.modules()):
            for layer in layers:
                if layer.has_output:
                    note = _Note(self._executed, layer.name)
                    self._handles.append(layer.module.register_forward_pre_hook(note))

    def finish(self) -> list[Layer]:
        """Return the layers in the order in which they first ran, and remove the hooks."""
        self.release()
        return order_by_execution(self._layers, self._executed)

    @property
    def executed(self) -> frozenset[str]:
        """The layers that ran so far; none of a compiled module."""
        return frozenset(self._executed)

    def release(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Note:
    """A hook that can be pickled and copied with its module."""

    def __init__(self, executed: list[str], name: str) -> None:
        self._executed = executed
        self._name = name

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._executed.append(self._name)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was applied to a module, in place or by wrapping it."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
