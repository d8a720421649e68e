"""What a batch holds: the input, and labels that are surely labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_depth.callbacks._probe.labels import (
    INPUT_NAMES,
    LABEL_NAMES,
    NoLabelsError,
    Path,
    decide_form,
    fields_of,
    is_one_hot,
    is_plain,
    locate_labels,
    walk,
    without_channel,
)

__all__ = [
    "Batch",
    "LabelReader",
    "NoLabelsError",
    "Path",
    "as_classes",
    "pick",
    "read_batch",
]


class LabelReader(Protocol):
    """Reads labels out of a batch."""

    def __call__(self, batch: Any) -> Tensor:
        """Return the labels of a batch, one a sample or one a position."""


class Batch(NamedTuple):
    """What the probe needs of a batch.

    Args:
        labels: One a sample ``(B,)`` or one a position ``(B, ...)``; negative ones are ignored.
        inputs: The input ``(B, ...)``, None where it cannot be told or read.
        path: How the labels are to be read, and where in the batch they were found.
    """

    labels: Tensor
    inputs: Tensor | None
    path: Path


def read_batch(batch: Any, labels: str | int | LabelReader | None, path: Path = ()) -> Batch:
    """Return labels and input of a batch, or raise the sentence that says why there are none.

    Args:
        batch: Any batch.
        labels: What the user said of where they are.
        path: What an earlier batch of the pass decided, so that later ones are read alike.
    """
    tensors = [tensor for _, tensor in walk(batch) if is_plain(tensor)]
    if tensors and not any(map(len, tensors)):
        return Batch(torch.zeros(0, dtype=torch.long), None, path)
    place = path[1:]
    if labels is None:
        place = place or locate_labels(batch)
        target = _follow(batch, place)
    else:
        target = pick(batch, labels, "labels")
    if not len(target):
        return Batch(torch.zeros(0, dtype=torch.long), None, path)
    source = choose_input(batch, target)
    others = [tensor for tensor in tensors if tensor is not target]
    form = decide_form(target, source, others, path[:1], at_its_word=callable(labels))
    found = _whole_numbers(without_channel(target, source)) if form == "positions" else None
    return Batch(as_classes(target) if found is None else found, source, (form, *place))


def _follow(batch: Any, path: Path) -> Tensor:
    """Return what lies in a batch where a path leads."""
    for step in path:
        if isinstance(step, str):
            batch = fields_of(batch).get(step)
        else:
            batch = batch[step] if isinstance(batch, (list, tuple)) and step < len(batch) else None
    if not isinstance(batch, Tensor):
        raise NoLabelsError("a batch has no labels where an earlier one has them")
    return _readable(batch, "the place of the labels")


def pick(batch: Any, where: str | int | LabelReader, argument: str) -> Tensor:
    """Return the tensor of a batch that an argument names."""
    if callable(where):
        try:
            value = where(batch)
        except Exception as error:  # a measurement never ends the user's run
            reason = f"{type(error).__name__}: {error}"
            raise NoLabelsError(f"`{argument}` cannot read a batch ({reason})") from error
    elif isinstance(where, int) and not isinstance(where, bool):
        items = list(batch.values()) if isinstance(batch, Mapping) else batch
        if not isinstance(items, Sequence) or not -len(items) <= where < len(items):
            raise NoLabelsError(f"the batch has no element {where}, which `{argument}` names")
        value = items[where]
    elif isinstance(where, str):
        fields = fields_of(batch)
        if where not in fields:
            known = ", ".join(map(repr, fields)) or "none"
            raise NoLabelsError(
                f"the batch has no field {where!r}, which `{argument}` names; fields: {known}"
            )
        value = fields[where]
    else:
        raise NoLabelsError(f"`{argument}` must be a key, a place or a callable, but is {where!r}")
    if not isinstance(value, Tensor):
        raise NoLabelsError(f"`{argument}` gives a {type(value).__name__}, not a tensor")
    return _readable(value, f"`{argument}`")


def _readable(value: Tensor, giver: str) -> Tensor:
    if not is_plain(value):
        raise NoLabelsError(
            f"{giver} gives a tensor that cannot be read: sparse, nested, complex, quantized, "
            "without values or of 8-bit floats"
        )
    if not value.ndim:
        raise NoLabelsError(f"{giver} gives a single number, not one a sample")
    return value


def as_classes(target: Tensor) -> Tensor:
    """Class numbers of a target that was named: integers, whole floats or one-hot rows."""
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    return target.long().argmax(1) if is_one_hot(target) else _whole_numbers(target)


def _whole_numbers(target: Tensor) -> Tensor:
    if target.is_floating_point():
        if bool((target[torch.isfinite(target)] % 1 != 0).any()):
            raise NoLabelsError("the named labels are not whole numbers")
        target = torch.where(torch.isfinite(target), target, -1.0)
    return target.long()


def choose_input(batch: Any, target: Tensor) -> Tensor | None:
    """Return the input that belongs to labels, None where that is not sure.

    Where several loaders hand on their batches at once, it is the one beside the labels.
    """
    entries = [
        (path, tensor) for path, tensor in walk(batch) if _may_be_input(path, tensor, target)
    ]
    home = next((path for path, tensor in walk(batch) if tensor is target), None)
    if home is None:
        parts = {path[0] for path, _ in entries if len(path) > 1}
        if len(parts) > 1:
            return None
        entries = [(path, tensor) for path, tensor in entries if not is_one_hot(tensor)]
        return _best(entries)
    for depth in reversed(range(len(home))):
        beside = [
            (path, tensor)
            for path, tensor in entries
            if path[:depth] == home[:depth] and path[depth] != home[depth]
        ]
        if depth:  # what only goes with the labels, as a second target does, is no input
            beside = [entry for entry in beside if _belongs(entry, home, depth)]
            if beside and any(len(path) == 1 for path, _ in entries):
                return None
        if beside:
            return _best(beside)
    return None


def _may_be_input(path: Path, tensor: Tensor, target: Tensor) -> bool:
    if not path or tensor is target or any(str(step).lower() in LABEL_NAMES for step in path):
        return False
    if not is_plain(tensor):
        return True  # it may well be the input, and cannot be read
    several = tensor.ndim > 1 and tensor.shape[1:].numel() > 0
    return len(tensor) == len(target) and (several or tensor.is_floating_point())


def _best(entries: Sequence[tuple[Path, Tensor]]) -> Tensor | None:
    """Usual names first, then most dimensions, then the first of a tuple, the largest of fields."""
    wide = [entry for entry in entries if _is_wide(entry[1])]
    named = [entry for entry in wide if _has_usual_name(entry)]
    chosen = named or wide or entries
    if not chosen or not all(is_plain(tensor) for _, tensor in chosen):
        return None
    _, best = max(chosen, key=_rank)
    return best[:, None] if best.ndim == 1 else best


def _rank(entry: tuple[Path, Tensor]) -> tuple[bool, int, int, int]:
    path, tensor = entry
    first = path[0] if isinstance(path[0], int) else 0
    size = tensor.numel() if isinstance(path[-1], str) else 0
    return tensor.dtype != torch.bool, tensor.ndim, -first, size


def _is_wide(tensor: Tensor) -> bool:
    return not is_plain(tensor) or tensor.shape[1:].numel() > 1


def _has_usual_name(entry: tuple[Path, Tensor]) -> bool:
    return any(str(step).lower() in INPUT_NAMES for step in entry[0])


def _belongs(entry: tuple[Path, Tensor], home: Path, depth: int) -> bool:
    """Whether a tensor in the container of the labels is their input: by its name, or before."""
    path, tensor = entry
    step, place = path[depth], home[depth]
    before = isinstance(step, int) and isinstance(place, int) and step < place
    return _is_wide(tensor) and (before or _has_usual_name(entry))
