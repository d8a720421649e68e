"""One convolutional network for every family: a stem, stages of blocks, a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.classifier import ClassifierHead
from torch import Tensor, nn

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Stem, stages and head, with the methods that timm expects of a model.

    Built by `build_convnet` and by the presets; takes its parts ready made.

    Shape:
        - Input: ``(B, in_channels, H, W)``.
        - Output: ``(B, num_classes)``.

    Args:
        stem: What the image goes through first.
        stages: Modules that each hold the blocks of one resolution.
        norm: What follows the last block, such as the last activation of a preactivation net.
        feature_info: One mapping for the stem and one for each stage, as timm has them.
        depth: Weight layers on the main path, the classifier counted.
        num_classes: Outputs of the classifier; 0 leaves the pooled features.
        global_pool: How the last feature map is pooled, by timm's name.
        drop_rate: Dropout before the classifier.

    Example:
        >>> from lightning_depth.networks import build_convnet
        >>> build_convnet("residual", depth=20, width=16, num_classes=10).depth
        20
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        norm: nn.Module,
        *,
        feature_info: list[dict[str, Any]],
        depth: int,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.num_classes = num_classes
        self.feature_info = feature_info
        self.num_features = self.head_hidden_size = int(feature_info[-1]["num_chs"])
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, or by none where ``num_classes`` is 0."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map."""
        x = self.stem(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the pooled features before the classifier."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.forward_head(self.forward_features(x))
