"""The order in which layers run, which need not be that in which they were registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from lightning_depth.layers._names import Layer

__all__ = ["ExecutionRecorder", "is_compiled", "number_layers", "order_by_execution"]


def number_layers(layers: Iterable[Layer]) -> list[Layer]:
    """Return layers with their depth counted from 1."""
    return [replace(layer, depth=depth) for depth, layer in enumerate(layers, 1)]


def order_by_execution(layers: Iterable[Layer], executed_names: Iterable[str]) -> list[Layer]:
    """Return layers in the order in which they first ran, numbered anew.

    A layer that never ran as a module, such as the output projection of torch's attention, stays
    behind the layer that it followed; one without an output, such as the class token of a model,
    comes just before the first of those that its module holds.

    Args:
        layers: What ``select_layers`` returned.
        executed_names: Names of layers as they ran, repetitions allowed.

    Returns:
        The same layers.

    Example:
        >>> net = nn.ModuleDict({"head": nn.Linear(4, 4), "body": nn.Linear(4, 4)})
        >>> layers = [Layer(name, 0, module, "leaf") for name, module in net.items()]
        >>> [layer.name for layer in order_by_execution(layers, ["body", "head", "body"])]
        ['body', 'head']
    """
    runs: dict[str, int] = {}
    for name in executed_names:
        runs.setdefault(name, len(runs))
    layers = list(layers)
    places: list[float] = []
    for layer in layers:
        place = runs.get(layer.name) if layer.has_output else _before_first(layer, layers, runs)
        places.append((places[-1] if places else -1) if place is None else place)
    ordered = sorted(zip(places, layers, strict=True), key=lambda pair: pair[0])
    return number_layers(layer for _, layer in ordered)


def _before_first(frame: Layer, layers: Iterable[Layer], runs: Mapping[str, int]) -> float | None:
    """The place before the first of the layers that a module holds, None where none of them ran."""
    inside = {id(module) for module in frame.module.modules()}
    ran = [
        runs[other.name] for other in layers if other.name in runs and id(other.module) in inside
    ]
    return min(ran) - 0.5 if ran else None


class ExecutionRecorder:
    """Notes the order in which layers run, by hooks that it removes itself.

    A compiled model is left alone, because hooks change what is compiled: its layers keep the
    order of registration.

    Args:
        model: The model to which the layers belong.
        layers: What ``select_layers`` returned.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4))
        >>> recorder = ExecutionRecorder(net, [Layer("0", 1, net[0], "leaf")])
        >>> len(recorder.close())
        1
    """

    def __init__(self, model: nn.Module, layers: Iterable[Layer]) -> None:
        self._layers = list(layers)
        self._names: dict[str, None] = {}
        self._handles = [
            layer.module.register_forward_pre_hook(partial(self._note, layer.name))
            for layer in ([] if is_compiled(model) else self._layers)
            if layer.has_output
        ]

    def close(self) -> list[Layer]:
        """Remove the hooks and return the layers in the order in which they ran so far."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return order_by_execution(self._layers, self._names)

    def _note(self, name: str, module: nn.Module, args: Any) -> None:
        self._names.setdefault(name)


def is_compiled(model: nn.Module) -> bool:
    """Return whether a model or a part of it goes through ``torch.compile``.

    Args:
        model: Any module, also a LightningModule that was compiled as a whole.

    Returns:
        Whether ``torch.compile(module)`` or ``module.compile()`` was called.

    Example:
        >>> is_compiled(nn.Linear(2, 2))
        False
    """
    if getattr(model, "_compiler_ctx", None) is not None:  # kept by Lightning, which unwraps it
        return True
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
