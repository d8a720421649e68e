"""Where the labels of a batch are, and whether they are surely labels.

Nothing is guessed that could be wrong in silence. Float targets, indices and group ids are never
taken for labels; where two tensors could be meant, one sentence asks for the name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor

__all__ = [
    "INPUT_NAMES",
    "LABEL_NAMES",
    "Form",
    "NoLabelsError",
    "Path",
    "decide_form",
    "fields_of",
    "is_one_hot",
    "is_plain",
    "locate_labels",
    "walk",
    "without_channel",
]

Path = tuple[str | int, ...]
Form = Literal["classes", "one-hot", "positions"]
Kind = Literal["labels", "indices", "target", "values", "mask", "other"]

LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class", "classes", "class_id",
               "class_idx", "class_label", "label_ids", "category")  # fmt: skip
INPUT_NAMES = ("image", "images", "img", "imgs", "pixel_values", "x", "input", "inputs", "feature",
               "features", "input_ids", "input_values", "input_features", "ids", "tokens", "audio",
               "waveform", "signal", "data")  # fmt: skip
SAID = {"classes": "one a sample", "one-hot": "one-hot rows", "positions": "one a position"}
MIN_INDICES = 4  # numbers in equal steps that are surely no chance
NO_CLASSES = "the second element of a batch holds no class numbers"
UNSURE = "no element of a batch is surely the labels; name one by `labels`"
SEVERAL = "more than one element of a batch could be the labels; name one by `labels`"


class NoLabelsError(Exception):
    """Why a batch has no labels, as a sentence."""


def fields_of(batch: Any) -> dict[str, Any]:
    """The named fields of a mapping, named tuple, dataclass or plain object."""
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items()}
    if isinstance(batch, (type, ModuleType)):
        return {}
    if hasattr(batch, "_asdict"):
        return dict(batch._asdict())
    if dataclasses.is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if isinstance(batch, (Tensor, Sequence)):
        return {}
    return dict(getattr(batch, "__dict__", {}))


def walk(
    value: Any, path: Path = (), seen: dict[int, Any] | None = None
) -> Iterator[tuple[Path, Tensor]]:
    """All tensors of nested containers but single numbers, in order, with where they are."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield path, value
        return
    seen = {} if seen is None else seen
    if id(value) in seen:  # objects may refer to each other
        return
    seen[id(value)] = value
    steps: Iterator[tuple[str | int, Any]] = iter(fields_of(value).items())
    if isinstance(value, (list, tuple)) and not hasattr(value, "_asdict"):
        steps = iter(enumerate(value))
    for step, item in steps:
        yield from walk(item, (*path, step), seen)


def is_plain(tensor: Tensor) -> bool:
    """Whether torch can compute with the values of a tensor as they stand, and order them."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_meta:
        return False
    tiny = tensor.is_floating_point() and tensor.element_size() == 1  # torch has no % for these
    return not (tensor.is_quantized or tensor.is_complex() or tiny)


def is_one_hot(target: Tensor) -> bool:
    """Whether each row of ``(B, C)`` has one 1 among zeros."""
    if target.ndim != 2 or target.shape[1] < 2:
        return False
    return _is_binary(target) and bool(((target == 1).sum(1) == 1).all())


def without_channel(target: Tensor, source: Tensor | None) -> Tensor:
    """Masks ``(B, 1, H, W)`` of pictures ``(B, C, H, W)`` as ``(B, H, W)``."""
    if source is None or target.ndim < 3 or target.shape[1] != 1:
        return target
    return target[:, 0] if target.shape[2:] in (source.shape[2:], source.shape[1:]) else target


def decide_form(
    target: Tensor,
    source: Tensor | None,
    others: Sequence[Tensor],
    known: Path,
    *,
    at_its_word: bool,
) -> Form:
    """Whether labels are class numbers, one-hot rows or one a position; the first batch decides.

    Args:
        target: The labels.
        source: The input of the batch.
        others: All other tensors of the batch.
        known: What an earlier batch decided, empty before.
        at_its_word: Whether a callable gave them: its shape is what is meant.
    """
    form = cast("Form", known[0]) if known else _first_form(target, others, at_its_word)
    fits = {
        "classes": target.ndim == 1 or (target.ndim == 2 and target.shape[1] == 1),
        "one-hot": form == "one-hot" and is_one_hot(target),
        "positions": target.ndim > 1 and (at_its_word or _has_grid(target, source, strict=False)),
    }
    if fits[form]:
        return form
    if known:
        raise NoLabelsError(f"the labels were {SAID[form]} in an earlier batch and no longer are")
    raise NoLabelsError(
        "the labels are several numbers a sample and the input has no such positions; "
        "a callable as `labels` can return class numbers or labels of positions"
    )


def _first_form(target: Tensor, others: Sequence[Tensor], at_its_word: bool) -> Form:
    if target.ndim == 1 or (target.ndim == 2 and target.shape[1] == 1):
        return "classes"
    if not is_one_hot(target):
        return "positions"
    if not any(_has_grid(target, other, strict=False) for other in others):
        return "one-hot"
    if at_its_word:
        return "positions"
    raise NoLabelsError(
        "the labels could be one-hot rows or one a position; a callable as `labels` can return "
        "class numbers (`argmax(1)`) or labels of positions"
    )


def locate_labels(batch: Any) -> Path:
    """Return where the labels of a batch are, or raise the sentence that says why nowhere."""
    return _search(batch, batch)


def _search(part: Any, batch: Any, first: int = 1) -> Path:
    fields = fields_of(part)
    if fields:
        return (_search_fields(fields, batch),)
    if isinstance(part, Tensor) or not isinstance(part, (list, tuple)):
        raise NoLabelsError("a batch holds no labels")
    if first and len(part) == 2 and not isinstance(part[1], Tensor):
        if _holds_input(part[1]) or _is_batch(part[0]):  # batches of several loaders
            raise NoLabelsError(SEVERAL)
        return (1, *_search(part[1], batch, first=0))
    return (_search_sequence(part, batch, first),)


def _holds_input(part: Any) -> bool:
    return any(name.lower() in INPUT_NAMES for name in fields_of(part))


def _is_batch(part: Any) -> bool:
    try:
        return bool(locate_labels(part))
    except NoLabelsError:
        return False


def _search_fields(fields: Mapping[str, Any], batch: Any) -> str:
    by_name = {name.lower(): name for name, value in fields.items() if isinstance(value, Tensor)}
    named = [by_name[name] for name in LABEL_NAMES if name in by_name]
    if not named:
        raise NoLabelsError(
            "a batch has no field with a usual name for labels; name one by `labels`"
        )
    if len(named) > 1:
        known = ", ".join(map(repr, named))
        raise NoLabelsError(f"more than one field of a batch could be the labels ({known}); "
                            "name one by `labels`")  # fmt: skip
    target = fields[named[0]]
    if not (target.ndim and is_plain(target)) or (
        target.is_floating_point() and not is_one_hot(target)
    ):
        raise NoLabelsError(f"{named[0]!r} of a batch holds no class numbers")
    return named[0]


def _search_sequence(batch: Sequence[Any], whole: Any, first: int) -> int:
    """``(x, y)``; or the only element that can be labels where no other can be a target."""
    others = [tensor for _, tensor in walk(whole) if is_plain(tensor)]
    kinds = {
        place: _kind_of(item, others, aside=first == 0)
        for place, item in enumerate(batch)
        if place >= first
    }
    labels = [place for place, kind in kinds.items() if kind == "labels"]
    indices = [place for place, kind in kinds.items() if kind == "indices"]
    found = set(kinds.values())
    if not found & {"target", "values"} and len(labels or indices) == 1:
        return (labels or indices)[0]
    if labels or len(indices) > 1:
        raise NoLabelsError(SEVERAL)
    if "target" in found or "mask" in found:
        raise NoLabelsError(UNSURE)
    raise NoLabelsError(NO_CLASSES if kinds.get(1) == "values" else "a batch holds no labels")


def _kind_of(item: Any, tensors: Sequence[Tensor], *, aside: bool) -> Kind:
    """What an element of a batch is.

    A "target" could be one and is not surely labels, "values" surely are no class numbers.
    """
    if not isinstance(item, Tensor):
        return "other" if next(walk(item), None) is None else "target"
    if not item.ndim:
        return "other"
    if not is_plain(item):
        return "target"
    others = [tensor for tensor in tensors if tensor is not item]
    if _is_label(item, others):
        return "indices" if _counts_up(item) else "labels"
    if item.is_floating_point():
        if item.ndim > 2 and not aside:
            return "other"  # a second view
        return "target" if item.ndim == 1 and bool((item % 1 == 0).all()) else "values"
    if not (item.ndim == 2 and _is_binary(item)):
        return "target"
    if not any(_has_grid(item, other, strict=False) for other in others):
        return "values"
    return "mask" if _is_mask(item) else "target"


def _is_label(target: Tensor, others: Sequence[Tensor]) -> bool:
    """Integers, one a sample or a position of the input, or one-hot rows; never other floats."""
    if is_one_hot(target):
        return not any(_has_grid(target, other, strict=False) for other in others)
    if target.is_floating_point():
        return False
    if target.ndim == 1 or (target.ndim == 2 and target.shape[1] == 1):
        return True
    if target.ndim == 2 and _is_binary(target):
        return False
    source = others[0] if others else None
    return _has_grid(target, source, strict=True)


def _is_mask(target: Tensor) -> bool:
    """Whether rows of zeros and ones mask: booleans, or padding, which is at one end of a row."""
    steps = target.long().diff(dim=1)
    padded = bool(((steps >= 0).all(1) | (steps <= 0).all(1)).all())
    return target.dtype == torch.bool or padded


def _has_grid(target: Tensor, source: Tensor | None, *, strict: bool) -> bool:
    """Whether an input has the positions of labels: ``(B, T, F)``, ``(B, C, H, W)``, tokens.

    Args:
        target: Labels ``(B, ...)``.
        source: The input.
        strict: Whether only what is hardly chance counts: features ``(B, F)`` have no positions.
    """
    if source is None:
        return False
    target = without_channel(target, source)
    grid, sizes = target.shape[1:], source.shape[1:]
    if len(source) != len(target):
        return False
    if len(sizes) == len(grid) + 1:
        return sizes[:-1] == grid or (sizes[1:] == grid and not (strict and len(grid) == 1))
    surely = source.ndim == 3 or not source.is_floating_point()
    return sizes == grid and (not strict or (surely and len(grid) < 3))


def _is_binary(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all())


def _counts_up(target: Tensor) -> bool:
    """Whether numbers go up or down in equal steps, as indices do."""
    if target.ndim > 1 or len(target) < MIN_INDICES:
        return False
    steps = target.long().diff()
    return int(steps[0]) != 0 and bool((steps == steps[0]).all())
