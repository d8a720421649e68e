"""One convolutional network for every family: a stem, stages of blocks, a head.

Annotations are not postponed here: TorchScript must be able to read them in a graph of FX.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from lightning_depth.blocks._checkpoint import checkpoint_once
from lightning_depth.errors import ConfigurationError, check_choice

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Stem, stages and head, with the methods that timm expects of a model.

    Built by `build_convnet`, `build_imagenet` and the presets; takes its parts ready made.

    Shape:
        - Input: ``(B, in_channels, H, W)``.
        - Output: ``(B, num_classes)``.

    Args:
        stem: What the image goes through first.
        stages: Modules that each hold the blocks of one resolution.
        head: Pooling and classifier, with a method ``reset`` and an attribute ``fc``.
        pool: What lies between the stem and the first stage.
        final: What follows the last block, such as the last activation of a preactivation net.
        feature_info: One mapping for the stem and one for each stage, as timm has them.
        num_features: Channels of the last feature map.
        depth: Weight layers on the main path, the classifier counted.
        num_classes: Outputs of the classifier; 0 leaves the pooled features.
        min_size: Smallest side of an image that is larger than all the strides together.

    Example:
        >>> from lightning_depth.networks import build_convnet
        >>> build_convnet("residual", depth=20, width=16, num_classes=10).depth
        20
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        head: nn.Module,
        *,
        pool: nn.Module,
        final: nn.Module,
        feature_info: list[dict[str, Any]],
        num_features: int,
        depth: int,
        num_classes: int,
        min_size: int = 1,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.min_size = min_size
        self.num_classes = num_classes
        self.feature_info = feature_info
        self.num_features = num_features
        self.head_hidden_size = int(head.num_features)  # type: ignore[arg-type]
        self.grad_checkpointing = False
        self.stem = stem
        self.pool = pool
        self.stages = nn.Sequential(*stages)
        self.final = final
        self.head = head

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.head.fc  # type: ignore[assignment]
        return classifier

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, or by none where ``num_classes`` is 0."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)  # type: ignore[operator]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block's activations again in the backward pass instead of storing them.

        Batch statistics are updated once all the same.
        """
        self.grad_checkpointing = enable
        for module in self.stages.modules():
            if hasattr(module, "set_grad_checkpointing"):
                module.set_grad_checkpointing(enable)  # type: ignore[operator]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters by depth."""
        block = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(block, None), (r"^final", (99999,))]}

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check_size(x)
        x = self.pool(self.stem(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = self._recompute(x)
        else:
            x = self.stages(x)
        return self.final(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the pooled features before the classifier."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.forward_head(self.forward_features(x))

    @torch.jit.unused
    def _recompute(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            for block in stage if isinstance(stage, nn.Sequential) else [stage]:
                own = hasattr(block, "set_grad_checkpointing")
                x = block(x) if own else checkpoint_once(block, _call, x)
        return x

    @torch.jit.unused
    def _check_size(self, x: Tensor) -> None:
        if isinstance(x, torch.fx.Proxy) or min(x.shape[-2:]) >= self.min_size:
            return
        raise ConfigurationError(
            f"Images of {x.shape[-2]} x {x.shape[-1]} pixels are too small for the strides of this "
            f"network: it needs at least {self.min_size} x {self.min_size}."
        )

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last feature map and those of the levels asked for (the stem is level 0).

        Args:
            x: Images.
            indices: Levels by number, or how many of the last; all by default.
            norm: Whether the last level passes through what follows the last stage.
            stop_early: Whether to stop after the last level that is wanted.
            output_fmt: "NCHW", the only one.
            intermediates_only: Whether to leave out the last feature map.

        Returns:
            The last feature map and the list of levels, or the list alone.
        """
        check_choice("output_fmt", output_fmt, ["NCHW"])
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        levels = []
        x = self.stem(x)
        if 0 in wanted:
            levels.append(x)
        x = self.pool(x)
        stages = list(self.stages)[:last] if stop_early else list(self.stages)
        for level, stage in enumerate(stages, start=1):
            x = stage(x)
            if level in wanted:
                finished = norm and level == len(self.stages)
                levels.append(self.final(x) if finished else x)
        if intermediates_only:
            return levels
        return (self.final(x) if len(stages) == len(self.stages) else x), levels

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what is not needed for the levels asked for.

        Args:
            indices: Levels by number, or how many of the last.
            prune_norm: Whether to drop what follows the last stage.
            prune_head: Whether to drop the classifier.

        Returns:
            The levels by number.
        """
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        self.stages = self.stages[:last]
        if prune_norm:
            self.final = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(wanted)


def _call(module: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = module(x)
    return output
