"""Reading the activations of one batch, by hooks that live for that batch only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._order import is_compiled
from lightning_depth.callbacks._sites import (
    Activation,
    by_units,
    describe_module,
    describe_origin,
    unit_axis,
)
from lightning_depth.functional.activations import sample_features, saturated_share
from lightning_depth.layers import Layer, main_tensor

__all__ = ["Activity", "Recorder"]

Parts = dict[str, list[Tensor]]
FEWEST_SAMPLES = 4
"""Samples below which nothing is said of how outputs differ between them."""
Hook = Callable[..., None]


@dataclass
class Activity:
    """What one batch showed, as tensors on the device; a place is a layer and a number in it."""

    lengths: list[int] = field(default_factory=list)
    """By layer that ran, how many rows its output has."""
    maxima: Parts = field(default_factory=lambda: defaultdict(list))
    """By place, the largest output of each rectified unit."""
    means: Parts = field(default_factory=lambda: defaultdict(list))
    """By place, the mean output of each rectified unit."""
    saturated: Parts = field(default_factory=lambda: defaultdict(list))
    """By place, the share of outputs near a bound."""
    norms: Parts = field(default_factory=lambda: defaultdict(list))
    """By layer, the norm of its output."""
    numels: dict[str, int] = field(default_factory=dict)
    """By layer, the elements over which its norms go."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """By layer, a few outputs of a few samples."""
    features: dict[str, int] = field(default_factory=dict)
    """By layer, its outputs for one sample."""
    executed: list[str] = field(default_factory=list)
    """Layers as they ran."""

    @property
    def samples(self) -> int:
        """Samples of the batch: most layers have a row for each, few fold positions into them."""
        return mode(self.lengths) if self.lengths else 0


class Recorder:
    """Hooks on the layers of a model, and on the activations in and between them.

    An activation belongs to the layer that holds it, or else to the layer whose weights ran last.
    Compiled modules are left alone: a hook that comes after the first compiled call never runs.

    Args:
        model: The module that holds the layers.
        layers: Its layers.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        hidden = {
            id(inner)
            for module in model.modules()
            if is_compiled(module)
            for inner in module.modules()
        }
        layers = [layer for layer in layers if layer.has_output]
        self._layers = [layer for layer in layers if id(layer.module) not in hidden]
        owners = {id(m): layer.name for layer in reversed(layers) for m in layer.module.modules()}
        modules = [module for module in model.modules() if id(module) not in hidden]
        self._activations = [
            (module, owners.get(id(module)), activation)
            for module in modules
            if (activation := describe_module(module)) is not None
        ]
        self._leaves = [
            (module, owners[id(module)])
            for module in modules
            if id(module) in owners and next(module.parameters(recurse=False), None) is not None
        ]
        self._before, self._after = self._hooks()
        self._handles: list[RemovableHandle] = []
        self._start()

    def _hooks(self) -> tuple[dict[nn.Module, Hook], dict[nn.Module, Hook]]:
        """What runs before and after each module, one hook a module, made once."""
        before: dict[nn.Module, list[Hook]] = defaultdict(list)
        after: dict[nn.Module, list[Hook]] = defaultdict(list)
        for layer in self._layers:
            before[layer.module].append(partial(self._enter, layer.name))
            after[layer.module].append(partial(self._leave, layer.name))
        for module, owner in self._leaves:
            before[module].append(self._feed)
            after[module].append(partial(self._pass, owner))
        for module, holder, activation in self._activations:
            after[module].append(partial(self._activate, holder, activation))
        return _in_turn(before), _in_turn(after)

    def _start(self) -> None:
        self._activity = Activity()
        self._last: str | None = None
        self._running: list[str] = []
        self._places: dict[str, int] = {}
        self._seen: dict[int, Any] = {}  # the nodes are kept, or their ids would be given away

    @property
    def layers(self) -> list[Layer]:
        """The layers that are recorded."""
        return self._layers

    @property
    def is_blind(self) -> bool:
        """Whether every layer is inside a compiled module."""
        return not self._layers

    @property
    def is_attached(self) -> bool:
        """Whether it is recording."""
        return bool(self._handles)

    def attach(self) -> None:
        """Begin to record."""
        self.detach()
        self.resume()

    def resume(self) -> None:
        """Go on recording after a pause."""
        self._handles = [
            *(module.register_forward_pre_hook(hook) for module, hook in self._before.items()),
            *(module.register_forward_hook(hook) for module, hook in self._after.items()),
        ]

    def pause(self) -> None:
        """Take the hooks off, and keep what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def detach(self) -> Activity:
        """Stop recording, and return what was recorded."""
        self.pause()
        activity = self._activity
        self._start()
        return activity

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._running.append(name)
        self._activity.executed.append(name)
        self._places[name] = 0  # a second run in the same step meets the same places again

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        tensor = main_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
            return
        activity, tensor = self._activity, tensor.detach()
        activity.norms[name].append(torch.linalg.vector_norm(tensor, dtype=_norm_dtype(tensor)))
        activity.numels[name] = activity.numels.get(name, 0) + tensor.numel()
        activity.lengths.append(len(tensor) if tensor.ndim else 0)
        if name not in activity.kept and tensor.ndim > 1 and len(tensor) >= FEWEST_SAMPLES:
            activity.kept[name] = sample_features(tensor)
            activity.features[name] = tensor.numel() // len(tensor)

    def _feed(self, module: nn.Module, args: Any) -> None:
        tensor = main_tensor(args)
        origin = describe_origin(tensor) if tensor is not None else None
        if tensor is not None and origin is not None and self._last is not None:
            self._record(self._last, origin[0], by_units(tensor, origin[1]), origin[1])

    def _pass(self, owner: str, module: nn.Module, args: Any, output: Any) -> None:
        self._last = owner

    def _activate(
        self, owner: str | None, activation: Activation, module: nn.Module, args: Any, output: Any
    ) -> None:
        layer = self._running[-1] if self._running else owner or self._last
        if layer is not None and isinstance(output, Tensor):
            origin = describe_origin(output)
            self._record(layer, activation, output, origin[1] if origin else None)

    def _record(self, layer: str, activation: Activation, output: Tensor, node: Any) -> None:
        if output.numel() == 0 or id(node) in self._seen:
            return
        if node is not None:
            self._seen[id(node)] = node
        place = f"{layer}#{self._places.get(layer, 0)}"
        self._places[layer] = self._places.get(layer, 0) + 1
        axis, output = unit_axis(output), output.detach()
        others = [dim for dim in range(output.ndim) if dim != axis]
        if activation.rectified and output.ndim > 1:
            self._activity.maxima[place].append(output.amax(others).float())
            total = output.sum(others, dtype=torch.float32)  # half as dear as a mean on a CPU
            self._activity.means[place].append(total.div_(output.numel() // len(total)))
        if activation.bounded:
            share = saturated_share(output, activation.low, activation.high)
            self._activity.saturated[place].append(share)


def _norm_dtype(tensor: Tensor) -> torch.dtype:
    """Float32 also for half precision, whose squares overflow; PyTorch narrows no float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _in_turn(hooks: Mapping[nn.Module, list[Hook]]) -> dict[nn.Module, Hook]:
    """One hook a module, that runs all of its hooks."""
    return {
        module: several[0] if len(several) == 1 else partial(_run_all, several)
        for module, several in hooks.items()
    }


def _run_all(hooks: list[Hook], *args: Any) -> None:
    for hook in hooks:
        hook(*args)
