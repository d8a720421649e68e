"""Networks of any depth and width from any block: the CIFAR-style families and MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_depth.blocks import BlockFactory
from lightning_depth.blocks.dense import compressed
from lightning_depth.errors import check_count, check_divisible
from lightning_depth.networks._assemble import Block, Stage, as_factory, assemble, assemble_mlp
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._families import Family
from lightning_depth.networks._mlp import MultilayerPerceptron

__all__ = ["build_convnet", "build_mlp"]

NUM_STAGES = 3


def build_convnet(
    block: Block,
    depth: int,
    width: int,
    num_classes: int,
    in_channels: int = 3,
    stem: str = "cifar",
    block_options: Mapping[str, Any] | None = None,
    *,
    stem_width: int | None = None,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ConvNet:
    """Build a convolutional network of three stages, each half the size of the one before.

    The families of He et al. 2015 (plain, residual: depth 6n+2; bottleneck kinds: 9n+2),
    Zagoruyko and Komodakis 2016 (preactivation with a ``stem_width``: 6n+4) and Huang et al. 2016
    (dense: 3n+4, with bottleneck 6n+4). The network's own ``depth`` counts weight layers.

    Args:
        block: Name of a block, or a factory called with in_channels, out_channels and stride.
        depth: Depth by the family's own formula; another one gets an error with the nearest two.
        width: Channels of the first stage, doubled in each further one; for dense nets the
            growth rate.
        num_classes: Outputs of the classifier; 0 leaves the pooled features.
        in_channels: Channels of the images.
        stem: "cifar" keeps the size, "imagenet" divides it by four.
        block_options: Keyword options of the block, where it is given by name.
        stem_width: Channels of the stem, for wide nets, whose authors count two layers more.
        global_pool: How the last feature map is pooled, by timm's name.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising in equal steps from 0.

    Returns:
        The network, with the weights of a fresh start.

    Raises:
        ConfigurationError: The family lacks the depth, or a count or option is not valid.

    Example:
        >>> net = build_convnet("plain", depth=56, width=8, num_classes=10, in_channels=1)
        >>> sum(parameter.numel() for parameter in net.parameters())
        214402
    """
    check_count("width", width)
    check_count("num_classes", num_classes, minimum=0)
    factory = as_factory(block, 2, block_options)
    factory.try_out(width)
    plan = _plan_dense if factory.trait("grows", False) else _plan_even
    stem_width, stages, factory = plan(factory, depth, width, stem_width)
    return assemble(
        *(factory, stages, stem_width, num_classes),
        in_channels=in_channels,
        stem=stem,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def _plan_even(
    factory: BlockFactory, depth: int, width: int, stem_width: int | None
) -> tuple[int, list[Stage], BlockFactory]:
    """Plan stages of equally many blocks, twice as wide and half as large each time."""
    family = Family(
        factory.name,
        step=NUM_STAGES * factory.measure("num_layers", width, 2),
        offset=2 if stem_width is None else 4,
    )
    n = family.blocks_per_stage(depth)
    if stem_width is None:
        expansion = factory.measure("expansion", width, 1)
        stem_width = check_divisible("width", width, "expansion", expansion)
    widths = [width * 2**number for number in range(NUM_STAGES)]
    stages: list[Stage] = [
        [(channels, 2 if number and not block else 1) for block in range(n)]
        for number, channels in enumerate(widths)
    ]
    return check_count("stem_width", stem_width), stages, factory


def _plan_dense(
    factory: BlockFactory, depth: int, width: int, stem_width: int | None
) -> tuple[int, list[Stage], BlockFactory]:
    """Plan dense blocks with transitions between them; the width is the growth rate."""
    bottleneck = bool(factory.options.get("bottleneck", False))
    compression = factory.options.get("compression", 1.0)
    n = Family(factory.name, NUM_STAGES * (2 if bottleneck else 1), 4).blocks_per_stage(depth)
    if stem_width is None:
        stem_width = 2 * width if bottleneck else 16  # as the authors' networks have it
    channels = stem_width
    stages: list[Stage] = []
    for number in range(NUM_STAGES):
        channels = compressed(channels, compression if number else 1.0) + n * width
        stages.append([(channels, 2 if number else 1)])
    return stem_width, stages, factory.with_options(growth_rate=width)


def build_mlp(
    block: Block,
    hidden_layers: int,
    width: int,
    in_features: int,
    num_classes: int,
    block_options: Mapping[str, Any] | None = None,
) -> MultilayerPerceptron:
    """Build a multilayer perceptron whose hidden layers are blocks.

    The first hidden layer takes the inputs to the width, the others are blocks of that width
    (of one weight layer each, unless the options say otherwise); a linear classifier follows.
    In a dense net the others are the layers of one dense block, each adding ``width`` units.

    Args:
        block: Name of a block, or a factory called with in_channels, out_channels and stride.
        hidden_layers: Weight layers before the classifier.
        width: Units of each hidden layer.
        in_features: Units of the input, which is flattened first.
        num_classes: Outputs of the classifier; 0 leaves the last hidden layer.
        block_options: Keyword options of the block, where it is given by name; without a
            ``norm`` among them, the layers have biases and no normalisation.

    Returns:
        The network, with the weights of a fresh start.

    Raises:
        ConfigurationError: The block cannot make that many hidden layers, or a count or option
            is not valid.

    Example:
        >>> net = build_mlp("plain", hidden_layers=3, width=64, in_features=64, num_classes=10)
        >>> sum(parameter.numel() for parameter in net.parameters())
        13130
    """
    check_count("width", width)
    check_count("in_features", in_features)
    check_count("num_classes", num_classes, minimum=0)
    check_count("hidden_layers", hidden_layers)
    factory = as_factory(block, 0, block_options)
    factory.try_out(width)
    if factory.trait("grows", False):
        factory = factory.with_options(growth_rate=width)
        grown = [hidden_layers * width] if hidden_layers > 1 else []
        return assemble_mlp(factory, [in_features, width, *grown], num_classes, has_stem=True)
    has_stem = not factory.trait("begins_network", False)
    family = Family(factory.name, factory.measure("num_layers", width, 1), int(has_stem))
    count = 0
    if hidden_layers > has_stem:
        count = family.blocks_per_stage(hidden_layers, "hidden_layers")
    widths = [in_features] + [width] * (count + has_stem)
    return assemble_mlp(factory, widths, num_classes, has_stem=has_stem)
