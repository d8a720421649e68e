"""One multilayer perceptron for every block.

Annotations are not postponed here: TorchScript must be able to read them in a graph of FX.
"""

import math

import torch
from torch import Tensor, nn

from lightning_depth.blocks._init import initialize
from lightning_depth.errors import ConfigurationError

__all__ = ["MultilayerPerceptron"]


class MultilayerPerceptron(nn.Module):
    """Hidden layers and a linear classifier over flattened inputs.

    Built by `build_mlp` and by the presets; takes its parts ready made.

    Shape:
        - Input: ``(B, ...)``, flattened to ``(B, in_features)``.
        - Output: ``(B, num_classes)``.

    Args:
        stem: The first hidden layer, or the identity.
        blocks: The further hidden layers.
        final: What follows the last block, such as the last activation of a preactivation net.
        num_features: Units of the last hidden layer.
        num_classes: Outputs of the classifier; 0 leaves the last hidden layer.
        hidden_layers: Weight layers before the classifier.
        in_features: Units of the input once it is flattened, for messages.

    Raises:
        ConfigurationError: The input has another number of units, as an image of another size.

    Example:
        >>> from lightning_depth.networks import build_mlp
        >>> build_mlp("residual", 5, width=32, in_features=64, num_classes=10).hidden_layers
        5
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: nn.Sequential,
        final: nn.Module,
        num_features: int,
        num_classes: int,
        *,
        hidden_layers: int,
        in_features: int,
    ) -> None:
        super().__init__()
        self.hidden_layers = hidden_layers
        self.in_features = in_features
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.stem = stem
        self.blocks = blocks
        self.final = final
        self.head = _classifier(num_features, num_classes)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, or by none where ``num_classes`` is 0.

        Args:
            num_classes: Outputs of the new classifier.
            global_pool: Accepted since timm passes it; there is no feature map to pool.
        """
        self.num_classes = num_classes
        self.head = _classifier(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check_size(x)
        x = self.stem(x.flatten(1))
        x = self.blocks(x)
        return self.final(x)

    @torch.jit.unused
    def _check_size(self, x: Tensor) -> None:
        if isinstance(x, torch.fx.Proxy) or math.prod(x.shape[1:]) == self.in_features:
            return
        shape = " x ".join(map(str, x.shape[1:]))
        raise ConfigurationError(
            f"This network needs {self.in_features} input units, but inputs of shape {shape} have "
            f"{math.prod(x.shape[1:])}."
        )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the features as they are."""
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.forward_head(self.forward_features(x))


def _classifier(num_features: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(num_features, num_classes)
    initialize(head, "xavier")
    return head
