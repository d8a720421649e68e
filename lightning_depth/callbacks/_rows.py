"""What a layer was given or returned, as one row a sample, however it is wrapped.

Variety between samples means nothing where time steps, windows or nodes are taken for samples, so
the axis of the samples is told by the size of the batch, as the separability probe tells it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_depth.functional.activations import code_features, sample_features
from lightning_depth.layers import is_sequence, is_time_first, main_tensor, unwrap

__all__ = ["RowReader", "Rows", "as_plain", "count_samples", "describe_unread", "few_of"]

_MOST_ROWS = 16


class Rows(NamedTuple):
    """A few rows of a tensor."""

    features: Tensor
    """A copy of the features of the rows, ``(n, d)``."""
    total: int
    """How many rows the tensor has."""


class RowReader:
    """Reads inputs and outputs by samples.

    Args:
        model: The module whose layers they belong to.
    """

    def __init__(self, model: nn.Module) -> None:
        self._has_time_first = any(is_time_first(module) for module in model.modules())
        self.samples: int | None = None
        """Samples of the batch; None where it does not tell."""

    def count(self, batch: Any, expected: int | None = None) -> int | None:
        """Return how many samples a batch holds, None where it does not tell.

        Args:
            batch: Any batch, or what a model was given.
            expected: Samples of a batch by the loader's account.
        """
        return count_samples(batch, expected, time_may_lead=self._has_time_first)

    def read(self, value: Any, module: nn.Module) -> Rows | None:
        """Return a few rows, None where there are none or their axis cannot be told.

        Args:
            value: What a module was given or returned.
            module: That module.
        """
        packed = _packed(value)
        if packed is not None:
            return _read_packed(packed)
        tensor = main_tensor(value)
        if tensor is None:
            return self._read_codes(value, module)
        plain = as_plain(tensor)
        return None if plain is None else self._read(plain, module)

    def _read_codes(self, value: Any, module: nn.Module) -> Rows | None:
        """Words and classes are alike or not, and nothing between: as the codes of one of many."""
        codes = next((t for t in _tensors(value) if t.ndim and not t.is_floating_point()), None)
        if codes is None or codes.is_nested or (plain := as_plain(codes)) is None:
            return None
        return self._read(plain[:, None] if plain.ndim == 1 else plain, module)

    def _read(self, tensor: Tensor, module: nn.Module) -> Rows | None:
        front = self._samples_first(tensor, unwrap(module))
        if front is None or not front.numel():
            return None
        count, parts = len(front), 1
        if self.samples and count > self.samples and count % self.samples == 0:
            count, parts = self.samples, count // self.samples  # windows, frames, views
        few = min(count, _MOST_ROWS)
        if self.samples in (None, count):
            rows = front[: few * parts].reshape(few, -1)
        else:
            rows = front[:: -(-count // _MOST_ROWS)]
        floats = rows.is_floating_point()
        return Rows(sample_features(rows) if floats else code_features(rows), count)

    def _samples_first(self, tensor: Tensor, module: nn.Module) -> Tensor | None:
        if tensor.ndim < 2:
            return None
        if tensor.ndim != 3:
            return tensor
        if is_sequence(module):
            return tensor.transpose(0, 1) if is_time_first(module) else tensor
        first, second = tensor.shape[:2]
        if self.samples is None or first == second == self.samples:
            return None if self._has_time_first else tensor
        leads = second == self.samples and (self._has_time_first or first % second != 0)
        return tensor.transpose(0, 1) if leads else tensor


def count_samples(
    batch: Any, expected: int | None = None, *, time_may_lead: bool = False
) -> int | None:
    """Return how many samples a batch holds: the length that most of its tensors have.

    Args:
        batch: Any batch.
        expected: Samples of a batch by the loader's account; it decides between equals.
        time_may_lead: Whether samples may lie along the second axis.

    Returns:
        None where the batch holds no tensor or does not tell.

    Example:
        >>> count_samples((torch.zeros(7, 32, 5), torch.zeros(32)), time_may_lead=True)
        32
    """
    votes: Counter[int] = Counter()
    for tensor in _tensors(batch):
        axes = 2 if time_may_lead and _may_have_time(tensor) else 1
        votes.update(set(tensor.shape[:axes]))
    most = max(votes.values(), default=0)
    tied = [size for size, count in votes.items() if count == most]
    if expected in tied:
        return expected
    return None if not tied or (time_may_lead and len(tied) > 1) else tied[0]


def _may_have_time(tensor: Tensor) -> bool:
    """Whether its first two axes may be those of samples and of time: numbers need a third."""
    return tensor.ndim > (2 if tensor.is_floating_point() else 1)


def as_plain(tensor: Tensor) -> Tensor | None:
    """Return the real numbers of a tensor in one dense piece, None where it is sparse.

    Args:
        tensor: Any tensor; of one that is spread over devices the part of this device is taken,
            and the rows of a nested one are filled up with zeros.
    """
    plain = tensor.detach()
    if hasattr(plain, "to_local"):
        plain = plain.to_local()
    if plain.is_nested:
        plain = torch.nested.to_padded_tensor(plain, 0.0)
    if plain.layout is not torch.strided:
        return None
    return torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain


def describe_unread(output: Any) -> str:
    """Return why an output cannot be measured."""
    if output is None:
        return "it returns nothing"
    kind = type(output).__name__
    if isinstance(output, Tensor):
        sparse = main_tensor(output) is not None
        return "its output is sparse" if sparse else "its output is of whole numbers"
    return f"its output is a {kind}, in which no tensor of real numbers was found"


def few_of(tensor: Tensor, axis: int) -> Tensor:
    """Return a view of a few samples and positions of a tensor, with all of its units.

    Args:
        tensor: Samples first.
        axis: Where its units lie.
    """
    steps = [
        slice(None) if place == axis else slice(None, None, -(-size // 8))
        for place, size in enumerate(tensor.shape)
    ]
    if axis != 0:
        steps[0] = slice(None, _MOST_ROWS)
    return tensor[tuple(steps)]


def _read_packed(packed: PackedSequence) -> Rows | None:
    """The last time step that all of the rows have: rows of the whole are steps, not samples."""
    tensor, sizes = as_plain(packed.data), packed.batch_sizes
    if tensor is None or not len(sizes):
        return None
    count = int(sizes[0])
    few = min(count, _MOST_ROWS)
    step = int((sizes >= few).sum()) - 1
    start = int(sizes[:step].sum())
    rows = tensor[start : start + few]
    rows = rows if rows.ndim > 1 else rows[:, None]
    floats = rows.is_floating_point()
    return Rows(sample_features(rows) if floats else code_features(rows), count)


def _packed(value: Any) -> PackedSequence | None:
    if isinstance(value, PackedSequence):
        return value
    parts = value.values() if isinstance(value, Mapping) else value
    parts = parts if isinstance(value, (Mapping, tuple, list)) else ()
    return next((found for part in parts if (found := _packed(part)) is not None), None)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, (Mapping, tuple, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name, None))
