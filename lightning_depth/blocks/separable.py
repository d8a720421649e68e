"""Convolutions taken apart: one filter a channel, then a mixture (MobileNet, v1 and v2)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    append_activated,
    check_channels,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks.residual import make_drop_path
from lightning_depth.errors import check_count

__all__ = ["InvertedResidualBlock", "SeparableBlock"]


@register_block("separable")
class SeparableBlock(nn.Module):
    """A 3x3 filter for each channel, then a 1x1 convolution that mixes the channels.

    Howard et al. 2017 (arXiv 1704.04861): about an eighth to a ninth of the multiply-adds of a
    3x3 convolution of the same channels.

    Shape:
        - Input: ``(B, in_channels, H, W)``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation.
        init: Initial weights, one of kaiming, xavier, gaussian, or a callable.

    Example:
        >>> block = SeparableBlock(512, 512)
        >>> sum(parameter.numel() for parameter in block.parameters())
        268800
    """

    num_layers = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        activation: Activation = "relu",
        norm: Norm = "auto",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, 2)
        self.out_channels = out_channels
        self.branch = nn.Sequential()
        append_activated(
            *(self.branch, in_channels, in_channels, 3, activation, norm),
            stride=stride,
            groups=in_channels,
        )
        append_activated(self.branch, in_channels, out_channels, 1, activation, norm)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture of the filtered channels."""
        return self.branch(x)


@register_block("inverted_residual")
class InvertedResidualBlock(nn.Module):
    """Widens, filters each channel, and narrows again without an activation.

    Sandler et al. 2018 (arXiv 1801.04381): a bottleneck turned inside out. The last convolution is
    linear, since an activation would destroy information in few channels; the input is added where
    the shapes are the same.

    Shape:
        - Input: ``(B, in_channels, H, W)``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
        expansion_ratio: Inner channels as a multiple of the input's; 1 leaves the widening out.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation.
        drop_path: Probability of skipping the branch for a sample in training.
        init: Initial weights, by name (kaiming, xavier, gaussian, zero_last_gamma,
            depth_scaled) or callable.

    Example:
        >>> from torch import ones
        >>> InvertedResidualBlock(16, 24, stride=2)(ones(1, 16, 8, 8)).shape
        torch.Size([1, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        expansion_ratio: int = 6,
        activation: Activation = "relu6",
        norm: Norm = "auto",
        drop_path: float = 0.0,
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, 2)
        inner = in_channels * check_count("expansion_ratio", expansion_ratio)
        self.out_channels = out_channels
        self.num_layers = 2 if expansion_ratio == 1 else 3
        self.init = init
        self.branch = nn.Sequential()
        if expansion_ratio != 1:
            append_activated(self.branch, in_channels, inner, 1, activation, norm)
        append_activated(
            self.branch, inner, inner, 3, activation, norm, stride=stride, groups=inner
        )
        append_activated(self.branch, inner, out_channels, 1, None, norm)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.residual_branches = ("branch",) if self.has_shortcut else ()
        self.drop_path = make_drop_path(drop_path if self.has_shortcut else 0.0)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, and the input with it where the shapes are the same."""
        y = self.drop_path(self.branch(x))
        return x + y if self.has_shortcut else y
