"""Layers that read everything that came before them (Huang et al. 2016, arXiv 1608.06993)."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lightning_depth.blocks._checkpoint import checkpoint_once
from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import (
    Activation,
    Norm,
    append_preactivated,
    check_channels,
)
from lightning_depth.blocks._registry import register_block
from lightning_depth.errors import ConfigurationError, check_count, invalid

__all__ = ["DenseBlock", "DenseLayer", "Transition"]

BOTTLENECK = 4  # the 1x1 convolution of DenseNet-B makes 4 times the growth rate


class DenseLayer(nn.Module):
    """One layer of a dense block: reads all features so far, returns ``growth_rate`` new ones.

    Shape:
        - Input: a list of tensors ``(B, C_i, H, W)`` whose channels add up to ``in_channels``.
        - Output: ``(B, growth_rate, H, W)``.

    Args:
        in_channels: Channels of all features so far.
        growth_rate: Channels that the layer adds.
        bottleneck: Whether a 1x1 convolution to 4 times the growth rate goes first.
        dims: 2 for convolutions on images, 0 for linear layers.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None.

    Example:
        >>> DenseLayer(24, 12)([torch.ones(1, 12, 8, 8), torch.ones(1, 12, 8, 8)]).shape
        torch.Size([1, 12, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        bottleneck: bool = False,
        *,
        dims: int = 2,
        activation: Activation = "relu",
        norm: Norm = "auto",
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential()
        if bottleneck:
            inner = BOTTLENECK * growth_rate
            append_preactivated(self.branch, in_channels, inner, 1, dims, activation, norm)
            in_channels = inner
        append_preactivated(self.branch, in_channels, growth_rate, 3, dims, activation, norm)
        self.grad_checkpointing = False

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the new features."""
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._forward_recomputed(features)
        return self.branch(torch.cat(features, dim=1))

    @torch.jit.unused
    def _forward_recomputed(self, features: list[Tensor]) -> Tensor:
        return checkpoint_once(self.branch, _concatenate, *features)


def _concatenate(branch: nn.Module, *features: Tensor) -> Tensor:
    output: Tensor = branch(torch.cat(features, dim=1))
    return output


class Transition(nn.Sequential):
    """Between two dense blocks: a 1x1 convolution, then the mean of every 2x2 pixels.

    Shape:
        - Input: ``(B, in_channels, H, W)``.
        - Output: ``(B, out_channels, H / stride, W / stride)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Side of the squares that are averaged.
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None.

    Example:
        >>> Transition(64, 32)(torch.ones(1, 64, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 2,
        *,
        activation: Activation = "relu",
        norm: Norm = "auto",
    ) -> None:
        super().__init__()
        append_preactivated(self, in_channels, out_channels, 1, 2, activation, norm)
        self.add_module("pool", nn.AvgPool2d(stride, stride))


@register_block("dense")
class DenseBlock(nn.Module):
    """Layers each of which reads the concatenation of all before it.

    Huang et al. 2016 (arXiv 1608.06993): every layer adds ``growth_rate`` channels, so the
    gradient reaches each of them directly. Where the stride is not 1, a transition goes first: a
    1x1 convolution to ``compression`` of the channels, and average pooling.

    Shape:
        - Input: ``(B, in_channels, H, W)``, or ``(B, in_channels)`` where ``dims=0``.
        - Output: ``(B, out_channels, H // stride, W // stride)``, or ``(B, out_channels)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output: the input's (after the transition) and
            ``growth_rate`` for every layer, which says how many layers there are.
        stride: Stride of the transition; 1 means that there is none.
        dims: 2 for convolutions on images, 0 for linear layers.
        growth_rate: Channels that each layer adds.
        bottleneck: Whether a 1x1 convolution goes before each 3x3 one (DenseNet-B).
        compression: Fraction of the channels that a transition keeps (DenseNet-C).
        activation: Name that timm or torch knows, or a callable that makes a module.
        norm: Name or callable taking the number of features, or None; "auto" is batch
            normalisation for images and none for MLPs.
        init: Initial weights, one of kaiming, xavier, gaussian, or a callable.

    Example:
        >>> DenseBlock(16, 64, growth_rate=12).num_layers
        4
    """

    grows = True
    preactivated = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dims: int = 2,
        growth_rate: int = 12,
        bottleneck: bool = False,
        compression: float = 1.0,
        activation: Activation = "relu",
        norm: Norm = "auto",
        init: Init = "kaiming",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels, stride, dims)
        check_count("growth_rate", growth_rate)
        _check_compression(compression)
        if dims == 0 and compression != 1.0:
            raise invalid(
                "compression", "1.0 where `dims` is 0: there is no transition", compression
            )
        self.out_channels = out_channels
        self.transition: nn.Module = nn.Identity()
        if stride != 1:
            kept = compressed(in_channels, compression)
            self.transition = Transition(
                in_channels, kept, stride, activation=activation, norm=norm
            )
            in_channels = kept
        count = _count_layers(in_channels, out_channels, growth_rate)
        self.num_layers = count * (2 if bottleneck else 1) + int(stride != 1)
        options: dict[str, Any] = {"dims": dims, "activation": activation, "norm": norm}
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + i * growth_rate, growth_rate, bottleneck, **options)
            for i in range(count)
        )
        initialize(self, init)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store each layer's new features only and compute the rest again in the backward pass.

        Memory then grows linearly with the number of layers; batch statistics are updated once.
        """
        for layer in self.layers:
            layer.grad_checkpointing = enable  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and what every layer added, concatenated."""
        features = [self.transition(x)]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, dim=1)


def compressed(channels: int, compression: float) -> int:
    """Return how many channels a transition keeps, rounded down as in the authors' code."""
    return max(1, int(channels * _check_compression(compression)))


def _check_compression(compression: float) -> float:
    """Return a fraction that keeps something; an integer 1 is as good as 1.0."""
    number = isinstance(compression, Real) and not isinstance(compression, bool)
    if number and 0.0 < compression <= 1.0:
        return compression
    raise invalid("compression", "a number greater than 0 and at most 1", compression)


def _count_layers(in_channels: int, out_channels: int, growth_rate: int) -> int:
    layers, rest = divmod(out_channels - in_channels, growth_rate)
    if layers < 1 or rest:
        raise ConfigurationError(
            f"`out_channels` (={out_channels}) must exceed the channels that enter the dense "
            f"layers (={in_channels}) by a multiple of `growth_rate` (={growth_rate})."
        )
    return layers
