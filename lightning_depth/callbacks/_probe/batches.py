"""What a batch holds: the input, and labels that are surely labels.

Nothing is guessed that could be wrong in silence. Float targets, indices and group ids are never
taken for labels; where two tensors could be meant, one sentence asks for the name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "Batch",
    "LabelReader",
    "NoLabelsError",
    "Path",
    "as_classes",
    "first_tensor",
    "pick",
    "read_batch",
]

Path = tuple[str | int, ...]

NAMES = ("label", "labels", "target", "targets", "y", "class", "classes", "class_id", "class_idx",
         "class_label", "label_ids", "category")  # fmt: skip
MAX_POSITIONS = 65_536  # label positions of one batch that are looked at


class LabelReader(Protocol):
    """Reads labels out of a batch."""

    def __call__(self, batch: Any) -> Tensor:
        """Return the labels of a batch, one a sample or one a position."""


class NoLabelsError(Exception):
    """Why a batch has no labels, as a sentence."""


class Batch(NamedTuple):
    """What the probe needs of a batch.

    Args:
        labels: One a sample ``(B,)`` or one a position ``(B, ...)``; negative ones are ignored.
        inputs: First tensor that is not the label, None where there is none with B samples.
        path: Where in the batch the labels were found.
    """

    labels: Tensor
    inputs: Tensor | None
    path: Path


def read_batch(batch: Any, labels: str | int | LabelReader | None, path: Path = ()) -> Batch:
    """Return labels and input of a batch, or raise the sentence that says why there are none.

    Args:
        batch: Any batch.
        labels: What the user said of where they are.
        path: Where they were found in an earlier batch of the pass, where the user said nothing.
    """
    if labels is None:
        path = path or locate_labels(batch)
        target = follow(batch, path)
    else:
        target = pick(batch, labels, "labels")
    found = as_classes(target)
    sizes = [tensor for tensor in tensors_of(batch) if len(tensor.shape) > 1 or _floats(tensor)]
    inputs = [tensor for tensor in sizes if len(tensor) == len(found) and tensor is not target]
    floats = [tensor for tensor in inputs if _floats(tensor)]
    return Batch(found, next(iter(floats or inputs), None), path)


def follow(batch: Any, path: Path) -> Tensor:
    """Return what lies in a batch where a path leads."""
    for step in path:
        batch = batch[step] if isinstance(step, int) else fields_of(batch)[step]
    if not isinstance(batch, Tensor):
        raise NoLabelsError("the labels of a batch are no tensor")
    return batch


def pick(batch: Any, where: str | int | LabelReader, argument: str) -> Tensor:
    """Return the tensor of a batch that an argument names."""
    if callable(where):
        value = where(batch)
    elif isinstance(where, int):
        items = list(batch.values()) if isinstance(batch, Mapping) else batch
        if not isinstance(items, Sequence) or not -len(items) <= where < len(items):
            raise NoLabelsError(f"the batch has no element {where}, which `{argument}` names")
        value = items[where]
    else:
        fields = fields_of(batch)
        if where not in fields:
            known = ", ".join(map(repr, fields)) or "none"
            raise NoLabelsError(
                f"the batch has no field {where!r}, which `{argument}` names; fields: {known}"
            )
        value = fields[where]
    if not isinstance(value, Tensor):
        raise NoLabelsError(f"`{argument}` gives a {type(value).__name__}, not a tensor")
    return value


def as_classes(target: Tensor) -> Tensor:
    """Class numbers of a target that was named: integers, whole floats or one-hot rows."""
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim == 2 and target.shape[1] > 1 and _is_one_hot(target):
        return target.argmax(1)
    if target.is_floating_point():
        if bool((target[torch.isfinite(target)] % 1 != 0).any()):
            raise NoLabelsError("the named labels are not whole numbers")
        target = torch.where(torch.isfinite(target), target, -1.0)
    return target.long()


def fields_of(batch: Any) -> dict[str, Any]:
    """The named fields of a mapping, named tuple, dataclass or plain object."""
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items()}
    if hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if dataclasses.is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if isinstance(batch, (Tensor, Sequence)):
        return {}
    return dict(getattr(batch, "__dict__", {}))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of nested containers, in order."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield value
        return
    items = fields_of(value).values() or (value if isinstance(value, (list, tuple)) else ())
    for item in items:
        yield from tensors_of(item)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of a module's output, whatever it is wrapped in."""
    return next((tensor for tensor in tensors_of(value) if tensor.is_floating_point()), None)


def locate_labels(batch: Any) -> Path:
    """Return where the labels of a batch are, or raise the sentence that says why nowhere."""
    fields = fields_of(batch)
    if fields:
        return (_search_fields(fields),)
    if isinstance(batch, Tensor) or not isinstance(batch, (list, tuple)):
        raise NoLabelsError("a batch holds no labels")
    return _search_sequence(batch)


def _search_fields(fields: Mapping[str, Any]) -> str:
    by_name = {name.lower(): name for name, value in fields.items() if isinstance(value, Tensor)}
    named = [by_name[name] for name in NAMES if name in by_name]
    usable = [name for name in named if _looks_like_labels(fields[name])]
    if usable:
        return usable[0]
    if named:
        raise NoLabelsError(f"{named[0]!r} of a batch holds no class numbers")
    raise NoLabelsError("a batch has no field with a usual name for labels")


def _search_sequence(batch: Sequence[Any]) -> Path:
    """``(x, y)``; or the only element after the first that can be labels."""
    if len(batch) == 2 and not isinstance(batch[1], Tensor):
        return (1, *locate_labels(batch[1]))
    tensors = {place: item for place, item in enumerate(batch) if isinstance(item, Tensor)}
    candidates = [place for place in tensors if place > 0 and _looks_like_labels(tensors[place])]
    if 1 in tensors and 1 not in candidates and tensors[1].ndim <= 2 and _is_target(tensors[1]):
        raise NoLabelsError("the second element of a batch holds no class numbers")
    for suspect in (_counts_up, _is_all_distinct):
        if len(candidates) > 1:
            candidates = [p for p in candidates if not suspect(tensors[p])] or candidates
    if len(candidates) == 1:
        return (candidates[0],)
    if candidates:
        raise NoLabelsError(
            "more than one element of a batch could be the labels; name one by `labels`"
        )
    raise NoLabelsError("a batch holds no labels")


def _looks_like_labels(target: Tensor) -> bool:
    """Integers, one a sample or a position, or one-hot rows; never other floats."""
    if target.ndim == 0 or target.is_complex():
        return False
    if target.ndim == 2 and target.shape[1] > 1 and _is_one_hot(target):
        return True
    if target.is_floating_point():
        return False
    several = target.ndim > 1 and target[0].numel() > 1
    return not (several and bool(((target == 0) | (target == 1)).all()) and target.ndim == 2)


def _is_target(tensor: Tensor) -> bool:
    """Whether what is no label is a target all the same, and not a mask or a second input."""
    return tensor.is_floating_point() or (tensor.ndim == 2 and tensor.dtype != torch.bool)


def _counts_up(target: Tensor) -> bool:
    """Whether numbers go up or down in equal steps, as indices do."""
    if target.ndim > 1 or len(target) < 2:
        return False
    steps = target.long().diff()
    return int(steps[0]) != 0 and bool((steps == steps[0]).all())


def _is_all_distinct(target: Tensor) -> bool:
    return target.ndim == 1 and len(target) >= 8 and len(set(target.tolist())) == len(target)


def _is_one_hot(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) == 1).all())


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
