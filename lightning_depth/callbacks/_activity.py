"""Reading the activations of one batch, by hooks that live for that batch only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mode
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_depth.callbacks._order import is_compiled
from lightning_depth.callbacks._rows import RowReader, as_plain, describe_unread, few_of
from lightning_depth.callbacks._sites import (
    Activation,
    Death,
    by_units,
    describe_module,
    describe_origin,
    unit_axis,
)
from lightning_depth.functional.activations import saturated_share
from lightning_depth.layers import Layer, is_channels_last, main_tensor

__all__ = ["UNSURE", "Activity", "Recorder"]

Parts = dict[str, list[Tensor]]
FEWEST_SAMPLES = 4
"""Samples below which nothing is said of how outputs differ between them."""
_MOST_INPUTS = 3
UNSURE = "?"
"""Ends the name of a place that may be no activation: it counts where a unit of it is dead."""
Hook = Callable[..., None]


@dataclass
class Activity:
    """What one batch showed, as tensors on the device; a place is a layer and a number in it."""

    known_samples: int | None = None
    """Samples of the batch, where the batch itself tells."""
    lengths: list[int] = field(default_factory=list)
    """By layer that ran, how many rows its output has."""
    maxima: Parts = field(default_factory=lambda: defaultdict(list))
    """By place, for each unit a number that is above zero where it lives."""
    means: Parts = field(default_factory=lambda: defaultdict(list))
    """By place, the size of each unit's output."""
    saturated: Parts = field(default_factory=lambda: defaultdict(list))
    """By place, the share of outputs near a bound."""
    norms: Parts = field(default_factory=lambda: defaultdict(list))
    """By layer, the norm of its output."""
    numels: dict[str, int] = field(default_factory=dict)
    """By layer, the elements over which its norms go."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """By layer, a few outputs of a few samples."""
    fed: dict[str, Tensor | str] = field(default_factory=dict)
    """By layer, what it made these of, or the layer whose output that is.

    None of a layer whose input has no samples, so that its output cannot differ between them.
    """
    widths: dict[str, int] = field(default_factory=dict)
    """By layer, how many units its output has."""
    executed: list[str] = field(default_factory=list)
    """Layers as they ran."""
    unread: dict[str, str] = field(default_factory=dict)
    """By layer whose output could not be read, the reason."""

    @property
    def samples(self) -> int:
        """Samples of the batch: most layers have a row for each, few fold positions into them."""
        return self.known_samples or (mode(self.lengths) if self.lengths else 0)


class _Input(NamedTuple):
    """What a layer was given."""

    features: Tensor | str
    """A few rows, or the name of the layer whose output they are."""
    total: int
    """How many rows there are."""


class _Range(NamedTuple):
    """Smallest and largest number of each unit."""

    low: Tensor
    high: Tensor


class _Made(NamedTuple):
    """What the last layer with weights made, for comparison with what the next one is fed."""

    tensor: Tensor
    version: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing was written into it since."""
        return self.tensor._version == self.version


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
        self.hidden = {layer.name for layer in layers if id(layer.module) in hidden}
        """Names of layers within compiled modules."""
        self.settled: set[str] = set()
        """Layers whose inputs are not recorded: their outputs need no excuse."""
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
        self._model = None if id(model) in hidden else model
        self._rows = RowReader(model)
        self._channels_last: dict[tuple[str, int], bool] = {}
        self._before, self._after = self._hooks()
        self._handles: list[RemovableHandle] = []
        self._start()

    def _hooks(self) -> tuple[dict[nn.Module, Hook], dict[nn.Module, Hook]]:
        """What runs before and after each module, one hook a module, made once."""
        before: dict[nn.Module, list[Hook]] = defaultdict(list)
        after: dict[nn.Module, list[Hook]] = defaultdict(list)
        if self._model is not None:
            before[self._model].append(self._begin)
        for layer in self._layers:
            before[layer.module].append(partial(self._enter, layer.name))
            after[layer.module].append(partial(self._leave, layer.name))
        for module, owner in self._leaves:
            before[module].append(self._feed)
            after[module].append(partial(self._pass, owner))
        for module, holder, activation in self._activations:
            if activation.death is Death.FLAT:
                before[module].append(self._prepare)
            after[module].append(partial(self._activate, holder, activation))
        return _in_turn(before), _in_turn(after)

    def _start(self) -> None:
        self._activity = Activity()
        self._last: str | None = None
        self._made: _Made | None = None
        self._left: tuple[str, Tensor, int] | None = None
        self._running: list[str] = []
        self._places: dict[str, int] = {}
        self._inputs: dict[str, dict[torch.Size | None, _Input | None]] = {}
        self._given: dict[int, tuple[torch.Size, _Range]] = {}
        self._seen: dict[int, Any] = {}  # the nodes are kept, or their ids would be given away
        self._rows.samples = None

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

    def attach(self, batch: Any = None, expected: int | None = None) -> None:
        """Begin to record.

        Args:
            batch: What will be sent through the model, for the number of its samples.
            expected: Samples of a batch by the loader's account.
        """
        self.detach()
        self._rows.samples = self._rows.count(batch, expected)
        self.resume()

    def resume(self) -> None:
        """Go on recording after a pause."""
        for module, hook in self._before.items():  # one by one: none is lost where one fails
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        for module, hook in self._after.items():
            self._handles.append(module.register_forward_hook(hook))

    def pause(self) -> None:
        """Take the hooks off, and keep what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._made = self._left = None

    def detach(self) -> Activity:
        """Stop recording, and return what was recorded."""
        self.pause()
        activity = self._activity
        activity.known_samples = self._rows.samples
        self._start()
        return activity

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._rows.samples is None:
            self._rows.samples = self._rows.count((args, kwargs))

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(name)
        self._activity.executed.append(name)
        self._places[name] = 0  # a second run in the same step meets the same places again
        if name not in self._activity.kept:
            self._inputs[name] = self._read_inputs(name, (args, kwargs), module)

    def _read_inputs(
        self, layer: str, value: Any, module: nn.Module
    ) -> dict[torch.Size | None, _Input | None]:
        """By shape: of several inputs it is the one shaped like the output that goes on in it."""
        found: dict[torch.Size | None, _Input | None] = {}
        for part in [*value[0], *value[1].values()]:
            tensor = main_tensor(part)
            if tensor is not None and tensor.ndim > 1 and len(found) < _MOST_INPUTS:
                shape = None if tensor.is_nested else tensor.shape
                if shape not in found:
                    found[shape] = self._input(layer, part, module)
        return found or {None: self._input(layer, value, module)}

    def _input(self, layer: str, value: Any, module: nn.Module) -> _Input | None:
        tensor = main_tensor(value)
        if self._left is not None and self._left[1] is tensor:
            name, _, version = self._left
            if tensor._version == version and name in self._activity.kept:
                return _Input(name, self._activity.lengths[-1])
        if layer in self.settled:
            return None
        rows = self._rows.read(value, module)
        return None if rows is None else _Input(*rows)

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        tensor = main_tensor(output)
        plain = None if tensor is None else as_plain(tensor)
        activity = self._activity
        if tensor is None or plain is None:
            activity.unread[name] = describe_unread(output)
            return
        if plain.numel() == 0:
            return
        activity.norms[name].append(_norm(plain))
        activity.numels[name] = activity.numels.get(name, 0) + tensor.numel()
        rows = self._rows.read(output, module)
        activity.lengths.append(rows.total if rows else len(plain) if plain.ndim else 0)
        if name not in activity.kept and rows is not None and rows.total >= FEWEST_SAMPLES:
            activity.kept[name] = rows.features
            activity.widths[name] = self._width(name, tensor, module)
            inputs = self._inputs.get(name) or {None: None}
            shape = None if tensor.is_nested else tensor.shape
            given = inputs.get(shape, next(iter(inputs.values())))
            if given is not None and given.total == rows.total:
                activity.fed[name] = given.features
        self._left = (name, tensor, tensor._version)

    def _width(self, name: str, output: Tensor, module: nn.Module) -> int:
        key = (name, output.ndim)
        if key not in self._channels_last:
            last = output.is_nested or output.ndim < 3 or is_channels_last(output, module)
            self._channels_last[key] = last
        return output.size(-1 if self._channels_last[key] else 1)

    def _feed(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = main_tensor((args, kwargs))
        origin = describe_origin(tensor) if tensor is not None else None
        if tensor is None or origin is None or self._last is None:
            return
        activation, node = origin
        output = by_units(tensor, node)
        known = self._made is not None and self._made.is_whole and _is_by_range(activation)
        source = _range(self._made.tensor) if known and self._made is not None else None
        self._record(self._last, activation, output, node, source)

    def _pass(self, owner: str, module: nn.Module, args: Any, output: Any) -> None:
        self._last = owner
        tensor = main_tensor(output)
        self._made = None if tensor is None else _Made(tensor, tensor._version)

    def _prepare(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Look at the input of what may be an activation, which may write over it."""
        tensor = main_tensor((args, kwargs))
        if tensor is not None and (found := _range(tensor)) is not None:
            self._given[id(module)] = tensor.shape, found

    def _activate(
        self, owner: str | None, activation: Activation, module: nn.Module, args: Any, output: Any
    ) -> None:
        layer = self._running[-1] if self._running else owner or self._last
        if layer is None or not isinstance(output, Tensor) or not output.is_floating_point():
            return
        origin = describe_origin(output)
        source: _Range | None = None
        if activation.death is Death.FLAT:
            shape, source = self._given.pop(id(module), (None, None))
            if output.shape != shape and not isinstance(module, nn.GLU):
                return
            activation = origin[0] if origin else activation
        self._record(layer, activation, output, origin[1] if origin else None, source)

    def _record(
        self, layer: str, activation: Activation, output: Tensor, node: Any, source: _Range | None
    ) -> None:
        if output.numel() == 0 or output.is_nested or id(node) in self._seen:
            return
        if node is not None:
            self._seen[id(node)] = node
        place = f"{layer}#{self._places.get(layer, 0)}{'' if activation.sure else UNSURE}"
        self._places[layer] = self._places.get(layer, 0) + 1
        axis, output = unit_axis(output), output.detach()
        others = [dim for dim in range(output.ndim) if dim != axis]
        if output.ndim > 1 and activation.death is Death.BELOW_ZERO:
            self._activity.maxima[place].append(output.amax(others).float())
            total = output.sum(others, dtype=torch.float32)  # half as dear as a mean on a CPU
            self._activity.means[place].append(total.div_(output.numel() // len(total)))
        elif output.ndim > 1 and _is_by_range(activation):
            spread = (output.amax(others) - output.amin(others)).float()
            self._activity.means[place].append(spread)
            several = output.numel() > len(spread)
            judged = _judged(spread, activation, source) if several else spread + math.inf
            self._activity.maxima[place].append(judged)
        if activation.bounded:
            share = saturated_share(output, activation.low, activation.high)
            self._activity.saturated[place].append(share)


def _is_by_range(activation: Activation) -> bool:
    return activation.death in (Death.FLAT, Death.MASKED)


def _range(tensor: Tensor) -> _Range | None:
    """The range of each unit over a few samples and positions."""
    if tensor.ndim < 2 or tensor.is_nested or not tensor.numel() or tensor.is_complex():
        return None
    axis = unit_axis(tensor)
    few = few_of(tensor.detach(), axis)
    others = [dim for dim in range(few.ndim) if dim != axis]
    return _Range(few.amin(others), few.amax(others))


def _judged(spread: Tensor, activation: Activation, source: _Range | None) -> Tensor:
    """The range of each unit, infinite where its input allows no judgement.

    Args:
        spread: Range of the output of each unit.
        activation: What is known of the activation.
        source: Range of its input, None where it is not known.
    """
    if source is None:
        return spread
    able = source.high > source.low
    if activation.death is Death.MASKED:
        able &= (source.low >= 0) | (source.high <= 0)
    if len(able) != len(spread):
        able = able.any()
    return torch.where(able, spread, math.inf)


def _norm(plain: Tensor) -> Tensor:
    """The norm, in single precision at least: squares of half precision overflow."""
    wide = plain.dtype == torch.float64
    norm: Tensor = torch.linalg.vector_norm(plain, dtype=None if wide else torch.float32)
    return norm


def _in_turn(hooks: Mapping[nn.Module, list[Hook]]) -> dict[nn.Module, Hook]:
    """One hook a module, that runs all of its hooks."""
    return {
        module: several[0] if len(several) == 1 else partial(_run_all, several)
        for module, several in hooks.items()
    }


def _run_all(hooks: list[Hook], *args: Any) -> None:
    for hook in hooks:
        hook(*args)
