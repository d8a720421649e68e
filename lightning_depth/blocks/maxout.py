"""Units that are the largest of a few linear functions (Goodfellow et al. 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Norm,
    check_channels,
    make_norm,
    make_weight,
    weight_name,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks.plain import default_layers
from lightning_depth.errors import check_count

__all__ = ["Maxout", "MaxoutBlock"]


class Maxout(nn.Module):
    r"""The largest of every ``pieces`` neighbouring features.

    Goodfellow et al. 2013 (arXiv 1302.4389). With one of two pieces zero it is ReLU, with
    :math:`(z, -z)` it is the absolute value; with more it can be any convex piecewise-linear
    function.

    Shape:
        - Input: ``(B, pieces * C, ...)``; the pieces of one unit lie side by side.
        - Output: ``(B, C, ...)``.

    Args:
        pieces: Linear functions for each unit.

    Example:
        >>> Maxout(2)(torch.tensor([[1.0, -1.0, 0.0, 3.0]]))
        tensor([[1., 3.]])
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = check_count("pieces", pieces)

    def forward(self, x: Tensor) -> Tensor:
        """Return the largest piece of every unit."""
        return torch.unflatten(x, 1, [-1, self.pieces]).amax(dim=2)


@register_block("maxout")
class MaxoutBlock(nn.Module):
    """Weight layers whose units take the largest of several linear functions of the input.

    Goodfellow et al. 2013 (arXiv 1302.4389): the activation itself is learnt, and it never
    saturates. Weights and multiply-adds are ``pieces`` times those of a plain layer.

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
        pieces: Linear functions for each unit.
        norm: Normalisation of the pieces, by name or callable, or None; "auto" is batch
            normalisation for images and none for MLPs.
        init: Initial weights, one of kaiming, xavier, gaussian, or a callable.

    Example:
        >>> block = MaxoutBlock(784, 240, dims=0, pieces=5)
        >>> sum(parameter.numel() for parameter in block.parameters())
        942000
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
        pieces: int = 2,
        norm: Norm = "auto",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        self.out_channels = out_channels
        self.num_layers = default_layers(num_layers, dims)
        self.branch = nn.Sequential()
        all_pieces = out_channels * check_count("pieces", pieces)
        for number in range(1, self.num_layers + 1):
            step = stride if number == 1 else 1
            layer = make_norm(norm, all_pieces, dims)
            weight = make_weight(in_channels, all_pieces, dims, stride=step, bias=layer is None)
            self.branch.add_module(f"{weight_name(dims)}{number}", weight)
            if layer is not None:
                self.branch.add_module(f"norm{number}", layer)
            self.branch.add_module(f"maxout{number}", Maxout(pieces))
            in_channels = out_channels
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return the largest pieces, layer after layer."""
        return self.branch(x)
