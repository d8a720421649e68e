"""The parts every block is made of: weights, normalisation and activation, by name or callable.

One vocabulary serves images (``dims=2``, convolutions on ``(B, C, H, W)``) and multilayer
perceptrons (``dims=0``, linear layers on ``(B, C)``), so that a block is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from timm.layers.create_act import get_act_layer
from timm.layers.create_norm import get_norm_layer
from timm.layers.norm import LayerNorm2d
from torch import nn

from lightning_depth.errors import check_count, check_name, invalid

__all__ = [
    "Activation",
    "Norm",
    "append_activated",
    "append_preactivated",
    "check_channels",
    "make_activation",
    "make_norm",
    "make_weight",
    "resolve_norm",
    "weight_name",
]

Activation = str | Callable[..., nn.Module]
Norm = str | Callable[..., nn.Module] | None

ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish"),
    *("hard_sigmoid", "hard_swish", "sigmoid", "tanh", "identity"),
)
NORMS = ("auto", "batchnorm", "groupnorm", "layernorm", "rmsnorm", "none")
GROUPS = 32  # Wu and He 2018; narrower layers take the largest common divisor


def check_channels(in_channels: int, out_channels: int, stride: int, dims: int) -> None:
    """Refuse the counts no block can be built from."""
    check_count("in_channels", in_channels)
    check_count("out_channels", out_channels)
    check_count("stride", stride)
    if dims not in (0, 2):
        raise invalid("dims", "0 (linear layers) or 2 (images)", dims)
    if dims == 0 and stride != 1:
        raise invalid("stride", "1 where `dims` is 0, which has nothing to stride over", stride)


def make_activation(activation: Activation, inplace: bool = False) -> nn.Module:
    """Return a fresh activation module; ``inplace`` is a wish that not every one can fulfil."""
    layer = _activation_class(activation) if isinstance(activation, str) else activation
    if not inplace:
        return layer()
    try:
        return layer(inplace=True)
    except TypeError:  # PReLU, sigmoid of torch and most callables have no such argument
        return layer()


def _activation_class(name: str) -> Callable[..., nn.Module]:
    try:
        found: Callable[..., nn.Module] = get_act_layer(name)
    except KeyError:
        found = getattr(nn, name, None)  # type: ignore[assignment]
    if found is None or not isinstance(found, type) or not issubclass(found, nn.Module):
        check_name("activation", name, ACTIVATIONS)
    return found


def resolve_norm(norm: Norm, dims: int) -> Norm:
    """Return what ``"auto"`` stands for: batch normalisation for images, none for MLPs."""
    if norm == "auto":
        return "batchnorm" if dims else None
    return None if norm == "none" else norm


def make_norm(norm: Norm, num_features: int, dims: int) -> nn.Module | None:
    """Return a fresh normalisation of that many features, or None where there is to be none."""
    norm = resolve_norm(norm, dims)
    if norm is None or callable(norm):
        return None if norm is None else norm(num_features)
    name = norm.lower().replace("_", "").removesuffix("1d").removesuffix("2d")
    if name == "batchnorm":
        return nn.BatchNorm2d(num_features) if dims else nn.BatchNorm1d(num_features)
    if name == "layernorm":
        return LayerNorm2d(num_features) if dims else nn.LayerNorm(num_features)
    if name == "groupnorm":
        return nn.GroupNorm(math.gcd(GROUPS, num_features), num_features)
    try:
        make = get_norm_layer(f"{name}2d" if dims else name)  # type: ignore[no-untyped-call]
        layer: nn.Module = make(num_features)
    except KeyError:
        check_name("normalisation", norm, NORMS)
        raise
    return layer


def weight_name(dims: int) -> str:
    """Return what a weight layer is called among a block's parameters."""
    return "conv" if dims else "linear"


def make_weight(
    in_channels: int,
    out_channels: int,
    dims: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    """Return a convolution that keeps the size but for its stride, or a linear layer."""
    if dims == 0:
        return nn.Linear(in_channels, out_channels, bias=bias)
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=bias,
    )


def append_activated(
    layers: nn.Sequential,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    activation: Activation | None,
    norm: Norm,
    *,
    dims: int = 2,
    stride: int = 1,
    groups: int = 1,
) -> None:
    """Append weight, normalisation and activation (None leaves it out), in that order, numbered."""
    number = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers) + 1
    weight = make_weight(
        *(in_channels, out_channels, dims),
        kernel_size=kernel_size,
        stride=stride,
        groups=groups,
        bias=resolve_norm(norm, dims) is None,
    )
    layers.add_module(f"{weight_name(dims)}{number}", weight)
    layer = make_norm(norm, out_channels, dims)
    if layer is not None:
        layers.add_module(f"norm{number}", layer)
    if activation is not None:
        layers.add_module(f"act{number}", make_activation(activation, inplace=True))


def append_preactivated(
    layers: nn.Sequential,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    dims: int,
    activation: Activation,
    norm: Norm,
    *,
    stride: int = 1,
    activated: bool = True,
) -> None:
    """Append normalisation, activation and weight, in that order, numbered.

    Without a normalisation the activation reads the input itself, which others may read too, so
    that it must not work in place.
    """
    number = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers) + 1
    if activated:
        layer = make_norm(norm, in_channels, dims)
        if layer is not None:
            layers.add_module(f"norm{number}", layer)
        layers.add_module(f"act{number}", make_activation(activation, inplace=layer is not None))
    bias = resolve_norm(norm, dims) is None
    weight = make_weight(
        *(in_channels, out_channels, dims), kernel_size=kernel_size, stride=stride, bias=bias
    )
    layers.add_module(f"{weight_name(dims)}{number}", weight)
