"""Norms of many tensors, brought to the host in one copy.

Reading one number a tensor would stop the accelerator once a tensor. Here the norms of every
group of tensors that share device and type come from one fused call, all groups are joined into
one vector, and the vector is copied once. Where a strategy shards tensors over ranks, the vector
is summed over the ranks as squares before it is copied; a full tensor is never gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "HostNorms",
    "Norms",
    "exact_norm",
    "exact_norms",
    "is_doubtful",
    "is_plain",
    "local_part",
    "lots",
]

_PLAIN = (Tensor, torch.nn.Parameter)
_KIND = attrgetter("__class__", "layout", "dtype", "device")
_LOT_BYTES = {True: 2**21, False: 2**26}
"""On a CPU and on an accelerator."""
_SMALLEST_TRUSTED = 1e-18
"""Below it the squares that float32 sums are subnormal and lose their digits."""


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is wholly here and made of real numbers, as nearly all are."""
    return type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_complex()


def local_part(tensor: Tensor | None) -> Tensor | None:
    """Return what this rank holds of a tensor, as plain real numbers; None where it holds none.

    To be called where autograd does not record, since a plain tensor is returned as it is.
    """
    if tensor is None or is_plain(tensor):
        return tensor
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # DTensor, without paying for its import
        tensor = _local(tensor)
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor


def _local(tensor: Any) -> Tensor:
    """Finish a sum over ranks that is outstanding, whose parts say nothing, and take our part."""
    from torch.distributed.tensor import Replicate

    if any(placement.is_partial() for placement in tensor.placements):
        placements = [Replicate() if p.is_partial() else p for p in tensor.placements]
        tensor = tensor.redistribute(placements=placements)
    local: Tensor = tensor.to_local()
    return local


@dataclass(frozen=True)
class HostNorms:
    """Norms on the host, one a slot.

    Args:
        values: The norms; not-a-number where there is none.
        present: Whether any rank held a tensor; a norm that is there may be not-a-number too.

    Example:
        >>> HostNorms(np.array([5.0, np.nan]), np.array([True, False])).to_list()
        [5.0, None]
    """

    values: NDArray[np.float64]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self.values)

    def __getitem__(self, slots: slice | range) -> HostNorms:
        """Return some slots, next to each other."""
        part = slice(slots.start, slots.stop)
        return HostNorms(self.values[part], self.present[part])

    def total(self) -> float:
        """Return the norm over all slots."""
        return float(np.hypot.reduce(self.values[self.present], initial=0.0))

    def to_list(self) -> list[float | None]:
        """Return plain numbers, None where there is no norm."""
        pairs = zip(self.values.tolist(), self.present.tolist(), strict=True)
        return [value if there else None for value, there in pairs]


def is_doubtful(norms: HostNorms) -> NDArray[np.bool_]:
    """Return which float32 norms may have under- or overflowed, so that float64 must repeat them.

    Example:
        >>> is_doubtful(HostNorms(np.array([1.0, 0.0, np.inf]), np.ones(3, bool))).tolist()
        [False, True, True]
    """
    trusted = (norms.values >= _SMALLEST_TRUSTED) & (norms.values < np.inf)
    return norms.present & ~trusted


class Norms:
    """Norms on their way to the host: collected on the device, read in one copy.

    Args:
        device: Where the vector is joined.

    Example:
        >>> norms = Norms(torch.device("cpu"))
        >>> norms.add([torch.tensor([3.0, 4.0]), None])
        range(0, 2)
        >>> norms.read().to_list()
        [5.0, None]
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[Tensor] = []
        self._slots: list[int] = []
        self._shares: list[float] = []
        self._size = 0

    def add(self, tensors: Sequence[Tensor | None], shares: Sequence[float] | None = None) -> range:
        """Queue the norms of tensors, one slot each.

        Args:
            tensors: Of any kind; the slot of None reads as None.
            shares: For each tensor the share of this rank's square that counts in the sum over
                ranks: 1 where ranks hold different pieces, 1/n where n ranks hold the same one.

        Returns:
            The slots, to be looked up in what ``read`` returns.
        """
        first = self._size
        for members, slots in _groups(tensors):
            self._parts.append(_stack_norms(members))
            self._slots += [first + slot for slot in slots]
        self._size += len(tensors)
        self._shares += shares if shares is not None else [1.0] * len(tensors)
        return range(first, self._size)

    def __len__(self) -> int:
        """Return how many slots were added."""
        return self._size

    def absorb(self, other: Norms) -> range:
        """Queue what another collection holds, so that both are read in one copy."""
        first = self._size
        self._parts += other._parts
        self._slots += [first + slot for slot in other._slots]
        self._shares += other._shares
        self._size += other._size
        return range(first, self._size)

    def read(self, group: torch.distributed.ProcessGroup | None = None) -> HostNorms:
        """Return the norms, in the order of their slots.

        Args:
            group: Ranks over which the squares are summed; no communication by default.
        """
        if group is not None:
            return self._read_summed(group)
        numbers = self._join().tolist() if self._parts else []
        if self._slots == list(range(self._size)):
            return HostNorms(np.array(numbers), np.ones(self._size, dtype=bool))
        values, present = np.full(self._size, np.nan), np.zeros(self._size, dtype=bool)
        values[self._slots] = numbers
        present[self._slots] = True
        return HostNorms(values, present)

    def _join(self) -> Tensor:
        if len(self._parts) == 1:
            return self._parts[0]
        return torch.cat([part.to(self._device) for part in self._parts])

    def _read_summed(self, group: torch.distributed.ProcessGroup) -> HostNorms:
        squares = torch.zeros(2, self._size, dtype=torch.float64, device=self._device)
        if self._parts:
            slots = torch.tensor(self._slots, device=self._device)
            shares = torch.tensor(self._shares, dtype=torch.float64, device=self._device)
            squares[0, slots] = self._join().to(torch.float64).square() * shares[slots]
            squares[1, slots] = 1.0
        torch.distributed.all_reduce(squares, group=group)
        sums, holders = np.array(squares.tolist())
        return HostNorms(np.where(holders > 0, np.sqrt(sums), np.nan), holders > 0)


def lots(tensors: Sequence[Tensor | None]) -> Iterator[slice]:
    """Yield the places of tensors that a processor's cache holds together.

    What is done to a lot in several passes then reads memory once. On an accelerator, where few
    calls are fast, a lot is what may be copied for a moment.
    """
    start = size = 0
    for place, tensor in enumerate(tensors):
        if tensor is None:
            continue
        size += tensor.numel() * tensor.element_size()
        if size >= _LOT_BYTES[tensor.device.type == "cpu"]:
            yield slice(start, place + 1)
            start, size = place + 1, 0
    if start < len(tensors):
        yield slice(start, len(tensors))


def exact_norms(
    device: torch.device, tensors: Sequence[Tensor | None], shares: Sequence[float] | None = None
) -> Norms:
    """Return norms in float64, followed by the square roots of the counts of non-finite elements.

    The roots make a count add up over ranks as the squares of norms do.

    Args:
        device: Where the vector is joined.
        tensors: What ``local_part`` returned.
        shares: As in ``Norms.add``.

    Returns:
        Twice as many slots as tensors.

    Example:
        >>> huge = torch.tensor([3e30, 4e30])
        >>> norm, root = exact_norms(torch.device("cpu"), [huge]).read().to_list()
        >>> f"{norm:.3g}", root
        ('5e+30', 0.0)
    """
    wide = [None if tensor is None else exact_norm(tensor) for tensor in tensors]
    counts = [None if tensor is None else _root_of_bad_count(tensor) for tensor in tensors]
    norms = Norms(device)
    norms.add(wide, shares)
    norms.add(counts, shares)
    return norms


def exact_norm(tensor: Tensor) -> Tensor:
    """Return a norm in float64, for what may be too small or too large and is read only once."""
    if tensor.device.type == "mps":  # has no float64
        tensor = tensor.cpu()
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm


def _root_of_bad_count(tensor: Tensor) -> Tensor:
    return tensor.isfinite().logical_not_().sum().to(torch.float32).sqrt_()


def _groups(tensors: Sequence[Tensor | None]) -> list[tuple[list[Tensor], list[int]]]:
    """Tensors of one kind together, as what this rank holds of them, with their places."""
    places = [place for place, tensor in enumerate(tensors) if tensor is not None]
    present = [tensor for tensor in tensors if tensor is not None]
    kinds = list(map(_KIND, present))  # a loop in C: there may be hundreds
    if len(set(kinds)) == 1:
        return [(_local_parts(present), places)]
    return [
        (
            _local_parts([t for t, own in zip(present, kinds, strict=True) if own == kind]),
            [place for place, own in zip(places, kinds, strict=True) if own == kind],
        )
        for kind in dict.fromkeys(kinds)
    ]


def _local_parts(alike: list[Tensor]) -> list[Tensor]:
    if is_plain(alike[0]):
        return alike
    return [part for tensor in alike if (part := local_part(tensor)) is not None]


def _stack_norms(tensors: list[Tensor]) -> Tensor:
    narrow = tensors[0].dtype in (torch.float16, torch.bfloat16)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32 if narrow else None))
