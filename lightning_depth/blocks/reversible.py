"""Blocks whose input can be computed from their output, so that nothing need be stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import Activation, Norm, append_preactivated, check_channels
from lightning_depth.blocks._registry import register_block
from lightning_depth.blocks._shortcuts import make_shortcut
from lightning_depth.blocks.plain import default_layers
from lightning_depth.errors import check_divisible

__all__ = ["AdditiveCoupling", "ReversibleBlock"]


class AdditiveCoupling(nn.Module):
    """Two branches over the two halves of the channels, each added to the other half.

    Gomez et al. 2017 (arXiv 1707.04585): ``y1 = x1 + f(x2)``, ``y2 = x2 + g(y1)``; `inverse`
    undoes it. Put many in a `ReversibleSequence` to train them in constant memory.

    Shape:
        - Input: ``(B, C, ...)``, C even.
        - Output: ``(B, C, ...)``.

    Args:
        f: Any module that keeps the shape of one half.
        g: Another one.

    Raises:
        ConfigurationError: The input has an odd number of channels.

    Example:
        >>> coupling = AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)).double()
        >>> x = torch.ones(2, 8, dtype=torch.float64)
        >>> bool((coupling.inverse(coupling(x)) - x).abs().max() < 1e-12)
        True
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f = f
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        """Return both halves, each with what the other contributed."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check_halves(x)
        x1, x2 = x.chunk(2, dim=1)
        y1 = x1 + self.f(x2)
        y2 = x2 + self.g(y1)
        return torch.cat((y1, y2), dim=1)

    @torch.jit.export
    def inverse(self, y: Tensor) -> Tensor:
        """Return the input that this output came from."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check_halves(y)
        y1, y2 = y.chunk(2, dim=1)
        x2 = y2 - self.g(y1)
        x1 = y1 - self.f(x2)
        return torch.cat((x1, x2), dim=1)

    @torch.jit.unused
    def _check_halves(self, x: Tensor) -> None:
        if not isinstance(x, torch.fx.Proxy):
            check_divisible("channels", x.shape[1], "halves", 2)


@register_block("reversible")
class ReversibleBlock(nn.Module):
    """Additive coupling of two preactivation branches, the block of RevNets.

    Gomez et al. 2017 (arXiv 1707.04585). Where the shape changes, the two halves pass through
    shortcuts, and the block is an ordinary one that is not ``reversible``. The networks built
    here put the reversible ones into a `ReversibleSequence`, which stores one output for all.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``, or
          ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input, an even number.
        out_channels: Channels of the output, an even number.
        stride: Stride of the first convolution of the first branch.
        dims: 2 for convolutions on images, 0 for linear layers.
        num_layers: Weight layers of each branch; by default two for images, one for MLPs.
        shortcut: How the halves pass where the shape changes: option A (no parameters, the
            default) or B.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs.
        init: Initial weights, by name (kaiming, xavier, gaussian, zero_last_gamma,
            depth_scaled) or callable.

    Example:
        >>> ReversibleBlock(16, 16)(torch.ones(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
    """

    preactivated = True
    residual_branches = ("f", "g")

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
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        half_in = check_divisible("in_channels", in_channels, "halves", 2)
        half_out = check_divisible("out_channels", out_channels, "halves", 2)
        layers = default_layers(num_layers, dims)
        self.out_channels = out_channels
        self.num_layers = 2 * layers
        self.init = init
        self.reversible = stride == 1 and in_channels == out_channels and shortcut != "C"
        style = (dims, activation, norm)
        self.shortcut1 = make_shortcut(shortcut, half_in, half_out, stride, dims, "none")
        self.shortcut2 = make_shortcut(shortcut, half_in, half_out, stride, dims, "none")
        self.f = _branch(half_in, half_out, stride, layers, *style)
        self.g = _branch(half_out, half_out, 1, layers, *style)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return both halves, each with what the other contributed."""
        x1, x2 = x.chunk(2, dim=1)
        y1 = self.shortcut1(x1) + self.f(x2)
        y2 = self.shortcut2(x2) + self.g(y1)
        return torch.cat((y1, y2), dim=1)


def _branch(
    in_channels: int,
    out_channels: int,
    stride: int,
    num_layers: int,
    dims: int,
    activation: Activation,
    norm: Norm,
) -> nn.Sequential:
    branch = nn.Sequential()
    for number in range(num_layers):
        append_preactivated(
            *(branch, in_channels, out_channels, 3, dims, activation, norm),
            stride=stride if number == 0 else 1,
        )
        in_channels = out_channels
    return branch
