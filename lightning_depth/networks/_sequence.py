"""Networks that are no family of equal stages, written down layer by layer as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_depth.blocks import BlockFactory, block_factory
from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import Activation, Norm, make_activation, make_norm
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._heads import make_head

__all__ = ["Block", "Conv", "Pool", "build_sequence"]


@dataclass(frozen=True)
class Conv:
    """A convolution with its normalisation and activation; ``padding`` defaults to the same size.

    Args:
        channels: Channels of the output.
        kernel_size: Side of the filters.
        stride: Step of the filters.
        padding: Zeros around the image.
        groups: Groups of channels that do not see each other.
        bias: Whether it has a bias even before a normalisation.
    """

    channels: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    bias: bool = False


@dataclass(frozen=True)
class Pool:
    """Pooling.

    Args:
        kernel_size: Side of the squares.
        stride: Step of the squares.
        kind: "max" or "mean".
        padding: Pixels around the image.
        ceil: Whether a last square that leaves the image counts.
    """

    kernel_size: int
    stride: int
    kind: str = "max"
    padding: int = 0
    ceil: bool = False


@dataclass(frozen=True)
class Block:
    """A block by name.

    Args:
        name: Name of the block.
        channels: Channels of the output.
        options: Keyword options of the block.
    """

    name: str
    channels: int
    options: Mapping[str, Any] = field(default_factory=dict)


Step = Conv | Pool | Block


def build_sequence(
    stages: Sequence[Sequence[Step]],
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    head_size: int = 0,
    hidden: Sequence[int] = (),
    activation: Activation = "relu",
    norm: Norm = None,
    init: Init = "kaiming",
    global_pool: str = "avg",
    drop_rate: float = 0.0,
) -> ConvNet:
    """Build a network from its layers; the first stage is the stem.

    ``head_size`` flattens a map of that side instead of averaging it, and ``hidden`` puts linear
    layers before the classifier.
    """
    style = (activation, norm, init)
    channels, reduction, depth = in_channels, 1, 1 + len(hidden)
    info, built = [], []
    for number, steps in enumerate(stages):
        stage = nn.Sequential()
        for step in steps:
            module = _make(step, channels, *style)
            channels = channels if isinstance(step, Pool) else step.channels
            reduction *= getattr(step, "stride", 1)
            depth += 0 if isinstance(step, Pool) else getattr(module, "num_layers", 1)
            stage.append(module)
        name = f"stages.{number - 1}" if number else f"stem.{len(stage) - 1}"
        info.append({"num_chs": channels, "reduction": reduction, "module": name})
        built.append(stage)
    head = make_head(
        *(channels, num_classes, global_pool, drop_rate),
        size=head_size,
        hidden=hidden,
        activation=activation,
    )
    return ConvNet(
        built[0],
        built[1:],
        head,
        pool=nn.Identity(),
        final=nn.Identity(),
        feature_info=info,
        num_features=channels,
        depth=depth,
        num_classes=num_classes,
        min_size=_smallest([step for steps in stages for step in steps]),
    )


def _make(step: Step, channels: int, activation: Activation, norm: Norm, init: Init) -> nn.Module:
    if isinstance(step, Pool):
        pool = nn.MaxPool2d if step.kind == "max" else nn.AvgPool2d
        return pool(step.kernel_size, step.stride, step.padding, ceil_mode=step.ceil)
    if isinstance(step, Block):
        factory: BlockFactory = block_factory(step.name, **step.options)
        return factory(channels, step.channels)
    layer = nn.Sequential()
    padding = step.kernel_size // 2 if step.padding is None else step.padding
    normalisation = make_norm(norm, step.channels, 2)
    convolution = nn.Conv2d(
        *(channels, step.channels, step.kernel_size, step.stride, padding),
        groups=step.groups,
        bias=step.bias or normalisation is None,
    )
    layer.add_module("conv", convolution)
    if normalisation is not None:
        layer.add_module("norm", normalisation)
    layer.add_module("act", make_activation(activation, inplace=True))
    initialize(layer, init)
    return layer


def _smallest(steps: Sequence[Step]) -> int:
    """Return the smallest side that leaves every step at least one pixel."""
    size = 1
    for step in reversed(steps):
        if isinstance(step, Block):
            continue
        padding = step.padding
        padding = step.kernel_size // 2 if padding is None else padding
        size = max(1, (size - 1) * step.stride + step.kernel_size - 2 * padding)
    return size
