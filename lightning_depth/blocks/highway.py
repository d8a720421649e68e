"""Layers that learn how much of their input to carry past them (Srivastava et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    check_channels,
    make_activation,
    make_norm,
    make_weight,
    weight_name,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks._shortcuts import make_shortcut

__all__ = ["HighwayBlock"]


@register_block("highway")
class HighwayBlock(nn.Module):
    r"""Weight layer with a gate beside it that closes at the start.

    Srivastava et al. 2015 (arXiv 1505.00387): :math:`y = H(x) T(x) + S(x) (1 - T(x))`, T a
    sigmoid. A negative gate bias carries the input through at the start, so that nets of hundreds
    of layers train. `carry` says how much.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of both convolutions and of the shortcut.
        dims: 2 for convolutions on images, 0 for linear layers.
        gate_bias: Bias of the gate at the start; -2 lets 12 % through and carries the rest.
        shortcut: How the input is carried where the shape changes: option A (no parameters, the
            default), B or C.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Normalisation before the activation, by name or callable, or None (the default, as
            in the paper); "auto" is none for MLPs and batch normalisation for images.
        init: Initial weights, one of xavier (the default, as in the authors' code), kaiming,
            gaussian, or a callable; biases but the gate's start at zero.

    Example:
        >>> block = HighwayBlock(8, 8, dims=0)
        >>> round(block.carry(torch.zeros(1, 8)).mean().item(), 4)
        0.8808
    """

    num_layers = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        gate_bias: float = -2.0,
        shortcut: str = "A",
        activation: Activation = "relu",
        norm: Norm = None,
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        self.out_channels = out_channels
        self.branch = nn.Sequential()
        weight = make_weight(in_channels, out_channels, dims, stride=stride, bias=True)
        self.branch.add_module(weight_name(dims), weight)
        layer = make_norm(norm, out_channels, dims)
        if layer is not None:
            self.branch.add_module("norm", layer)
        self.branch.add_module("act", make_activation(activation, inplace=True))
        self.gate = make_weight(in_channels, out_channels, dims, stride=stride, bias=True)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, dims, "none")
        initialize(self, init)
        nn.init.constant_(self.gate.bias, gate_bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture of what the layer makes and what it carries."""
        transform = torch.sigmoid(self.gate(x))
        carried = self.shortcut(x)
        return carried + transform * (self.branch(x) - carried)

    def carry(self, x: Tensor) -> Tensor:
        """Return the share of the input that is carried past, between 0 and 1."""
        return 1 - torch.sigmoid(self.gate(x))
