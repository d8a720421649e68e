"""Filters of several sizes side by side (Szegedy et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import Activation, Norm, append_activated, check_channels
from lightning_depth.blocks._registry import register_block
from lightning_depth.errors import check_divisible, invalid

__all__ = ["InceptionBlock"]

Split = tuple[int, int, int, int, int, int]
SHARES = 8  # of the output: 2 for 1x1, 4 for 3x3, 1 for 5x5 and 1 for pooling, as in GoogLeNet 3a


@register_block("inception")
class InceptionBlock(nn.Module):
    """Four branches over one input, concatenated: 1x1, 3x3, a wider 3x3, and pooling.

    Szegedy et al. 2014 (arXiv 1409.4842) in the form of torchvision, which has batch
    normalisation and, since a slip that its weights keep, 3x3 where the paper has 5x5.

    Shape:
        - Input: ``(B, in_channels, H, W)``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; without ``split``, a multiple of 8.
        stride: 2 puts 3x3 max pooling before the branches.
        split: Channels of the 1x1 branch, of the reduction and the filters of the second and the
            third branch, and after pooling; by default in the proportions of GoogLeNet's first.
        kernel_size: Side of the filters of the third branch; 5 is the paper's.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation.
        init: Initial weights, one of kaiming, xavier, gaussian, or a callable.

    Example:
        >>> block = InceptionBlock(192, 256, split=(64, 96, 128, 16, 32, 32))
        >>> block(torch.ones(1, 192, 4, 4)).shape
        torch.Size([1, 256, 4, 4])
    """

    num_layers = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        split: Split | None = None,
        kernel_size: int = 3,
        activation: Activation = "relu",
        norm: Norm = "auto",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, 2)
        first, reduced2, second, reduced3, third, pooled = split or _default_split(out_channels)
        if first + second + third + pooled != out_channels:
            raise invalid("split", f"four widths that add up to {out_channels}", split)
        style = (activation, norm)
        self.out_channels = out_channels
        self.pool = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.branch1 = _branch((in_channels, first), (1,), *style)
        self.branch2 = _branch((in_channels, reduced2, second), (1, 3), *style)
        self.branch3 = _branch((in_channels, reduced3, third), (1, kernel_size), *style)
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1))
        append_activated(self.branch4, in_channels, pooled, 1, *style)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the four branches see, concatenated."""
        x = self.pool(x)
        branches = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return torch.cat(branches, dim=1)


def _branch(
    channels: tuple[int, ...], kernel_sizes: tuple[int, ...], activation: Activation, norm: Norm
) -> nn.Sequential:
    branch = nn.Sequential()
    for number, kernel_size in enumerate(kernel_sizes):
        append_activated(
            branch, channels[number], channels[number + 1], kernel_size, activation, norm
        )
    return branch


def _default_split(out_channels: int) -> Split:
    share = check_divisible("out_channels", out_channels, "shares", SHARES)
    return (2 * share, 3 * share, 4 * share, max(1, share // 2), share, share)
