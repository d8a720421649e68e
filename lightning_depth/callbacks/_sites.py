"""Where activations are read: which function made a tensor, and along which axis its units lie.

Networks write an activation as a module or as a function, and no module tells of the second. The
graph that autograd builds knows both, so it is asked for the origin of what enters a layer.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, dropout, instancenorm, normalization

__all__ = ["Activation", "Death", "by_units", "describe_module", "describe_origin", "unit_axis"]

_STEPS_BACK = 6


class Death(Enum):
    """How it shows that a unit is dead."""

    NEVER = "never"
    """It is not looked at: the activation saturates instead."""
    BELOW_ZERO = "below zero"
    """Its largest output is not above zero, where output and slope are zero below."""
    FLAT = "flat"
    """Its output does not change although its input does."""
    MASKED = "masked"
    """Flat, and its input has one sign: a product with a mask may be ``x * (x > 0)``, or hide
    units by design."""


class Activation(NamedTuple):
    """What is known of an activation function."""

    death: Death
    low: float = -math.inf
    """Bound at which it saturates."""
    high: float = math.inf
    sure: bool = True
    """Whether it is an activation for sure, so that its units count even where all are alive."""

    @property
    def bounded(self) -> bool:
        """Whether it can saturate."""
        return self.low > -math.inf or self.high < math.inf


_RELU = Activation(Death.BELOW_ZERO)
_FLAT = Activation(Death.FLAT)
_PERHAPS = Activation(Death.FLAT, sure=False)
_MASKED = Activation(Death.MASKED, sure=False)
_BY_MODULE: dict[type[nn.Module], Activation] = {
    nn.ReLU: _RELU,
    nn.ReLU6: Activation(Death.BELOW_ZERO, high=6.0),
    nn.Sigmoid: Activation(Death.NEVER, low=0.0, high=1.0),
    nn.Hardsigmoid: Activation(Death.NEVER, low=0.0, high=1.0),
    nn.Tanh: Activation(Death.NEVER, low=-1.0, high=1.0),
    nn.Softsign: Activation(Death.NEVER, low=-1.0, high=1.0),
}
_BY_FUNCTION = {
    "ReluBackward": _RELU,
    "SigmoidBackward": _BY_MODULE[nn.Sigmoid],
    "HardsigmoidBackward": _BY_MODULE[nn.Hardsigmoid],
    "TanhBackward": _BY_MODULE[nn.Tanh],
    **dict.fromkeys(
        (
            "LeakyReluBackward", "PreluKernelBackward", "RreluWithNoiseBackward", "EluBackward",
            "CeluBackward", "GeluBackward", "SiluBackward", "MishBackward", "HardswishBackward",
            "SoftplusBackward", "ThresholdBackward", "HardshrinkBackward", "SoftshrinkBackward",
            "GluBackward",
        ),
        _FLAT,
    ),
    **dict.fromkeys(("Clamp", "Maximum", "Minimum"), _PERHAPS),
}  # fmt: skip
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
_SHAPING = ("Mul", "Where", "Add", "Sub", "Neg", "Pow")
"""What may make another function of an activation: ``-relu(x)``, ``relu(x) ** 2``."""
_MIXERS = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.MultiheadAttention,
    activation.Softmax, activation.Softmax2d, activation.LogSoftmax, activation.Softmin,
    dropout._DropoutNd, batchnorm._NormBase, instancenorm._InstanceNorm, normalization.LayerNorm,
    normalization.GroupNorm, normalization.LocalResponseNorm, normalization.RMSNorm,
    torch.jit.ScriptModule,
)  # fmt: skip
"""Modules without weights that are no activations although their output has their input's shape."""
_MIXING_WORDS = ("drop", "norm", "mask", "pool")


def describe_module(module: nn.Module) -> Activation | None:
    """Return what is known of an activation module, None for other modules.

    A module that is none of torch's and has neither parts nor weights may be an activation.
    """
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return _clipped(float(module.min_val), float(module.max_val))
    for kind, known in _BY_MODULE.items():
        if isinstance(module, kind):
            return known
    if isinstance(module, _MIXERS) or (module._parameters and not isinstance(module, nn.PReLU)):
        return None
    if type(module).__module__ == activation.__name__:
        return _FLAT
    name = type(module).__name__.lower()
    single = not module._modules and not module._buffers
    foreign = not type(module).__module__.startswith(("torch.nn.", "torchmetrics."))
    return _PERHAPS if single and foreign and not any(w in name for w in _MIXING_WORDS) else None


def describe_origin(tensor: Tensor) -> tuple[Activation, Any] | None:
    """Return which activation function a tensor comes from, with its node in autograd's graph.

    None where it comes from none, or where nothing is recorded for a backward pass.
    """
    node: Any = tensor.grad_fn
    shaped: tuple[Activation, Any] | None = None
    scaled = True
    for _ in range(_STEPS_BACK):
        if node is None:
            break
        name = node.name()
        if (found := _describe_node(node, name)) is not None:
            return (found, node) if shaped is None else _shaped(found, node, scaled)
        if name.startswith(_SHAPING):
            inputs = [source for source, _ in node.next_functions if source is not None]
            if len(inputs) > 1:
                return shaped or _gate(node, name, inputs)
            scaled &= name.startswith("Mul")
            shaped = shaped or (_MASKED if name.startswith(("Mul", "Where")) else _PERHAPS, node)
            node = inputs[0] if inputs else None
        else:
            node = _before(node) if name.startswith(_TRANSPARENT) else None
    return shaped


def _describe_node(node: Any, name: str) -> Activation | None:
    if name.startswith("HardtanhBackward"):
        return _clipped(node._saved_min_val, node._saved_max_val)
    return next((known for start, known in _BY_FUNCTION.items() if name.startswith(start)), None)


def _clipped(low: float, high: float) -> Activation:
    """A clipped line; where it begins at zero its units die as those of a ReLU do."""
    if low == 0:
        return Activation(Death.BELOW_ZERO, high=high)
    return Activation(Death.NEVER, low=low, high=high)


def _shaped(found: Activation, node: Any, scaled: bool) -> tuple[Activation, Any] | None:
    """What is known of a function of an activation: its sign and bounds are its own no more.

    A product is read as dropout where the activation is bounded.
    """
    if found.death is Death.NEVER:
        return (found, node) if scaled else None
    return found._replace(death=Death.FLAT, low=-math.inf, high=math.inf), node


def _gate(node: Any, name: str, inputs: list[Any]) -> tuple[Activation, Any] | None:
    """A product of two outputs may be a gated unit; one with a learned scale is not looked at."""
    learned = any(_leads_to_weight(source) for source in inputs)
    return None if learned or not name.startswith("Mul") else (_PERHAPS, node)


def _leads_to_weight(node: Any) -> bool:
    for _ in range(_STEPS_BACK):
        sources = [source for source, _ in node.next_functions if source is not None]
        if len(sources) != 1:
            return not node.next_functions  # the end of the graph, where a gradient is gathered
        node = sources[0]
    return False


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
