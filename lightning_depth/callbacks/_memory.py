"""Everything that a step of the user's may change on its module, remembered and put back.

A step appends to lists, counts, keeps running statistics and updates metrics. What it can reach
from the module is therefore walked once: tensors are copied, containers and the attributes of
objects are noted, and afterwards each of them holds again what it held, as the same object.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Memory", "own_random_numbers", "replaced"]

_MANY = 1000
"""Containers with more entries are noted, but their entries are not walked."""
_LIBRARIES = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"}
_OPAQUE = (type, FunctionType, MethodType, ModuleType)


class Memory:
    """State of objects as it is now.

    Args:
        roots: Where to begin.
        weights: Whether parameters are copied too (to the host), and not only buffers.

    Example:
        >>> outputs = [1]
        >>> memory = Memory([outputs])
        >>> outputs.append(2)
        >>> memory.restore()
        >>> outputs
        [1]
    """

    def __init__(self, roots: Iterable[Any], *, weights: bool = False) -> None:
        self.changed_weights = False
        self._weights = weights
        self._undo: list[Callable[[], Any]] = []
        self._seen: dict[int, Any] = {}  # holds the objects, so that their numbers stay theirs
        waiting = list(roots)
        while waiting:
            value = waiting.pop()
            if id(value) not in self._seen and not _is_plain(value):
                self._seen[id(value)] = value
                waiting.extend(self._note(value))

    def restore(self) -> None:
        """Put everything back, whatever fails; the first error is raised at the end."""
        errors: list[Exception] = []
        for undo in self._undo:
            try:
                undo()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _note(self, value: Any) -> Iterable[Any]:
        """Remember one object and return those that it holds."""
        if isinstance(value, nn.Parameter):
            self._note_parameter(value)
        elif isinstance(value, Tensor):
            self._note_tensor(value)
        elif isinstance(value, np.ndarray):
            if value.flags.writeable:  # nobody changes the others through this object
                copy = value.copy()
                self._undo.append(lambda: np.copyto(value, copy))
        elif isinstance(value, (dict, list, set, deque, tuple)):
            return self._note_container(value)
        elif undo := _undo_random(value):
            self._undo.append(undo)
        elif _has_own_state(value):
            return self._note_attributes(value)
        return ()

    def _note_parameter(self, parameter: nn.Parameter) -> None:
        gradient, wanted = parameter.grad, parameter.requires_grad
        copy = _own_part(parameter).to("cpu", copy=True) if self._weights else None

        def undo() -> None:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
            if copy is not None and not _same_bits(_own_part(parameter), copy):
                self.changed_weights = True
                _own_part(parameter).copy_(copy)

        self._undo.append(undo)

    def _note_tensor(self, tensor: Tensor) -> None:
        """A tensor is written without counting it as a change: somebody may go backward through it.

        What is expanded, and so stands for several elements of its own, is written at each once.
        """
        own = _without_repetition(tensor.detach())
        copy = own.clone()
        self._undo.append(lambda: own.data.copy_(copy))

    def _note_container(self, value: Any) -> Iterable[Any]:
        if isinstance(value, dict):
            pairs = list(value.items())
            self._undo.append(lambda: _refill_mapping(value, pairs))
            entries: list[Any] = list(value.values())
        else:
            entries = list(value)
            if not isinstance(value, tuple):
                self._undo.append(lambda: _refill(value, entries))
        return entries if len(entries) <= _MANY else ()

    def _note_attributes(self, value: Any) -> Iterable[Any]:
        self._note_slots(value)
        attributes = getattr(value, "__dict__", {})
        pairs = list(attributes.items())
        # sharding swaps parameters for whole tensors and back, in the pass and after it
        sharded = dict(attributes.get("_parameters", {})) if isinstance(value, nn.Module) else {}

        def undo() -> None:
            swapped = [(name, attributes[name]) for name in sharded if name in attributes]
            _refill_mapping(attributes, [*pairs, *swapped])

        self._undo.append(undo)
        pairs += self._slots_of(value)
        held = [part for name, part in pairs if not (sharded and name == "_parameters")]
        return [*held, *sharded.values()]

    def _note_slots(self, value: Any) -> None:
        for name, part in self._slots_of(value):
            self._undo.append(partial(object.__setattr__, value, name, part))

    @staticmethod
    def _slots_of(value: Any) -> list[tuple[str, Any]]:
        """The attributes of an object that its class declares instead of keeping a dictionary."""
        declared = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
        names = [name for some in declared for name in ([some] if isinstance(some, str) else some)]
        own = [name for name in names if not name.startswith("__") and hasattr(value, name)]
        return [(name, getattr(value, name)) for name in own]


@contextmanager
def own_random_numbers(*, include_cuda: bool) -> Iterator[None]:
    """Put the random numbers of torch, NumPy and Python back, also after an error.

    Lightning's ``isolate_rng`` leaves them where the error struck.

    Args:
        include_cuda: Whether those of CUDA are put back too.
    """
    states = _collect_rng_states(include_cuda)
    try:
        yield
    finally:
        _set_rng_states(states)


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Give an object other attributes for a while.

    Args:
        target: The object.
        **attributes: Their values for now.
    """
    before = {name: getattr(target, name) for name in attributes}
    own = set(getattr(target, "__dict__", attributes))
    try:
        for name, value in attributes.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            if name in own or isinstance(getattr(type(target), name, None), property):
                setattr(target, name, value)
            else:
                delattr(target, name)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, bytes, *_OPAQUE))


def _has_own_state(value: Any) -> bool:
    """Whether an object's attributes are the user's; libraries' own machinery is left alone."""
    if isinstance(value, (nn.Module, LRScheduler)):
        return True
    libraries = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    has_state = hasattr(value, "__dict__") or hasattr(value, "__slots__")
    return has_state and not libraries & _LIBRARIES


def _undo_random(value: Any) -> Callable[[], Any] | None:
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, (random.Random, np.random.RandomState)):
        get, put = (
            ("getstate", "setstate")
            if hasattr(value, "getstate")
            else (
                "get_state",
                "set_state",
            )
        )
        known = getattr(value, get)()
        return lambda: getattr(value, put)(known)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    return None


def _refill(value: Any, entries: list[Any]) -> None:
    if len(value) == len(entries) and all(map(_is_same, value, entries)):
        return
    value.clear()
    (value.update if isinstance(value, set) else value.extend)(entries)


def _refill_mapping(value: Any, pairs: list[tuple[Any, Any]]) -> None:
    if len(value) == len(pairs) and all(map(_is_same_pair, value.items(), pairs)):
        return
    value.clear()
    value.update(dict(pairs))


def _is_same(one: Any, other: Any) -> bool:
    return one is other


def _is_same_pair(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return one[0] is other[0] and one[1] is other[1]


def _own_part(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter, sharing its memory."""
    whole: Any = parameter.data
    part: Tensor = whole.to_local() if hasattr(whole, "to_local") else whole
    return part


def _without_repetition(tensor: Tensor) -> Tensor:
    """Return a view with each element of memory once, of a tensor that was expanded."""
    for dim in range(tensor.ndim):
        if tensor.layout is torch.strided and tensor.stride(dim) == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _same_bits(tensor: Tensor, copy: Tensor) -> bool:
    now = tensor.detach().to("cpu")
    return torch.equal(torch.nan_to_num(now), torch.nan_to_num(copy)) and torch.equal(
        now.isnan(), copy.isnan()
    )
