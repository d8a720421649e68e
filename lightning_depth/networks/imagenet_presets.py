"""Named networks for large images, from AlexNet to ShuffleNet."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from lightning_depth.networks._imagenet import build_imagenet
from lightning_depth.networks._key_maps import (
    dense_keys,
    mobile_v2_keys,
    preactivated_keys,
    residual_keys,
)
from lightning_depth.networks._lenet import build_lenet5_1998
from lightning_depth.networks._mobile import (
    build_mobilenet_v1,
    build_mobilenet_v2,
    build_shufflenet_v1,
)
from lightning_depth.networks._sequence import Block, Conv, Pool, build_sequence
from lightning_depth.networks._timm import Preset, image_config, like_timm, register_presets

__all__: list[str] = []

IMAGENET = image_config(224, 7, 1000)
SEQUENCE = {**IMAGENET, "first_conv": "stem.0.conv"}


def family(
    block: str, depth: int, width: int | None = None, *, timm_name: str = "", **options: Any
) -> Preset:
    """Return the preset of a family of four stages; a timm name brings timm's weights."""
    maps = {"dense": dense_keys, "preactivation": preactivated_keys}
    key_map = maps.get(block.removesuffix("_bottleneck"), residual_keys)
    return Preset(
        build_imagenet,
        {"block": block, "depth": depth, "width": width, "block_options": options},
        like_timm(timm_name) if timm_name else IMAGENET,
        key_map=key_map,
    )


def sequence(config: dict[str, Any], *stages: Any, levels: int = 5, **options: Any) -> Preset:
    """Return the preset of a network that is written down layer by layer."""
    return Preset(build_sequence, {"stages": stages, **options}, config, levels=levels)


def alexnet(groups: int) -> Preset:
    """Return AlexNet (Krizhevsky et al. 2012), its second, fourth and fifth layer in groups."""
    return sequence(
        {**SEQUENCE, "pool_size": (6, 6)},
        [Conv(96, 11, 4, 2)],
        [Pool(3, 2), Conv(256, 5, groups=groups)],
        [Pool(3, 2), Conv(384), Conv(384, groups=groups), Conv(256, groups=groups), Pool(3, 2)],
        levels=3,
        head_size=6,
        hidden=(4096, 4096),
        drop_rate=0.5,
    )


def vgg(norm: str | None) -> Preset:
    """Return VGG-19 (Simonyan and Zisserman 2014, arXiv 1409.1556)."""
    widths = [(64,), (64,), (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4]
    stages = [[Conv(width, bias=True) for width in stage] for stage in widths]
    pooled: list[list[Any]] = [
        stages[0],
        stages[1],
        *([Pool(2, 2), *stage] for stage in stages[2:]),
    ]
    pooled[-1].append(Pool(2, 2))
    return sequence(
        SEQUENCE,
        *pooled,
        levels=6,
        head_size=7,
        hidden=(4096, 4096),
        drop_rate=0.5,
        norm=norm,
    )


GOOGLENET_NORM = partial(nn.BatchNorm2d, eps=0.001)


def inception(*splits: tuple[int, int, int, int, int, int]) -> list[Block]:
    """Return inception blocks of these splits."""
    return [
        Block(
            "inception",
            split[0] + split[2] + split[4] + split[5],
            {"split": split, "norm": GOOGLENET_NORM},
        )
        for split in splits
    ]


def all_convolutional(*channels: int) -> Preset:
    """Return five convolutions of stride 2 and a classifier of 20 classes, without pooling."""
    return sequence(
        {**SEQUENCE, "num_classes": 20},
        *([Conv(width, stride=2)] for width in channels),
        init="gaussian",
    )


RESNETS: dict[str, Preset] = {
    **{f"depth_plain{depth}": family("plain", depth) for depth in (18, 34)},
    **{f"depth_plain{depth}": family("plain", depth, bottleneck=True) for depth in (50, 101, 152)},
    **{
        f"depth_resnet{depth}": family("residual", depth, timm_name=f"resnet{depth}", shortcut="B")
        for depth in (18, 34)
    },
    **{
        f"depth_resnet{depth}_{option.lower()}": family("residual", depth, shortcut=option)
        for depth in (18, 34)
        for option in "ABC"
    },
    **{
        f"depth_resnet{depth}": family("bottleneck", depth, timm_name=f"resnet{depth}")
        for depth in (50, 101, 152)
    },
    **{
        f"depth_preact_resnet{depth}": family(
            "preactivation", depth, timm_name=f"resnetv2_{depth}", shortcut="B"
        )
        for depth in (18, 34)
    },
    **{
        f"depth_preact_resnet{depth}": family(
            "preactivation_bottleneck", depth, timm_name=f"resnetv2_{depth}", stride_in="3x3"
        )
        for depth in (50, 101, 152)
    },
    "depth_wide_resnet50_2": family("bottleneck", 50, timm_name="wide_resnet50_2", inner_width=2),
    **{
        f"depth_densenet{depth}": family(
            *("dense", depth, 48 if depth == 161 else 32),
            timm_name=f"densenet{depth}",
            bottleneck=True,
            compression=0.5,
        )
        for depth in (121, 161, 169, 201)
    },
}

OTHERS: dict[str, Preset] = {
    "depth_alexnet": alexnet(groups=1),
    "depth_alexnet_groups": alexnet(groups=2),
    "depth_vgg19": vgg(norm=None),
    "depth_vgg19_bn": vgg(norm="batchnorm"),
    "depth_googlenet": sequence(
        SEQUENCE,
        [Conv(64, 7, 2)],
        [Pool(3, 2, ceil=True), Conv(64, 1), Conv(192)],
        [
            Pool(3, 2, ceil=True),
            *inception((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
        ],
        [
            Pool(3, 2, ceil=True),
            *inception(
                (192, 96, 208, 16, 48, 64),
                (160, 112, 224, 24, 64, 64),
                (128, 128, 256, 24, 64, 64),
                (112, 144, 288, 32, 64, 64),
                (256, 160, 320, 32, 128, 128),
            ),
        ],
        [
            Pool(2, 2, ceil=True),
            *inception((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
        ],
        norm=GOOGLENET_NORM,
        drop_rate=0.2,
    ),
    **{
        f"depth_mobilenetv1_{percent:03d}": Preset(
            build_mobilenet_v1, {"width_multiplier": percent / 100}, IMAGENET, levels=6
        )
        for percent in (100, 75, 50, 25)
    },
    "depth_mobilenetv1_shallow": Preset(
        build_mobilenet_v1, {"middle_blocks": 0}, IMAGENET, levels=6
    ),
    "depth_mobilenetv2_100": Preset(
        build_mobilenet_v2, {}, like_timm("mobilenetv2_100"), levels=6, key_map=mobile_v2_keys
    ),
    **{
        f"depth_shufflenetv1_g{groups}": Preset(
            build_shufflenet_v1, {"groups": groups}, IMAGENET, levels=4
        )
        for groups in (1, 2, 3, 4, 8)
    },
    "depth_lenet5": sequence(
        {**image_config(32, 1, 10, channels=1), "first_conv": "stem.0.conv"},
        [Conv(6, 5, padding=0)],
        [Pool(2, 2, "mean"), Conv(16, 5, padding=0)],
        [Pool(2, 2, "mean"), Conv(120, 5, padding=0)],
        levels=3,
        head_size=1,
        hidden=(84,),
        activation="tanh",
        init="xavier",
    ),
    "depth_lenet5_1998": Preset(
        build_lenet5_1998,
        {},
        {**image_config(32, 1, 10, channels=1), "first_conv": "stem.0.conv"},
        levels=3,
    ),
    "depth_allconv6": all_convolutional(64, 64, 128, 128, 256),
    "depth_allconv6_1": all_convolutional(16, 16, 32, 32, 64),
    "depth_allconv6_2": all_convolutional(32, 32, 32, 32, 64),
    "depth_allconv6_3": all_convolutional(16, 16, 64, 64, 64),
    "depth_allconv6_4": all_convolutional(16, 16, 32, 32, 128),
    "depth_allconv6_5": all_convolutional(32, 32, 64, 64, 128),
    "depth_allconv6_6": all_convolutional(64, 64, 64, 64, 128),
    "depth_allconv6_7": all_convolutional(32, 32, 128, 128, 128),
    "depth_allconv6_8": all_convolutional(32, 32, 64, 64, 256),
}
register_presets(__name__, {**RESNETS, **OTHERS})
