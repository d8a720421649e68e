"""Weight layers one after the other, with nothing around them: the twin of a residual block."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    append_activated,
    check_channels,
    make_activation,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.errors import check_count, check_divisible

__all__ = ["PlainBlock", "basic_branch", "bottleneck_branch", "default_layers"]

EXPANSION = 4  # a bottleneck returns four times the channels it computes in


def default_layers(num_layers: int | None, dims: int) -> int:
    """Return the weight layers of a block: two for images (He et al. 2015), one for MLPs."""
    return (2 if dims else 1) if num_layers is None else check_count("num_layers", num_layers)


def basic_branch(
    in_channels: int,
    out_channels: int,
    stride: int,
    dims: int,
    num_layers: int,
    activation: Activation,
    norm: Norm,
) -> nn.Sequential:
    """Return weight, normalisation, activation, ... ending before the last activation.

    Plain and residual blocks share it, so their parameters have the same names and shapes.
    """
    branch = nn.Sequential()
    for number in range(1, num_layers + 1):
        append_activated(
            *(branch, in_channels, out_channels, 3),
            *(activation if number < num_layers else None, norm),
            dims=dims,
            stride=stride if number == 1 else 1,
        )
        in_channels = out_channels
    return branch


def bottleneck_branch(
    in_channels: int,
    out_channels: int,
    stride: int,
    dims: int,
    inner_width: float,
    activation: Activation,
    norm: Norm,
) -> nn.Sequential:
    """Return the three layers of a bottleneck, ending before the last activation."""
    quarter = check_divisible("out_channels", out_channels, "expansion", EXPANSION)
    inner = int(quarter * inner_width)
    branch = nn.Sequential()
    append_activated(branch, in_channels, inner, 1, activation, norm, dims=dims)
    append_activated(branch, inner, inner, 3, activation, norm, dims=dims, stride=stride)
    append_activated(branch, inner, out_channels, 1, None, norm, dims=dims)
    return branch


@register_block("plain")
class PlainBlock(nn.Module):
    r"""Stack of weight layers without a way around them.

    The baseline of He et al. 2015 (arXiv 1512.03385): the same layers as `ResidualBlock` with
    option A, the same parameter names, no shortcut. :math:`y = \sigma(F(x))`.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution.
        dims: 2 for convolutions on images, 0 for linear layers.
        num_layers: Weight layers in the block; by default two for images, one for MLPs.
        bottleneck: Whether the layers are the three of `BottleneckBlock`, without its shortcut.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs. Without one, weight layers have biases.
        init: Initial weights, one of kaiming, xavier, gaussian, or a callable.

    Example:
        >>> from torch import ones
        >>> PlainBlock(16, 32, stride=2)(ones(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        num_layers: int | None = None,
        bottleneck: bool = False,
        activation: Activation = "relu",
        norm: Norm = "auto",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        self.out_channels = out_channels
        self.num_layers = 3 if bottleneck else default_layers(num_layers, dims)
        self.expansion = EXPANSION if bottleneck else 1
        if bottleneck:
            self.branch = bottleneck_branch(
                in_channels, out_channels, stride, dims, 1.0, activation, norm
            )
        else:
            self.branch = basic_branch(
                in_channels, out_channels, stride, dims, self.num_layers, activation, norm
            )
        self.act = make_activation(activation, inplace=True)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated output of the layers."""
        return self.act(self.branch(x))
