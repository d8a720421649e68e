"""What a network ends in: pooling, hidden linear layers where it has them, a classifier."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers.classifier import ClassifierHead
from torch import Tensor, nn

from lightning_depth.blocks._init import Init, initialize
from lightning_depth.blocks._parts import Activation, make_activation

__all__ = ["HiddenHead", "make_head"]


class HiddenHead(nn.Module):
    """Flattens the feature map and puts linear layers before the classifier, as in AlexNet.

    Args:
        in_channels: Channels of the feature map.
        size: Side to which the feature map is pooled before it is flattened.
        hidden: Units of the linear layers before the classifier.
        num_classes: Outputs of the classifier; 0 leaves the last hidden layer.
        pool_type: "avg" pools, flattens and goes on; "" returns the feature map as it is.
        drop_rate: Dropout before every linear layer.
        activation: Activation of the hidden layers.
        init: Initial weights.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        hidden: Sequence[int],
        num_classes: int,
        *,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        activation: Activation = "relu",
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        self.init = init
        self.pool_type = pool_type
        self.global_pool = nn.AdaptiveAvgPool2d(size)
        self.hidden = nn.Sequential()
        features = in_channels * size * size
        for number, units in enumerate(hidden, start=1):
            self.hidden.add_module(f"drop{number}", nn.Dropout(drop_rate))
            self.hidden.add_module(f"linear{number}", nn.Linear(features, units))
            self.hidden.add_module(f"act{number}", make_activation(activation, inplace=True))
            features = units
        self.num_features = features
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        initialize(self, init)
        self.reset(num_classes)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier, and how the feature map is pooled."""
        if pool_type is not None:
            self.pool_type = pool_type
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        initialize(self.fc, self.init)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or what the classifier reads."""
        if self.pool_type == "":
            return x
        x = self.hidden(self.global_pool(x).flatten(1))
        return x if pre_logits else self.fc(self.drop(x))


def make_head(
    num_features: int,
    num_classes: int,
    global_pool: str,
    drop_rate: float,
    *,
    size: int = 0,
    hidden: Sequence[int] = (),
    activation: Activation = "relu",
) -> nn.Module:
    """Return timm's pooling head, or the one with hidden layers where a size is given."""
    if size:
        return HiddenHead(
            *(num_features, size, hidden, num_classes),
            pool_type=global_pool,
            drop_rate=drop_rate,
            activation=activation,
        )
    head: nn.Module = ClassifierHead(
        num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
    )
    return head
