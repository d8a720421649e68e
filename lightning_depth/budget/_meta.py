"""A copy of a model on the meta device: shapes without memory, and nothing of the original touched.

Parameters and buffers are replaced while copying, so that a network of any size is copied in
milliseconds. Observers of the user (forward hooks, a Trainer) stay behind: they would be called
with tensors that hold no numbers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["copy_to_meta"]

_OBSERVERS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_OWNERS = ("_trainer", "_fabric")  # what a LightningModule points back to


def copy_to_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a model in float32 on the meta device, without the user's hooks.

    Args:
        model: Any module; one that `torch.compile` wrapped is unwrapped.

    Returns:
        The copy; tied parameters stay tied, lazy parameters stay lazy.
    """
    original = getattr(model, "_orig_mod", model)
    memo: dict[int, Any] = {}
    hooks: list[tuple[OrderedDict[int, Any], dict[int, Any]]] = []
    for module in original.modules():
        for tensor in _tensors_of(module):
            memo.setdefault(id(tensor), _on_meta(tensor))
        for name in (*_OBSERVERS, "_forward_pre_hooks"):
            memo[id(getattr(module, name))] = OrderedDict()
        before = module._forward_pre_hooks
        kept = {key: hook for key, hook in before.items() if _computes_weights(hook, module)}
        hooks.append((memo[id(before)], kept))
        memo.update({id(vars(module)[name]): None for name in _OWNERS if vars(module).get(name)})
    twin = copy.deepcopy(original, memo)
    for target, kept in hooks:  # only now: a hook may be a method of a module
        target.update(copy.deepcopy(kept, memo))
    return twin


def _tensors_of(module: nn.Module) -> list[Tensor]:
    holders = (module._parameters, module._buffers, vars(module))
    return [value for holder in holders for value in holder.values() if isinstance(value, Tensor)]


def _on_meta(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if is_lazy(tensor):
        make: Any = type(tensor)  # an uninitialised parameter or buffer
        return cast("Tensor", make(device="meta", dtype=dtype))
    twin = torch.empty_like(tensor, device="meta", dtype=dtype, requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, requires_grad=tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad)


def _computes_weights(hook: Any, module: nn.Module) -> bool:
    """Return whether a pre-hook is part of the network: weight norm, lazy initialisation."""
    of_torch = type(hook).__module__.startswith("torch.nn.utils")
    return of_torch or (isinstance(hook, MethodType) and hook.__self__ is module)
