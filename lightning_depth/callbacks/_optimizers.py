"""What the optimizers of a run are called: by what they train, or by their class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from torch import nn
from torch.nn.parameter import Parameter

from lightning_depth.layers import clean_name

__all__ = ["name_optimizers", "parameters_of"]


def parameters_of(optimizer: Any) -> list[Parameter]:
    """Return the parameters of an optimizer, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def name_optimizers(module: nn.Module, optimizers: Sequence[Any]) -> list[str]:
    """Return one name an optimizer, each another.

    One of several is called after the part of the module that it alone trains, such as
    ``generator``. The only one, and those that share a part, have the name of their class, with a
    number where another has it too.

    Args:
        module: The module whose parameters they hold.
        optimizers: The optimizers of a run, in their order.

    Example:
        >>> from torch.optim import SGD
        >>> nets = nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(2, 2)})
        >>> name_optimizers(nets, [SGD(net.parameters()) for net in nets.values()])
        ['left', 'right']
        >>> name_optimizers(nets, [SGD(nets.parameters())])
        ['SGD']
    """
    paths = {id(p): tuple(clean_name(name).split(".")) for name, p in module.named_parameters()}
    owned = [
        [paths[id(p)] for p in parameters_of(optimizer) if id(p) in paths]
        for optimizer in optimizers
    ]
    seen: Counter[str] = Counter()
    names = []
    for place, optimizer in enumerate(optimizers):
        others = [path for other, own in enumerate(owned) if other != place for path in own]
        name = _part_of(owned[place], others) if len(optimizers) > 1 else ""
        if not name:
            kind = type(optimizer).__name__
            name = f"{kind}-{seen[kind]}" if seen[kind] else kind
            seen[kind] += 1
        names.append(name)
    return names


def _part_of(own: Sequence[tuple[str, ...]], others: Sequence[tuple[str, ...]]) -> str:
    """The outermost part that holds all parameters of one optimizer and none of another."""
    ends = zip(min(own), max(own), strict=False) if own else ()
    shared = [word for word, other in takewhile(lambda pair: pair[0] == pair[1], ends)]
    for length in range(1, len(shared) + 1):
        inside = tuple(shared[:length])
        if not any(path[:length] == inside for path in others):
            return ".".join(inside)
    return ""
