"""What a layer returns: the tensor that goes on, and which of its axes is which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["is_channels_last", "is_sequence", "is_time_first", "main_tensor"]

_SEQUENCE_MODULES = (
    nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder,
    nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip


def main_tensor(output: Any) -> Tensor | None:
    """Return the tensor that a module hands to the next layer, however its output is wrapped.

    Mappings, tuples, lists, named tuples, dataclasses and packed sequences are looked into, in
    their order. The first floating-point or complex tensor of at least two dimensions is taken,
    because losses and counts that a block returns beside its output have fewer; where there is
    none, the first tensor of any dimension.

    Args:
        output: What ``forward`` returned, or what it was given.

    Returns:
        The tensor; None where there is none to be found. Of a packed sequence it is ``data``,
        with one row a time step of a sample.

    Example:
        >>> import torch
        >>> main_tensor({"loss": torch.tensor(0.5), "hidden": (torch.zeros(4, 8), None)}).shape
        torch.Size([4, 8])
    """
    if isinstance(output, Tensor):
        return output if _is_continuous(output) else None
    found = [tensor for tensor in _tensors(output) if _is_continuous(tensor)]
    wide = (tensor for tensor in found if tensor.ndim > 1)
    return next(wide, found[0] if found else None)


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name, None))


def is_channels_last(output: Tensor, module: nn.Module) -> bool:
    """Whether the last axis holds the features: told by the widths of the module's weights."""
    if output.ndim < 3:
        return False
    widths: set[int] = set()
    convolves = False
    for part in module.modules():
        convolves |= isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if isinstance(part, nn.RNNBase):  # whose weights hold several gates
            directions = 2 if part.bidirectional else 1
            widths.add((part.proj_size or part.hidden_size) * directions)
            continue
        widths |= {weight.shape[0] for weight in part.parameters(recurse=False) if weight.ndim}
        widths |= {getattr(part, "hidden_size", -1)}
    first, last = output.shape[1] in widths, output.shape[-1] in widths
    if first != last:
        return last
    return output.ndim == 3 and not convolves


def is_sequence(module: nn.Module) -> bool:
    """Whether it is one of torch's own sequence modules, which know their order of axes."""
    return isinstance(module, _SEQUENCE_MODULES)


def is_time_first(module: nn.Module) -> bool:
    """Whether it is one of torch's own sequence modules and puts time before the samples."""
    if not is_sequence(module):
        return False
    return any(getattr(part, "batch_first", True) is False for part in module.modules())
