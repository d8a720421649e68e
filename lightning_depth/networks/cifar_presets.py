"""Named networks for images of 32 x 32 and 28 x 28 pixels."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_depth.networks._build import build_convnet, build_mlp
from lightning_depth.networks._sequence import Block, Conv, Pool, build_sequence
from lightning_depth.networks._timm import Preset, image_config, register_presets

__all__: list[str] = []

CIFAR = image_config(32, 8, 10)
# With more layers than this, additions that each double the variance leave the range of float32
# where the batch normalisations have no statistics yet, so the branches start at zero instead.
KAIMING_UP_TO = 1000
BC: dict[str, Any] = {"bottleneck": True, "compression": 0.5}


def family(
    block: str, depth: int, width: int, *, stem_width: int | None = None, **options: Any
) -> Preset:
    """Return the preset of a family of three stages."""
    arguments: dict[str, Any] = {"block": block, "depth": depth, "width": width}
    if stem_width is not None:
        arguments["stem_width"] = stem_width
    if depth > KAIMING_UP_TO:
        options["init"] = "zero_last_gamma"
    return Preset(build_convnet, {**arguments, "block_options": options}, CIFAR, levels=4)


def wide(depth: int, factor: int) -> Preset:
    """Return a wide residual net (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""
    return family("preactivation", depth, 16 * factor, stem_width=16, shortcut="B")


def highway(channels: int, count: int) -> list[Block]:
    """Return highway blocks in a row."""
    return [Block("highway", channels)] * count


def maxout_perceptron(
    num_classes: int = 10,
    in_channels: int = 1,
    img_size: tuple[int, int] = (28, 28),
    **options: Any,
) -> nn.Module:
    """Return the maxout net for permuted digits (Goodfellow et al. 2013, arXiv 1302.4389)."""
    in_features = in_channels * img_size[0] * img_size[1]
    return build_mlp("maxout", in_features=in_features, num_classes=num_classes, **options)


PRESETS: dict[str, Preset] = {
    **{f"depth_cifar_plain{depth}": family("plain", depth, 16) for depth in (20, 32, 44, 56, 110)},
    **{
        f"depth_cifar_resnet{depth}": family("residual", depth, 16)
        for depth in (20, 32, 44, 56, 110, 1202)
    },
    **{
        f"depth_cifar_resnet{depth}_b": family("residual", depth, 16, shortcut="B")
        for depth in (20, 32, 44, 56, 110, 1202)
    },
    **{
        f"depth_cifar_preact_resnet{depth}": family("preactivation", depth, 16)
        for depth in (20, 56, 110)
    },
    **{
        f"depth_cifar_preact_resnet{depth}": family("preactivation_bottleneck", depth, 64)
        for depth in (164, 1001)
    },
    **{
        f"depth_cifar_wrn_{depth}_{factor}": wide(depth, factor)
        for depth, factor in ((16, 4), (16, 8), (22, 8), (28, 10), (40, 1), (40, 2), (40, 4))
    },
    **{
        f"depth_cifar_densenet_{depth}_{growth_rate}": family("dense", depth, growth_rate)
        for depth, growth_rate in ((40, 12), (100, 12), (100, 24))
    },
    **{
        f"depth_cifar_densenet_bc_{depth}_{growth_rate}": family("dense", depth, growth_rate, **BC)
        for depth, growth_rate in ((100, 12), (190, 40), (250, 24))
    },
    **{f"depth_cifar_revnet{depth}": family("reversible", depth, 32) for depth in (38, 110)},
    "depth_cifar_highway19": Preset(
        build_sequence,
        {
            "stages": (
                (Conv(32),),
                highway(32, 4),
                (Pool(2, 2), Conv(80), *highway(80, 5)),
                (Pool(2, 2), Conv(128), *highway(128, 5), Conv(100, 1)),
            ),
            "init": "xavier",
        },
        {**CIFAR, "first_conv": "stem.0.conv"},
        levels=4,
    ),
    "depth_mnist_highway10": Preset(
        build_sequence,
        {
            "stages": (
                (Conv(32, 5, padding=0),),
                highway(32, 2),
                (Pool(2, 2), *highway(32, 3)),
                (Pool(2, 2), *highway(32, 3), Pool(2, 2)),
            ),
            "head_size": 3,
            "init": "xavier",
        },
        {**image_config(28, 3, 10, channels=1), "first_conv": "stem.0.conv"},
        levels=4,
    ),
    "depth_maxout_mnist": Preset(
        maxout_perceptron,
        {"hidden_layers": 2, "width": 240, "block_options": {"pieces": 5}},
        {
            **image_config(28, 1, 10, channels=1),
            "pool_size": None,
            "fixed_input_size": True,
            "first_conv": "blocks.0.branch.linear1",
            "classifier": "head",
        },
    ),
}
register_presets(__name__, PRESETS)
