"""Residual blocks with normalisation and activation before the weights (He et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    append_preactivated,
    check_channels,
    make_activation,
    make_norm,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks._shortcuts import make_shortcut
from lightning_depth.blocks.plain import EXPANSION, default_layers
from lightning_depth.blocks.residual import make_drop_path
from lightning_depth.errors import check_choice, check_divisible

__all__ = ["PreactivationBlock", "PreactivationBottleneckBlock"]


class _Preactivated(nn.Module):
    """What both blocks share: the way past the branch, and where it begins.

    A shortcut without weights reads the input itself, so that the identity path is untouched from
    the first block to the last; a projection reads the normalised and activated input, as in the
    authors' code.
    """

    preactivated = True
    residual_branches = ("branch",)

    def __init__(
        self,
        shapes: tuple[int, int, int, int],
        option: str,
        activation: Activation,
        norm: Norm,
        drop_path: float,
    ) -> None:
        super().__init__()
        in_channels, out_channels, stride, dims = shapes
        check_channels(in_channels, out_channels, stride, dims)
        self.out_channels = out_channels
        self.preact = nn.Sequential()
        layer = make_norm(norm, in_channels, dims)
        if layer is not None:
            self.preact.add_module("norm", layer)
        self.preact.add_module("act", make_activation(activation, inplace=layer is not None))
        self.branch = nn.Sequential()
        self.shortcut = make_shortcut(option, in_channels, out_channels, stride, dims, norm="none")
        self.projects = isinstance(self.shortcut, nn.Sequential)
        self.drop_path = make_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branch and the shortcut."""
        preactivated = self.preact(x)
        shortcut = self.shortcut(preactivated if self.projects else x)
        return self.drop_path(self.branch(preactivated)) + shortcut


@register_block("preactivation")
class PreactivationBlock(_Preactivated):
    r"""Residual block whose shortcut nothing interrupts.

    He et al. 2016 (arXiv 1603.05027): :math:`y = x + F(\sigma(N(x)))`. With a zero branch the
    block is the identity, exactly, so a signal passes through any number of them.

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
        >>> PreactivationBlock(16, 32, stride=2, shortcut="B")(ones(1, 16, 8, 8)).shape
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
        shortcut: str = "A",
        activation: Activation = "relu",
        norm: Norm = "auto",
        drop_path: float = 0.0,
        init: Init = "kaiming",
    ) -> None:
        shapes = (in_channels, out_channels, stride, dims)
        super().__init__(shapes, shortcut, activation, norm, drop_path)
        self.num_layers = default_layers(num_layers, dims)
        self.init = init
        for number in range(1, self.num_layers + 1):
            step, read = (stride, in_channels) if number == 1 else (1, out_channels)
            append_preactivated(
                *(self.branch, read, out_channels, 3, dims, activation, norm),
                stride=step,
                activated=number > 1,
            )
        initialize(self, init)


@register_block("preactivation_bottleneck")
class PreactivationBottleneckBlock(_Preactivated):
    r"""Bottleneck whose shortcut nothing interrupts.

    He et al. 2016 (arXiv 1603.05027), the block of ResNet-164 and ResNet-1001:
    :math:`y = x + F(\sigma(N(x)))` with F narrowing to a quarter of the channels.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of 4.
        stride: Stride of the branch and of the shortcut.
        dims: 2 for convolutions on images, 0 for linear layers.
        stride_in: Which convolution strides: "1x1" (the authors' CIFAR nets, the default) or
            "3x3" (timm's ImageNet nets).
        shortcut: Option A (no parameters), B (the default) or C.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs.
        drop_path: Probability of skipping the branch for a sample in training.
        init: Initial weights, by name (kaiming, xavier, gaussian, zero_last_gamma,
            depth_scaled) or callable.

    Example:
        >>> from torch import ones
        >>> PreactivationBottleneckBlock(16, 64)(ones(1, 16, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """

    num_layers = 3
    expansion = EXPANSION

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        stride_in: str = "1x1",
        shortcut: str = "B",
        activation: Activation = "relu",
        norm: Norm = "auto",
        drop_path: float = 0.0,
        init: Init = "kaiming",
    ) -> None:
        shapes = (in_channels, out_channels, stride, dims)
        super().__init__(shapes, shortcut, activation, norm, drop_path)
        check_choice("stride_in", stride_in, ("1x1", "3x3"))
        inner = check_divisible("out_channels", out_channels, "expansion", EXPANSION)
        strides = (stride, 1, 1) if stride_in == "1x1" else (1, stride, 1)
        channels = (in_channels, inner, inner, out_channels)
        self.init = init
        for number, (kernel_size, step) in enumerate(zip((1, 3, 1), strides, strict=True)):
            append_preactivated(
                *(self.branch, channels[number], channels[number + 1], kernel_size),
                *(dims, activation, norm),
                stride=step,
                activated=number > 0,
            )
        initialize(self, init)
