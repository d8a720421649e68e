"""Where the output of a layer is read, and which of its axes is which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lightning_depth.layers import Layer, unwrap

__all__ = ["Tap", "find_taps", "is_channels_last", "is_sequence", "is_time_first"]

_SEQUENCE_MODULES = (
    nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder,
    nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip


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
    watched = {id(layer.module) for layer in layers}
    parents = list(root.modules())
    uses = Counter(id(child) for parent in parents for child in parent._modules.values())
    chains: dict[int, list[nn.Module]] = {}  # from each member of a Sequential to its end
    for parent in parents:
        if isinstance(parent, nn.Sequential):
            members = list(parent)
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


def is_channels_last(output: Tensor, module: nn.Module) -> bool:
    """Whether the last axis holds the features: told by the widths of the module's weights."""
    if output.ndim < 3:
        return False
    widths: set[int] = set()
    convolves = False
    for part in module.modules():
        convolves |= isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if isinstance(part, nn.RNNBase):  # whose weights hold several gates
            directions = 2 if part.bidirectional else 1
            widths.add((part.proj_size or part.hidden_size) * directions)
            continue
        widths |= {weight.shape[0] for weight in part.parameters(recurse=False) if weight.ndim}
        widths |= {getattr(part, "hidden_size", -1)}
    first, last = output.shape[1] in widths, output.shape[-1] in widths
    if first != last:
        return last
    return output.ndim == 3 and not convolves


def is_sequence(module: nn.Module) -> bool:
    """Whether it is one of torch's own sequence modules, which know their order of axes."""
    return isinstance(module, _SEQUENCE_MODULES)


def is_time_first(module: nn.Module) -> bool:
    """Whether it is one of torch's own sequence modules and puts time before the samples."""
    if not is_sequence(module):
        return False
    return any(getattr(part, "batch_first", True) is False for part in module.modules())


def _is_single(module: nn.Module) -> bool:
    """Whether a module, its wrappers and parametrisations looked through, has no parts."""
    return not set(unwrap(module)._modules) - {"parametrizations"}
