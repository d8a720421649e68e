"""Families made for phones: MobileNet v1 and v2, ShuffleNet v1."""

from __future__ import annotations

from typing import Any

from timm.layers.helpers import make_divisible

from lightning_depth.blocks import BlockFactory, block_factory
from lightning_depth.errors import check_choice, check_real
from lightning_depth.networks._assemble import Stage, assemble
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._shuffle import ShuffleUnit

__all__ = ["build_mobilenet_v1", "build_mobilenet_v2", "build_shufflenet_v1"]

V1_MIDDLE = 5  # blocks of 512 channels and stride 1, which the shallow network leaves out
# expansion ratio, channels, blocks, stride of the first (Sandler et al. 2018, table 2)
V2_ROWS = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
SHUFFLE_WIDTHS = {"1": 144, "2": 200, "3": 240, "4": 272, "8": 384}
SHUFFLE_REPEATS = (4, 8, 4)


def build_mobilenet_v1(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width_multiplier: float = 1.0,
    middle_blocks: int = V1_MIDDLE,
    **options: Any,
) -> ConvNet:
    """Build MobileNet v1 (Howard et al. 2017), every width times a factor, of any depth.

    ``middle_blocks`` counts the blocks of 512 channels that keep the size; the authors' shallow
    network has none.
    """
    check_real("width_multiplier", width_multiplier, 0.0, exclusive=True)

    def scaled(channels: int) -> int:
        return int(channels * width_multiplier)

    stages: list[Stage] = [
        [(scaled(64), 1)],
        [(scaled(128), 2), (scaled(128), 1)],
        [(scaled(256), 2), (scaled(256), 1)],
        [(scaled(512), 2), *((scaled(512), 1) for _ in range(middle_blocks))],
        [(scaled(1024), 2), (scaled(1024), 1)],
    ]
    factory = block_factory("separable")
    return assemble(
        *(factory, stages, scaled(32), num_classes),
        in_channels=in_channels,
        stem="mobile",
        **options,
    )


def build_mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    width_multiplier: float = 1.0,
    **options: Any,
) -> ConvNet:
    """Build MobileNet v2 (Sandler et al. 2018), every width times a factor, to multiples of 8."""
    check_real("width_multiplier", width_multiplier, 0.0, exclusive=True)

    def scaled(channels: int) -> int:
        return int(make_divisible(channels * width_multiplier, 8))  # type: ignore[no-untyped-call]

    stages: list[list[Any]] = []
    for ratio, channels, count, stride in V2_ROWS:
        rows = [
            (scaled(channels), 1 if block else stride, {"expansion_ratio": ratio})
            for block in range(count)
        ]
        if stride == 1 and stages:
            stages[-1].extend(rows)
        else:
            stages.append(rows)
    return assemble(
        *(block_factory("inverted_residual"), stages, scaled(32), num_classes),
        in_channels=in_channels,
        stem="mobile",
        final_width=max(1280, scaled(1280)),
        **options,
    )


def build_shufflenet_v1(
    num_classes: int = 1000, in_channels: int = 3, *, groups: int = 3, **options: Any
) -> ConvNet:
    """Build ShuffleNet v1 (Zhang et al. 2017) with 1x widths for so many groups."""
    width = SHUFFLE_WIDTHS[check_choice("groups", str(groups), SHUFFLE_WIDTHS)]
    stages: list[Stage] = [
        [
            (
                width * 2**number,
                1 if block else 2,
                {"first_groups": 1} if not number and not block else {},
            )
            for block in range(count)
        ]
        for number, count in enumerate(SHUFFLE_REPEATS)
    ]
    factory = BlockFactory("shuffle", ShuffleUnit, {"groups": groups})
    return assemble(
        *(factory, stages, 24, num_classes), in_channels=in_channels, stem="shuffle", **options
    )
