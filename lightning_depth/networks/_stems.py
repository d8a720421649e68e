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

__all__ = ["STEMS", "make_stem"]

STEMS = ("cifar", "imagenet")


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
    """Return the first weight layer and what follows it up to the first block.

    "cifar" is a 3x3 convolution that keeps the size (for an MLP, a linear layer); "imagenet" a
    7x7 one of stride 2, and 3x3 max pooling of stride 2. Before preactivation blocks, which
    normalise and activate on their own, the stem is not ``activated``.
    """
    check_choice("stem", kind, STEMS)
    check_count("in_channels", in_channels)
    large = kind == "imagenet"
    stem = nn.Sequential()
    bias = resolve_norm(norm, dims) is None
    kernel_size, stride = (7, 2) if large else (3, 1)
    weight = make_weight(
        *(in_channels, out_channels, dims), kernel_size=kernel_size, stride=stride, bias=bias
    )
    stem.add_module(weight_name(dims), weight)
    if activated:
        layer = make_norm(norm, out_channels, dims)
        if layer is not None:
            stem.add_module("norm", layer)
        stem.add_module("act", make_activation(activation, inplace=True))
    if large:
        stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
    initialize(stem, "kaiming")
    return stem
