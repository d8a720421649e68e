"""The residual block and its bottleneck form, activation after the addition."""

from __future__ import annotations

from timm.layers.drop import DropPath
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    check_channels,
    make_activation,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks._shortcuts import make_shortcut
from lightning_depth.blocks.plain import (
    EXPANSION,
    basic_branch,
    bottleneck_branch,
    default_layers,
)
from lightning_depth.errors import check_real

__all__ = ["BottleneckBlock", "ResidualBlock"]


def make_drop_path(rate: float) -> nn.Module:
    """Return stochastic depth (Huang et al. 2016), or the identity where the rate is zero."""
    return DropPath(check_real("drop_path", rate, 0.0, 1.0)) if rate else nn.Identity()


@register_block("residual")
class ResidualBlock(nn.Module):
    r"""Layers that learn what to add to their input.

    He et al. 2015 (arXiv 1512.03385): :math:`y = \sigma(F(x) + S(x))`. The shortcut S is the
    identity; where the shape changes, option A subsamples and pads with zeros, B projects,
    and C projects in every block.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        dims: 2 for convolutions on images, 0 for linear layers.
        num_layers: Weight layers of the branch; by default two for images, one for MLPs.
        shortcut: Option A (no parameters, the default), B or C.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs.
        drop_path: Probability of skipping the branch for a sample in training.
        init: Initial weights, by name (kaiming, xavier, gaussian, zero_last_gamma,
            depth_scaled) or callable.

    Example:
        >>> from torch import ones
        >>> ResidualBlock(16, 32, stride=2, shortcut="B")(ones(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    residual_branches = ("branch",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        num_layers: int | None = None,
        shortcut: str = "A",
        activation: Activation = "relu",
        norm: Norm = "auto",
        drop_path: float = 0.0,
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        self.out_channels = out_channels
        self.num_layers = default_layers(num_layers, dims)
        self.init = init
        self.branch = basic_branch(
            in_channels, out_channels, stride, dims, self.num_layers, activation, norm
        )
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, dims, norm)
        self.drop_path = make_drop_path(drop_path)
        self.act = make_activation(activation, inplace=True)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of the branch and the shortcut."""
        return self.act(self.drop_path(self.branch(x)) + self.shortcut(x))


@register_block("bottleneck")
class BottleneckBlock(nn.Module):
    r"""Residual block that computes in a quarter of its channels.

    He et al. 2015 (arXiv 1512.03385): a 1x1 convolution narrows, a 3x3 one works, a 1x1 one
    widens again: 69,632 weights at 256 channels where two 3x3 convolutions have 1,179,648.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of 4.
        stride: Stride of the 3x3 convolution (as in torchvision) and of the shortcut.
        dims: 2 for convolutions on images, 0 for linear layers.
        inner_width: Inner channels as a multiple of a quarter of the output; 2 makes it wide.
        shortcut: Option A (no parameters), B (the default) or C.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs.
        drop_path: Probability of skipping the branch for a sample in training.
        init: Initial weights, by name (kaiming, xavier, gaussian, zero_last_gamma,
            depth_scaled) or callable.

    Example:
        >>> from torch import ones
        >>> BottleneckBlock(64, 256)(ones(1, 64, 8, 8)).shape
        torch.Size([1, 256, 8, 8])
    """

    expansion = EXPANSION
    num_layers = 3
    residual_branches = ("branch",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        inner_width: float = 1.0,
        shortcut: str = "B",
        activation: Activation = "relu",
        norm: Norm = "auto",
        drop_path: float = 0.0,
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        self.out_channels = out_channels
        self.init = init
        self.branch = bottleneck_branch(
            in_channels, out_channels, stride, dims, inner_width, activation, norm
        )
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, dims, norm)
        self.drop_path = make_drop_path(drop_path)
        self.act = make_activation(activation, inplace=True)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of the branch and the shortcut."""
        return self.act(self.drop_path(self.branch(x)) + self.shortcut(x))
