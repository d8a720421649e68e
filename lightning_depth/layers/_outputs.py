"""What a layer returns: the tensor that goes on, and which of its axes is which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_depth.layers._tree import unwrap

__all__ = [
    "feature_axis",
    "is_channels_last",
    "is_sequence",
    "is_time_first",
    "main_output",
    "main_tensor",
]

_SEQUENCE_MODULES = (
    nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder,
    nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_CHANNEL_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


def main_output(output: Any) -> Tensor | PackedSequence | None:
    """Return what a module hands to the next layer, however its output is wrapped.

    Mappings, tuples, lists, named tuples and dataclasses are looked into, in their order. The
    first floating-point or complex tensor of at least two dimensions is taken, or a packed
    sequence, because losses and counts that a block returns beside its output have fewer; where
    there is none, the first tensor of any dimension.

    Args:
        output: What ``forward`` returned, or what it was given.

    Returns:
        The tensor or packed sequence; None where there is none to be found.

    Example:
        >>> import torch
        >>> main_output({"loss": torch.tensor(0.5), "hidden": (torch.zeros(4, 8), None)}).shape
        torch.Size([4, 8])
    """
    found = [part for part in _parts(output) if _is_continuous(_data(part))]
    wide = (part for part in found if _data(part).ndim > 1)
    return next(wide, found[0] if found else None)


def main_tensor(output: Any) -> Tensor | None:
    """Return the tensor of ``main_output``.

    Args:
        output: What ``forward`` returned, or what it was given.

    Returns:
        The tensor; None where there is none to be found. Of a packed sequence it is ``data``,
        with one row a time step of a sample.

    Example:
        >>> import torch
        >>> main_tensor((torch.zeros(4, 8), None)).shape
        torch.Size([4, 8])
    """
    found = main_output(output)
    return None if found is None else _data(found)


def _data(part: Tensor | PackedSequence) -> Tensor:
    return part.data if isinstance(part, PackedSequence) else part


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _parts(value: Any) -> Iterator[Tensor | PackedSequence]:
    if isinstance(value, (Tensor, PackedSequence)):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _parts(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _parts(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _parts(getattr(value, field.name, None))


class _Kind(NamedTuple):
    """What a module with weights says of its output.

    Args:
        widths: Sizes that the axis of its features may have.
        axis: Where that axis is, 1 or -1; None where the kind does not say.
    """

    widths: set[int]
    axis: int | None = None


def is_channels_last(output: Tensor, module: nn.Module) -> bool:
    """Whether the last axis holds the features, as ``feature_axis`` tells it.

    Where that is not known, the usual: tokens ``(B, T, D)``, and maps ``(B, C, ...)`` of whatever
    convolves or has more than one axis of positions.

    Args:
        output: What the module handed on, samples in front.
        module: The module.

    Returns:
        Whether it does.

    Example:
        >>> import torch
        >>> is_channels_last(torch.zeros(2, 5, 8), nn.Linear(3, 8))
        True
    """
    if output.ndim < 3:
        return False
    axis = feature_axis(output, module)
    if axis is None:
        convolves = any(isinstance(part, _CONVOLUTIONS) for part in module.modules())
        return output.ndim == 3 and not convolves
    return axis == -1


def feature_axis(output: Tensor, module: nn.Module) -> int | None:
    """Return the axis of a module's output that holds its features.

    The kinds of the modules in it say it where they agree, as a convolution has its channels
    first and a linear layer its features last. Else the size of the axis tells it, which must be
    a width of the module's weights.

    Args:
        output: What the module handed on, samples in front.
        module: The module.

    Returns:
        1 or -1; None where both are possible.

    Example:
        >>> import torch
        >>> feature_axis(torch.zeros(2, 8, 8), nn.Conv1d(3, 8, 1))
        1
    """
    if output.ndim < 3:
        return -1
    core = _last_part(module)
    kinds = [kind for part in core.modules() if (kind := _kind_of(part, output.ndim)) is not None]
    widths = {width for kind in kinds for width in kind.widths}
    fits = {axis for axis in (1, -1) if output.shape[axis] in widths}
    axes = {kind.axis for kind in kinds} - {None}
    if len(axes) != 1:
        return fits.pop() if len(fits) == 1 else None
    (axis,) = axes
    if axis is None or fits != {-axis}:
        return axis
    # the widths contradict the kind: its output was transposed, or joined to that of others
    if next(core.children(), None) is None or output.ndim == 3:
        return -axis if len(kinds) == 1 else None
    grid_behind, grid_before = (output.shape[2] == output.shape[place] for place in (-1, 1))
    return None if grid_behind == grid_before else 1 if grid_behind else -1


def _last_part(module: nn.Module) -> nn.Module:
    """The member with weights that a Sequential runs last, else the module."""
    module = unwrap(module)
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        members = [part for part in module.children() if next(part.parameters(), None) is not None]
        if not members:
            break
        module = unwrap(members[-1])
    return module


def _kind_of(part: nn.Module, ndim: int) -> _Kind | None:
    """What a single module says of an output of so many dimensions, None without weights."""
    if isinstance(part, _CONVOLUTIONS):
        positions = len(part.kernel_size)
        return _Kind({part.out_channels}, 1 if ndim == positions + 2 else None)
    if isinstance(part, (nn.Linear, nn.Bilinear)):
        return _Kind({part.out_features}, -1)
    if isinstance(part, nn.Embedding):
        return _Kind({part.embedding_dim}, -1)
    if isinstance(part, nn.RNNBase):
        directions = 2 if part.bidirectional else 1
        return _Kind({(part.proj_size or part.hidden_size) * directions}, -1)
    if isinstance(part, nn.RNNCellBase):
        return _Kind({part.hidden_size}, -1)
    if isinstance(part, nn.MultiheadAttention):
        return _Kind({part.embed_dim}, -1)
    if type(part) in (nn.LayerNorm, nn.RMSNorm):
        shape = cast("tuple[int, ...]", part.normalized_shape)
        return _Kind({shape[-1]}, -1) if len(shape) == 1 else _Kind(set(shape))
    if isinstance(part, (*_CHANNEL_NORMS, nn.GroupNorm)):
        return _Kind({getattr(part, "num_features", 0) or getattr(part, "num_channels", 0)}, 1)
    if isinstance(part, nn.PReLU):
        return _Kind({part.num_parameters}, 1) if part.num_parameters > 1 else None
    weights = [weight for weight in part.parameters(recurse=False) if weight.ndim]
    sizes = {weight.shape[place] for weight in weights for place in (0, -1)}
    return _Kind(sizes - {1}) if weights else None


def is_sequence(module: nn.Module) -> bool:
    """Whether it is one of torch's own sequence modules, which know their order of axes.

    Args:
        module: Any module.

    Returns:
        Whether it is.

    Example:
        >>> is_sequence(nn.GRU(2, 2)), is_sequence(nn.Linear(2, 2))
        (True, False)
    """
    return isinstance(module, _SEQUENCE_MODULES)


def is_time_first(module: nn.Module) -> bool:
    """Whether it is one of torch's own sequence modules and puts time before the samples.

    Args:
        module: Any module.

    Returns:
        Whether it is.

    Example:
        >>> is_time_first(nn.GRU(2, 2)), is_time_first(nn.GRU(2, 2, batch_first=True))
        (True, False)
    """
    if not is_sequence(module):
        return False
    return any(getattr(part, "batch_first", True) is False for part in module.modules())
