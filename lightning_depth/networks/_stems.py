"""What an image goes through before the first block."""

from __future__ import annotations

from torch import nn

from lightning_depth.blocks._init import initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    make_activation,
    make_norm,
    make_weight,
    resolve_norm,
    weight_name,
)
from lightning_depth.errors import check_choice, check_count

__all__ = ["STEMS", "make_stem", "make_stem_pool", "stem_reduction"]

# kernel size and stride of the convolution, and whether 3x3 max pooling of stride 2 follows
STEMS = {
    "cifar": (3, 1, False),
    "imagenet": (7, 2, True),
    "mobile": (3, 2, False),
    "shuffle": (3, 2, True),
}


def make_stem(
    kind: str,
    in_channels: int,
    out_channels: int,
    *,
    dims: int = 2,
    activation: Activation = "relu",
    norm: Norm = "auto",
    activated: bool = True,
) -> nn.Sequential:
    """Return the first weight layer with its normalisation and activation.

    "cifar" is a 3x3 convolution that keeps the size (for an MLP, a linear layer), "imagenet" a 7x7
    one of stride 2. Before preactivation blocks, which normalise and activate on their own, the
    stem is not ``activated``.
    """
    check_choice("stem", kind, STEMS)
    check_count("in_channels", in_channels)
    stem = nn.Sequential()
    bias = resolve_norm(norm, dims) is None
    kernel_size, stride, _ = STEMS[kind]
    weight = make_weight(
        *(in_channels, out_channels, dims), kernel_size=kernel_size, stride=stride, bias=bias
    )
    stem.add_module(weight_name(dims), weight)
    if activated:
        layer = make_norm(norm, out_channels, dims)
        if layer is not None:
            stem.add_module("norm", layer)
        stem.add_module("act", make_activation(activation, inplace=True))
    initialize(stem, "kaiming")
    return stem


def make_stem_pool(kind: str) -> nn.Module:
    """Return the pooling between the stem and the first stage, where there is one."""
    return nn.MaxPool2d(3, 2, 1) if STEMS[kind][2] else nn.Identity()


def stem_reduction(kind: str) -> tuple[int, int]:
    """Return by how much the stem divides the size, before and after its pooling."""
    _, stride, pooled = STEMS[kind]
    return stride, stride * (2 if pooled else 1)
