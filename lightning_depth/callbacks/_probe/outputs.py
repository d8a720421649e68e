"""Where the output of a layer is read, and as what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_depth.layers import Layer, unwrap

__all__ = ["Tap", "as_plain", "describe_output", "find_taps"]


class Tap(NamedTuple):
    """Where a layer is read.

    Args:
        layer: The layer.
        module: The module whose output is the layer's.
        is_shared: Whether that module serves others too: then only its first call after the
            layer's own says anything of the layer.
    """

    layer: Layer
    module: nn.Module
    is_shared: bool


def find_taps(layers: Sequence[Layer], root: nn.Module) -> list[Tap]:
    """Return where each layer is read: an activation that follows belongs to it.

    A single module in a Sequential hands on what its activation, normalisation or pooling
    without weights makes of it.
    """
    layers = [layer for layer in layers if layer.has_output]
    watched = {id(layer.module) for layer in layers}
    parents = list(root.modules())
    uses = Counter(id(child) for parent in parents for child in parent.children())
    chains: dict[int, list[nn.Module]] = {}  # from each member of a Sequential to its end
    for parent in parents:
        if isinstance(parent, nn.Sequential):
            members = [member for member in parent if member is not None]  # None is allowed
            for place, member in enumerate(members):
                chains.setdefault(id(member), members[place:])
    taps = []
    for layer in layers:
        module = layer.module
        if _is_single(module):
            for follower in chains.get(id(module), [module])[1:]:
                if id(follower) in watched or next(follower.parameters(), None) is not None:
                    break
                module = follower
        taps.append(Tap(layer, module, module is not layer.module and uses[id(module)] > 1))
    return taps


def _is_single(module: nn.Module) -> bool:
    """Whether a module, its wrappers and parametrisations looked through, has no parts."""
    return not set(unwrap(module)._modules) - {"parametrizations"}


def describe_output(output: Any) -> str:
    """What a layer hands on in which nothing can be read."""
    return "nothing" if output is None else f"a {type(output).__name__}"


def as_plain(features: Tensor) -> Tensor:
    """The whole of a tensor that is spread over devices, or of which only a part is stored."""
    if hasattr(features, "full_tensor"):
        features = features.full_tensor()
    if features.is_nested or features.layout is torch.strided:
        return features
    return features.to_dense()
