"""Cutting a tree of parts into blocks, or into leaves where nothing repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_depth.layers._names import WRAPPERS, Layer, Role
from lightning_depth.layers._tree import Part, own_parameters

__all__ = ["cut_blocks", "cut_leaves"]

_NAMESAKES = 3
"""Attributes of one class that make blocks in a model in whose containers nothing repeats."""
_CHAIN = 4
"""Single modules of one class that make a Sequential more than a stem or a head."""


def cut_leaves(root: Part) -> list[Layer]:
    """Take every module that owns weights."""
    return [
        _layer(part.own() if _is_frame(part, root) else part, "leaf")
        for part in root.walk()
        if part.owns_weights
    ]


def _is_frame(part: Part, root: Part) -> bool:
    """Whether the output of a part is that of the layers in it, so that it has none of its own."""
    return not part.hands_on or any(
        part is root or inner.container for inner in part.walk() if inner is not part
    )


def cut_blocks(root: Part) -> list[Layer]:
    """Cut the tree into blocks and what lies around them; empty where nothing repeats."""
    return _cut_around(root, _block_kinds(root)) or _cut_around(root, _attribute_kinds(root))


def _cut_around(root: Part, kinds: set[type[nn.Module]]) -> list[Layer]:
    openers = _members_beside_stages(root, kinds)
    found = list(_cut(root, kinds, openers))
    places = [place for place, part in enumerate(found) if _is_block(part, kinds)]
    if not places:
        return []
    first, last = places[0], places[-1]
    while first and id(found[first - 1]) in openers:
        first -= 1
    siblings = openers | _members_beside_blocks(root, kinds)
    inner = found[first : last + 1]
    return [
        *(_layer(part, "stem") for part in found[:first]),
        *(
            _layer(part, "block" if _is_block(part, kinds) or id(part) in siblings else "between")
            for part in inner
        ),
        *(_layer(part, "head") for part in found[last + 1 :]),
    ]


def _is_block(part: Part, kinds: set[type[nn.Module]]) -> bool:
    return part.member and part.kind in kinds


def _block_kinds(root: Part) -> set[type[nn.Module]]:
    """Classes of blocks: those that repeat as members, composite ones before single modules."""
    members: dict[type[nn.Module], list[Part]] = {}
    for part in root.walk():
        if part.member and part.hands_on and not part.container:
            members.setdefault(part.kind, []).append(part)
    repeated = {kind: parts for kind, parts in members.items() if len(parts) > 1}
    composite = {kind for kind, parts in repeated.items() if any(part.parts for part in parts)}
    return {kind for kind in composite if not _is_stage(repeated[kind])} or (
        repeated.keys() - composite
    )


def _attribute_kinds(root: Part) -> set[type[nn.Module]]:
    """Classes of blocks of a model that keeps each under a name of its own; they become members.

    Such blocks make up most of the model. A convolution with its normalisation is none.
    """
    held: dict[type[nn.Module], list[Part]] = {}
    for part in root.walk():
        plain = part is not root and part.hands_on and not part.container
        if plain and sum(map(_is_matrix, part.walk())) > 1:
            held.setdefault(part.kind, []).append(part)
    repeated = {kind: parts for kind, parts in held.items() if len(parts) > 1}
    blocks = {
        kind: parts
        for kind, parts in repeated.items()
        if not any(_holds_two(part, repeated.keys()) for part in parts)
    }
    members = [part for parts in blocks.values() for part in parts]
    most = max(map(len, blocks.values()), default=0)
    if most < _NAMESAKES or 2 * sum(map(_size, members)) < _size(root):
        return set()
    for part in members:
        part.member = True
    return set(blocks)


def _size(part: Part) -> int:
    return sum(0 if is_lazy(weight) else weight.numel() for weight in part.module.parameters())


def _is_matrix(part: Part) -> bool:
    return part.owns_weights and any(
        is_lazy(parameter) or parameter.ndim > 1 for _, parameter in own_parameters(part.module)
    )


def _holds_two(part: Part, kinds: Collection[type[nn.Module]]) -> bool:
    counts = Counter(inner.kind for inner in part.walk() if inner is not part)
    return any(counts[kind] > 1 for kind in kinds)


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


def _cut(part: Part, kinds: set[type[nn.Module]], openers: set[int]) -> Iterator[Part]:
    """What a part owns itself, then the outermost parts in it that are blocks or hold none."""
    if part.owns_weights:
        yield part.own()
    for child in part.parts:
        if not _is_block(child, kinds) and _is_opened(child, kinds, openers):
            yield from _cut(child, kinds, openers)
        else:
            yield child


def _is_opened(part: Part, kinds: set[type[nn.Module]], openers: set[int]) -> bool:
    """Whether a part is cut further; what the user made one module stays one where it is short."""
    return (
        not part.hands_on
        or _holds_blocks(part, kinds)
        or any(id(inner) in openers for inner in part.parts)
        or any(_is_chain(box) for box in part.walk())
    )


def _is_chain(box: Part) -> bool:
    """Whether it is a network of its own, such as a discriminator beside a residual generator."""
    counts = Counter(part.kind for part in box.parts if not part.parts)
    return issubclass(box.kind, nn.Sequential) and max(counts.values(), default=0) >= _CHAIN


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
    name = part.path if set(part.path.split(".")) - {"", *WRAPPERS} else part.kind.__name__
    owned = [] if part.has_output else [name for name, _ in own_parameters(part.module)]
    if len(owned) == 1:  # such as a class token: its own name says more than the module's
        name = f"{part.path}.{owned[0]}" if part.path else owned[0]
    return Layer(name, 0, part.module, role, part.has_output)
