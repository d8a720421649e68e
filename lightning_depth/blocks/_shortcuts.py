"""The ways past a residual branch: He et al. 2015 (arXiv 1512.03385), options A, B and C."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_depth.blocks._parts import Norm, make_norm, make_weight, resolve_norm, weight_name
from lightning_depth.errors import ConfigurationError, check_choice

__all__ = ["SHORTCUTS", "PaddedShortcut", "make_shortcut"]

SHORTCUTS = ("A", "B", "C")


class PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the channels that are new.

    Has no parameters, which is why a plain net and its residual twin count the same.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out, at least as many; half of the zeros go before.
        stride: Step of the subsampling; 1 keeps the size.
        dims: 2 for images, 0 for ``(B, C)``.

    Example:
        >>> from torch import ones
        >>> PaddedShortcut(16, 32, stride=2)(ones(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dims: int = 2) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ConfigurationError(
                f"Shortcut option A only adds channels, but `out_channels` (={out_channels}) is "
                f"less than `in_channels` (={in_channels}); take option B."
            )
        before = (out_channels - in_channels) // 2
        self.padding = [0, 0] * dims + [before, out_channels - in_channels - before]
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, subsampled and padded with zero channels."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, self.padding)


def make_shortcut(
    option: str,
    in_channels: int,
    out_channels: int,
    stride: int,
    dims: int,
    norm: Norm = None,
) -> nn.Module:
    """Return the identity, the padded or the projection shortcut that the option asks for."""
    check_choice("shortcut", option, SHORTCUTS)
    same = in_channels == out_channels and stride == 1
    if same and option != "C":
        return nn.Identity()
    if option == "A":
        return PaddedShortcut(in_channels, out_channels, stride, dims)
    return _projection(in_channels, out_channels, stride, dims, norm)


def _projection(
    in_channels: int, out_channels: int, stride: int, dims: int, norm: Norm
) -> nn.Module:
    bias = resolve_norm(norm, dims) is None and dims == 0
    projection = nn.Sequential()
    projection.add_module(
        weight_name(dims),
        make_weight(in_channels, out_channels, dims, kernel_size=1, stride=stride, bias=bias),
    )
    layer = make_norm(norm, out_channels, dims)
    if layer is not None:
        projection.add_module("norm", layer)
    return projection
