"""The families for large images: a stem that divides by four, then four stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_depth.blocks import BlockFactory
from lightning_depth.blocks.dense import compressed
from lightning_depth.errors import check_count, check_divisible
from lightning_depth.networks._assemble import Block, Stage, as_factory, assemble
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._families import check_depth

__all__ = ["build_imagenet"]

# blocks of each stage; the depth is their weight layers, the stem and the classifier
STAGES = ((2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3))
DENSE_STAGES = ((6, 12, 24, 16), (6, 12, 32, 32), (6, 12, 36, 24), (6, 12, 48, 32))


def build_imagenet(
    block: Block,
    depth: int,
    width: int | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    block_options: Mapping[str, Any] | None = None,
    *,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ConvNet:
    """Build a network of four stages for images of about 224 pixels.

    The families of He et al. 2015 (depth 18, 34 with blocks of two layers; 50, 101, 152 with
    bottlenecks) and Huang et al. 2016 (dense: 121, 161, 169, 201).

    Args:
        block: Name of a block, or a factory called with in_channels, out_channels and stride.
        depth: One of the depths of the family; another one gets an error with the nearest two.
        width: Channels of the first stage, by default 64 (256 for bottlenecks), doubled in each
            further one; for dense nets the growth rate, by default 32.
        num_classes: Outputs of the classifier; 0 leaves the pooled features.
        in_channels: Channels of the images.
        block_options: Keyword options of the block, where it is given by name.
        global_pool: How the last feature map is pooled, by timm's name.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising in equal steps from 0.

    Returns:
        The network, with the weights of a fresh start.

    Raises:
        ConfigurationError: The family lacks the depth, or a count or option is not valid.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     net = build_imagenet("residual", depth=34)
        >>> sum(parameter.numel() for parameter in net.parameters())
        21623848
    """
    check_count("num_classes", num_classes, minimum=0)
    factory = as_factory(block, 2, block_options)
    if factory.trait("grows", False):
        width = check_count("width", 32 if width is None else width)
        factory = factory.with_options(growth_rate=width)
        stem_width, stages = _plan_dense(factory, depth, width)
    else:
        expansion = factory.measure("expansion", width or 64, 1)
        width = check_count("width", 64 * expansion if width is None else width)
        factory.try_out(width)
        stem_width = check_divisible("width", width, "expansion", expansion)
        stages = _plan(factory, depth, width)
    return assemble(
        *(factory, stages, stem_width, num_classes),
        in_channels=in_channels,
        stem="imagenet",
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def _plan(factory: BlockFactory, depth: int, width: int) -> list[Stage]:
    layers = factory.measure("num_layers", width, 2)
    known = {layers * sum(counts) + 2: counts for counts in STAGES}
    counts = known[check_depth(factory.name, depth, known)]
    return [
        [(width * 2**number, 2 if number and not block else 1) for block in range(count)]
        for number, count in enumerate(counts)
    ]


def _plan_dense(factory: BlockFactory, depth: int, width: int) -> tuple[int, list[Stage]]:
    layers = 2 if factory.options.get("bottleneck", False) else 1
    known = {layers * sum(counts) + 5: counts for counts in DENSE_STAGES}
    counts: Sequence[int] = known[check_depth(factory.name, depth, known)]
    compression = factory.options.get("compression", 1.0)
    channels, stages = 2 * width, []
    for number, count in enumerate(counts):
        channels = compressed(channels, compression if number else 1.0) + count * width
        stages.append([(channels, 2 if number else 1)])
    return 2 * width, list(stages)
