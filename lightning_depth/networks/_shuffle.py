"""The unit of ShuffleNet: grouped 1x1 convolutions, with the channels shuffled between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import initialize
from lightning_depth.blocks._parts import append_activated, make_activation
from lightning_depth.errors import check_divisible

__all__ = ["ShuffleUnit"]


class ChannelShuffle(nn.Module):
    """Deals the channels of every group out to all groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the same channels in another order."""
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Bottleneck of grouped convolutions (Zhang et al. 2017, arXiv 1707.01083).

    With stride 2 the averaged input is concatenated instead of added.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of 4 and of the groups.
        stride: 1 or 2.
        groups: Groups of the 1x1 convolutions.
        first_groups: Groups of the first of them.
    """

    num_layers = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        groups: int = 3,
        first_groups: int | None = None,
    ) -> None:
        super().__init__()
        inner = check_divisible("out_channels", out_channels, "expansion", 4)
        check_divisible("inner channels", inner, "groups", groups)
        self.out_channels = out_channels
        self.downsamples = stride > 1
        added = out_channels - in_channels if self.downsamples else out_channels
        first = groups if first_groups is None else first_groups
        self.branch = nn.Sequential()
        append_activated(self.branch, in_channels, inner, 1, "relu", "batchnorm", groups=first)
        self.branch.add_module("shuffle", ChannelShuffle(groups))
        append_activated(
            *(self.branch, inner, inner, 3, None, "batchnorm"), stride=stride, groups=inner
        )
        append_activated(self.branch, inner, added, 1, None, "batchnorm", groups=groups)
        self.pool = nn.AvgPool2d(3, stride, 1) if self.downsamples else nn.Identity()
        self.act = make_activation("relu", inplace=True)
        initialize(self, "kaiming")

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum or, with a stride, the activated concatenation."""
        y = self.branch(x)
        if self.downsamples:
            return self.act(torch.cat((y, self.pool(x)), dim=1))
        return self.act(y + x)
