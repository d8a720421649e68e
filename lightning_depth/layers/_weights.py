"""Which parameters are weights, by the module that owns them.

Gains, scales, gates, tokens, positions and biases have a size of their own, often tiny or zero by
design: what is measured relative to the weights, or shrinks them, is not about these. Their shape
does not tell: a layer scale may be (C,), (1, 1, C) or (C, 1, 1), a norm's gain (C, H, W).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import Parameter, is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_depth.layers._names import clean_name

__all__ = ["is_scale", "is_weight", "weight_parameters"]

_OWNERS = (
    nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
    nn.MultiheadAttention,
)  # fmt: skip
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_SCALING_CLASS = re.compile(r"(norm|normalization|scale|affine)(\dd|act)*$", re.IGNORECASE)
_ADDED = re.compile(r"bias|token|pos(ition)?(al)?_?(emb|enc)", re.IGNORECASE)
_SCALING = re.compile(
    r"(^gate|(^|_)(gamma|scale|gain|alpha|beta|lambda|temperature))s?(_?\d+)?$", re.IGNORECASE
)


def is_weight(owner: nn.Module, name: str, shape: Sequence[int] | None) -> bool:
    """Return whether a parameter is a weight: what linear, convolutional and such layers learn.

    The weights of linear, convolutional, embedding, recurrent and attention modules are; biases,
    and all that a normalization or a scaling module owns, are not. A parameter of any other
    module is one if more than one of its axes is longer than one and its name calls it no scale,
    gate, token, position or bias.

    Args:
        owner: The module that holds the parameter itself.
        name: Its name in that module.
        shape: Its shape in the code of the module, of which a rank may hold a part; None where
            it is not yet known.

    Example:
        >>> norm, linear = nn.LayerNorm([4, 8, 8]), nn.Linear(1, 8)
        >>> is_weight(norm, "weight", (4, 8, 8)), is_weight(linear, "weight", (8, 1))
        (False, True)
    """
    if _ADDED.search(name) or _is_scaling_module(owner):
        return False
    if _is_gain_of_weight_norm(owner, name):
        return False
    if isinstance(owner, (*_OWNERS, ParametrizationList)):
        return True
    return not _SCALING.search(name) and (shape is None or _is_wide(shape))


def is_scale(owner: nn.Module, name: str, shape: Sequence[int] | None) -> bool:
    """Return whether a parameter multiplies a signal: a gain, a layer scale or a gate.

    A single number or a row of numbers that a module of one's own holds counts as one, unless its
    name calls it a token, a position or a bias.

    Args:
        owner: The module that holds the parameter itself.
        name: Its name in that module.
        shape: As in ``is_weight``.

    Example:
        >>> norm = nn.LayerNorm(8)
        >>> is_scale(norm, "weight", (8,)), is_scale(norm, "bias", (8,))
        (True, False)
    """
    return not _ADDED.search(name) and not is_weight(owner, name, shape)


def weight_parameters(model: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Yield the weights of a model with their dotted names, each once.

    Args:
        model: Any module.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> [name for name, _ in weight_parameters(net)]
        ['0.weight']
    """
    seen: set[int] = set()
    for path, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            shape = None if is_lazy(parameter) else parameter.shape
            if id(parameter) not in seen and is_weight(owner, name, shape):
                seen.add(id(parameter))
                yield clean_name(f"{path}.{name}" if path else name), parameter


def _is_scaling_module(owner: nn.Module) -> bool:
    return isinstance(owner, _NORMS) or bool(_SCALING_CLASS.search(type(owner).__name__))


def _is_gain_of_weight_norm(owner: nn.Module, name: str) -> bool:
    """Both forms of torch's weight normalization split a weight into direction and gain."""
    if name == "original0":
        return isinstance(owner, ParametrizationList) and hasattr(owner, "original1")
    return name == "weight_g" and hasattr(owner, "weight_v")


def _is_wide(shape: Sequence[int]) -> bool:
    return sum(size > 1 for size in shape) > 1
