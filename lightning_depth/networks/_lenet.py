"""LeNet-5 as LeCun et al. 1998 describe it: sparse table, trained sub-sampling, fixed code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._heads import HiddenHead

__all__ = ["build_lenet5_1998"]

MAPS, UNITS, MIN_SIZE = 6, 84, 32
# which maps of S2 each map of C3 reads: six times three, nine times four, once all six
TABLE = (
    *(tuple((first + step) % MAPS for step in (0, 1, 2)) for first in range(6)),
    *(tuple((first + step) % MAPS for step in (0, 1, 2, 3)) for first in range(6)),
    *(tuple((first + step) % MAPS for step in (0, 1, 3, 4)) for first in range(3)),
    tuple(range(MAPS)),
)
SEED = 1998


class ScaledTanh(nn.Module):
    """The squashing function 1.7159 tanh(2x/3), which takes 1 to 1 and -1 to -1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return values between -1.7159 and 1.7159."""
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """The sum of each 2 x 2 square, times a trained coefficient, plus a trained bias, squashed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, divisor_override=1)
        self.weight = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1))
        self.act = ScaledTanh()
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -2.4 / 4, 2.4 / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of half the size."""
        return self.act(self.pool(x) * self.weight + self.bias)


class TableConv(nn.Module):
    """A 5 x 5 convolution whose maps each read only the maps that a table names."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [(out, read) for out, reads in enumerate(TABLE) for read in reads]
        self.register_buffer("owner", torch.tensor([out for out, _ in pairs]), persistent=False)
        self.register_buffer("source", torch.tensor([read for _, read in pairs]), persistent=False)
        self.conv = nn.Conv2d(len(pairs), len(pairs), 5, groups=len(pairs), bias=False)
        self.bias = nn.Parameter(torch.empty(len(TABLE), 1, 1))
        self.act = ScaledTanh()
        self.out_channels = len(TABLE)
        for kernel, (out, _) in zip(self.conv.weight.data, pairs, strict=True):
            bound = 2.4 / (25 * len(TABLE[out]))
            nn.init.uniform_(kernel, -bound, bound)
        nn.init.uniform_(self.bias, -2.4 / 100, 2.4 / 100)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sixteen maps."""
        read = x.index_select(1, self.source)  # type: ignore[arg-type]
        single = self.conv(read)
        shape = (single.shape[0], self.out_channels, single.shape[2], single.shape[3])
        summed = single.new_zeros(shape).index_add(1, self.owner, single)
        return self.act(summed + self.bias)


class RadialUnits(nn.Module):
    """Output units whose logit is minus the squared distance to a fixed code of -1 and 1."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        codes = torch.empty(num_classes, num_features)
        if not codes.is_meta:
            generator = torch.Generator(device="cpu").manual_seed(SEED)
            shape = (num_classes, num_features)
            drawn = torch.randint(0, 2, shape, generator=generator, device="cpu")
            codes.copy_(2 * drawn - 1)
        self.register_buffer("weight", codes)  # the name under which timm looks for a classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        difference = x.unsqueeze(1) - self.weight  # type: ignore[operator]
        return -difference.square().sum(2)


class RadialHead(HiddenHead):
    """F6 and the output units; `reset` gives as many fixed codes as there are classes."""

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the output units, and how the feature map is pooled."""
        if pool_type is not None:
            self.pool_type = pool_type
        self.fc = RadialUnits(self.num_features, num_classes) if num_classes else nn.Identity()


def build_lenet5_1998(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
) -> ConvNet:
    """Build LeNet-5 with 60,000 trained parameters (LeCun et al. 1998).

    The output units' 84 values a class are not trained: a fixed pseudo-random code of -1 and 1
    stands in for the paper's 7 x 12 bitmaps, which exist for characters only. They are no weight
    layer, so ``depth`` is 4: C1, C3, C5 and F6.
    """
    head = RadialHead(
        *(120, 1, (UNITS,), num_classes),
        pool_type=global_pool,
        drop_rate=drop_rate,
        activation=ScaledTanh,
    )
    c1, c5 = _convolution(in_channels, MAPS), _convolution(len(TABLE), 120)
    stages = [
        nn.Sequential(Subsampling(MAPS), TableConv()),
        nn.Sequential(Subsampling(len(TABLE)), c5),
    ]
    _start(c1, 25 * in_channels)
    _start(c5, 25 * len(TABLE))
    _start(head.hidden, 120)
    levels = [(MAPS, 1, "stem.0"), (len(TABLE), 2, "stages.0"), (120, 4, "stages.1")]
    return ConvNet(
        nn.Sequential(c1),
        stages,
        head,
        pool=nn.Identity(),
        final=nn.Identity(),
        feature_info=[
            dict(zip(("num_chs", "reduction", "module"), v, strict=True)) for v in levels
        ],
        num_features=120,
        depth=4,
        num_classes=num_classes,
        min_size=MIN_SIZE,
    )


def _convolution(in_channels: int, channels: int) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("conv", nn.Conv2d(in_channels, channels, 5))
    layer.add_module("act", ScaledTanh())
    return layer


def _start(layer: nn.Module, fan_in: int) -> None:
    """Draw weights and biases as the paper does, within 2.4 over the inputs of a unit."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)
