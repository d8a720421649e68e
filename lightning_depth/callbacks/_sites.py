"""Where activations are read: which function made a tensor, and along which axis its units lie.

Networks write an activation as a module or as a function, and no module tells of the second. The
graph that autograd builds knows both, so it is asked for the origin of what enters a layer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Activation", "describe_module", "describe_origin", "unit_axis"]

_STEPS_BACK = 6


class Activation(NamedTuple):
    """What is known of an activation function."""

    rectified: bool
    """Whether its output and its slope are exactly zero below zero, so that a unit can die."""
    low: float = -math.inf
    """Bound at which it saturates."""
    high: float = math.inf

    @property
    def bounded(self) -> bool:
        """Whether it can saturate."""
        return self.low > -math.inf or self.high < math.inf


_RELU = Activation(rectified=True)
_BY_MODULE: dict[type[nn.Module], Activation] = {
    nn.ReLU: _RELU,
    nn.ReLU6: Activation(rectified=True, high=6.0),
    nn.Sigmoid: Activation(rectified=False, low=0.0, high=1.0),
    nn.Hardsigmoid: Activation(rectified=False, low=0.0, high=1.0),
    nn.Tanh: Activation(rectified=False, low=-1.0, high=1.0),
    nn.Softsign: Activation(rectified=False, low=-1.0, high=1.0),
}
_BY_FUNCTION = {
    "ReluBackward": _RELU,
    "SigmoidBackward": _BY_MODULE[nn.Sigmoid],
    "HardsigmoidBackward": _BY_MODULE[nn.Hardsigmoid],
    "TanhBackward": _BY_MODULE[nn.Tanh],
}
_CHANNELS_FIRST = ("Convolution", "NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm")
_CHANNELS_LAST = ("Addmm", "Mm", "Bmm", "Linear", "NativeLayerNorm")
_TRANSPARENT = (
    "View",
    "UnsafeView",
    "Reshape",
    "NativeDropout",
    "MaxPool",
    "AvgPool",
    "AdaptiveAvgPool",
    "Mean",
    "ToCopy",
    "Clone",
)
"""What may lie between an activation and the layer it feeds: shapes, dropout, pooling, casts."""


def describe_module(module: nn.Module) -> Activation | None:
    """Return what is known of an activation module, None for other modules."""
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return Activation(rectified=False, low=float(module.min_val), high=float(module.max_val))
    for kind, activation in _BY_MODULE.items():
        if isinstance(module, kind):
            return activation
    return None


def describe_origin(tensor: Tensor) -> tuple[Activation, Any] | None:
    """Return which activation function a tensor comes from, with its node in autograd's graph.

    None where it comes from none, or where nothing is recorded for a backward pass.
    """
    node: Any = tensor.grad_fn
    for _ in range(_STEPS_BACK):
        if node is None:
            return None
        name = node.name()
        for function, activation in _BY_FUNCTION.items():
            if name.startswith(function):
                return activation, node
        node = _before(node) if _hands_on(node, name) else None
    return None


def unit_axis(tensor: Tensor) -> int:
    """Return the axis of a tensor along which its units lie.

    Convolutions put them second, linear layers last; images that went through linear layers
    (ConvNeXt) are told from others by the layer that made them.
    """
    if tensor.ndim < 3:
        return min(1, tensor.ndim - 1)
    node: Any = tensor.grad_fn
    for _ in range(_STEPS_BACK):
        if node is None:
            break
        name = node.name()
        if name.startswith(_CHANNELS_FIRST):
            return 1
        if name.startswith(_CHANNELS_LAST):
            return tensor.ndim - 1
        node = _before(node)
    return 1 if tensor.ndim != 3 else 2


def _hands_on(node: Any, name: str) -> bool:
    """Whether what a node makes of an activation still shows which of its units are above zero.

    A product does where the other factor is a constant such as the mask of dropout; a factor that
    is learned may be negative, and a gated activation is not the gate's.
    """
    if name.startswith("Mul"):
        return len(node.next_functions) < 2 or node.next_functions[1][0] is None
    return name.startswith(_TRANSPARENT)


def by_units(tensor: Tensor, node: Any) -> Tensor:
    """Return an activation's output with an axis of units, where its positions were flattened.

    Args:
        tensor: What a layer was fed, with the batch first.
        node: Where the activation itself was recorded; it knows the shape that it had.
    """
    metadata = getattr(node, "_input_metadata", None)
    shape = tuple(metadata[0].shape) if metadata else ()
    if tensor.ndim != 2 or len(shape) != 4 or tensor.shape[1] % shape[1]:
        return tensor
    return tensor.reshape(len(tensor), shape[1], -1, 1)


def _before(node: Any) -> Any:
    return node.next_functions[0][0] if node.next_functions else None
