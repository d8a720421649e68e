"""Concatenated rectifiers: half the filters, both signs of what they see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Norm,
    check_channels,
    make_norm,
    make_weight,
    resolve_norm,
    weight_name,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks.plain import default_layers
from lightning_depth.errors import check_divisible

__all__ = ["CReLU", "CReLUBlock"]


class CReLU(nn.Module):
    r"""Keep both halves of every feature: :math:`[\max(x, 0), \max(-x, 0)]`.

    Shang et al. 2016 (arXiv 1603.05201). The first half minus the second is the input again,
    to the bit, so nothing is lost; the channels double.

    Shape:
        - Input: ``(B, C, ...)``.
        - Output: ``(B, 2 C, ...)``.

    Example:
        >>> CReLU()(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1., 0.]])
    """

    def __init__(self) -> None:  # so that the signature is that of the docstring
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive and the negative part, one after the other."""
        return torch.cat((x, -x), dim=1).relu_()


class ChannelAffine(nn.Module):
    """A scale and a bias for each channel, learnt, as the paper puts them after its rectifiers."""

    def __init__(self, num_features: int, dims: int) -> None:
        super().__init__()
        self.shape = [num_features] + [1] * dims
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, scaled and moved."""
        return x * self.weight.view(self.shape) + self.bias.view(self.shape)


@register_block("crelu")
class CReLUBlock(nn.Module):
    """Weight layers with half the filters, followed by concatenated rectifiers.

    Shang et al. 2016 (arXiv 1603.05201): the lower layers of a convolutional net learn filters in
    pairs of opposite sign, so a layer of ``c / 2`` filters with both signs does the work of ``c``
    with half the weights and half the multiply-adds.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, an even number.
        stride: Stride of the first convolution.
        dims: 2 for convolutions on images, 0 for linear layers.
        num_layers: Weight layers in the block; by default two for images, one for MLPs.
        affine: Whether to learn a scale and a bias after the concatenation.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs.
        init: Initial weights, one of kaiming, xavier, gaussian, or a callable.

    Example:
        >>> CReLUBlock(8, 16).branch.conv1.weight.shape
        torch.Size([8, 8, 3, 3])
    """

    begins_network = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        num_layers: int | None = None,
        affine: bool = False,
        norm: Norm = "auto",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        half = check_divisible("out_channels", out_channels, "signs", 2)
        self.out_channels = out_channels
        self.num_layers = default_layers(num_layers, dims)
        self.branch = nn.Sequential()
        bias = resolve_norm(norm, dims) is None
        for number in range(1, self.num_layers + 1):
            weight = make_weight(
                *(in_channels, half, dims), stride=stride if number == 1 else 1, bias=bias
            )
            self.branch.add_module(f"{weight_name(dims)}{number}", weight)
            layer = make_norm(norm, half, dims)
            if layer is not None:
                self.branch.add_module(f"norm{number}", layer)
            self.branch.add_module(f"crelu{number}", CReLU())
            if affine:
                self.branch.add_module(f"affine{number}", ChannelAffine(out_channels, dims))
            in_channels = out_channels
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return both signs of what the layers see."""
        return self.branch(x)
