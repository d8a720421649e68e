"""Cutting a tree of parts into blocks, or into leaves where nothing repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from lightning_depth.layers._names import Layer, Role
from lightning_depth.layers._tree import Part

__all__ = ["cut_blocks", "cut_leaves"]


def cut_leaves(root: Part) -> list[Layer]:
    """Take every module that owns weights."""
    parts = [part for part in root.walk() if part.owns_weights]
    if len(parts) > 1 and parts[0] is root:
        parts = parts[1:]  # a model's own tokens and scales: watching the root is watching all
    return [_layer(part, "leaf") for part in parts]


def cut_blocks(root: Part) -> list[Layer]:
    """Cut the tree into blocks with what precedes and follows them; empty where nothing repeats."""
    kinds = _block_kinds(root)
    found = list(_cut(root, kinds))
    places = [place for place, part in enumerate(found) if _is_block(part, kinds)]
    if not places:
        return []
    first, last = places[0], places[-1]
    openers = _members_beside_stages(root, kinds)
    while first and id(found[first - 1]) in openers:
        first -= 1
    siblings = openers | _members_beside_blocks(root, kinds)
    inner = found[first : last + 1]
    return [
        *(_layer(part, "stem") for part in found[:first]),
        *(
            _layer(part, "block")
            for part in inner
            if _is_block(part, kinds) or id(part) in siblings
        ),
        *(_layer(part, "head") for part in found[last + 1 :]),
    ]


def _is_block(part: Part, kinds: set[type[nn.Module]]) -> bool:
    return part.member and part.kind in kinds


def _block_kinds(root: Part) -> set[type[nn.Module]]:
    """Classes of blocks: those that repeat as members, composite ones before single modules."""
    members: dict[type[nn.Module], list[Part]] = {}
    for part in root.walk():
        if part.member and not part.container:
            members.setdefault(part.kind, []).append(part)
    repeated = {kind: parts for kind, parts in members.items() if len(parts) > 1}
    composite = {kind for kind, parts in repeated.items() if any(part.parts for part in parts)}
    return {kind for kind in composite if not _is_stage(repeated[kind])} or (
        repeated.keys() - composite
    )


def _is_stage(parts: list[Part]) -> bool:
    """Whether the parts of one class hold the blocks instead of being blocks.

    They do where they hold a repetition of composite modules. Single modules that repeat make no
    stage: a residual branch is often a Sequential of two convolutions, and a transformer's MLP one
    of two linear layers.
    """
    return any(_repeats_composites(box) for part in parts for box in part.containers())


def _repeats_composites(box: Part) -> bool:
    counts = Counter(part.kind for part in box.parts if part.parts and not part.container)
    return any(count > 1 for count in counts.values())


def _cut(part: Part, kinds: set[type[nn.Module]]) -> Iterator[Part]:
    """The outermost parts that are blocks or hold none, in order of registration."""
    for child in part.parts:
        if _is_block(child, kinds) or not (child.container or _holds_blocks(child, kinds)):
            yield child
        else:
            yield from _cut(child, kinds)


def _holds_blocks(part: Part, kinds: set[type[nn.Module]]) -> bool:
    return any(_is_block(inner, kinds) for inner in part.walk() if inner is not part)


def _members_beside_blocks(root: Part, kinds: set[type[nn.Module]]) -> set[int]:
    """Ids of what shares a container with blocks, such as a convolution that downsamples."""
    boxes = [box for box in root.walk() if box.container]
    return {
        id(part)
        for box in boxes
        if any(_is_block(member, kinds) for member in box.parts)
        for part in box.parts
    }


def _members_beside_stages(root: Part, kinds: set[type[nn.Module]]) -> set[int]:
    """Ids of members of containers that stand beside containers with blocks in them.

    MobileNetV2 and EfficientNet open with a stage of one block, the only one of its class.
    """
    found: set[int] = set()
    for box in root.walk():
        stages = [part for part in box.parts if part.container] if box.container else []
        if any(_holds_blocks(stage, kinds) for stage in stages):
            found.update(id(part) for stage in stages for part in stage.parts if part.parts)
    return found


def _layer(part: Part, role: Role) -> Layer:
    return Layer(part.path or type(part.module).__name__, 0, part.module, role)
