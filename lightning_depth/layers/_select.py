"""Choosing the layers of a model and dividing its parameters among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import Parameter

from lightning_depth.errors import ConfigurationError, check_choice, closest, invalid
from lightning_depth.layers._blocks import cut_blocks, cut_leaves
from lightning_depth.layers._names import Granularity, Layer, clean_name
from lightning_depth.layers._order import number_layers
from lightning_depth.layers._tree import read_parts

__all__ = ["layer_parameters", "select_layers"]


def select_layers(
    model: nn.Module,
    granularity: Granularity = "block",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[Layer]:
    """Return the layers of a model in order of registration.

    A block is the outermost module whose class occurs at least twice among the members of
    ``Sequential``, ``ModuleList`` and ``ModuleDict`` and which does not itself hold such a
    repetition; where no composite class repeats, single modules that repeat are the blocks, and
    where nothing repeats every module that owns weights is a layer. Metrics, losses and frozen
    copies of a trained network are no layers.

    Args:
        model: Any module; it is not touched.
        granularity: "block" for blocks with what comes before and after them, "leaf" for every
            module that owns weights.
        include: Glob patterns (``*`` also matches dots) of which a layer's name must match one;
            all layers by default.
        exclude: Glob patterns of which a layer's name must match none.

    Returns:
        The layers, numbered from 1 in their order.

    Raises:
        ConfigurationError: A pattern matches no layer, or no layer is left.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
        >>> [layer.name for layer in select_layers(net)]
        ['0', '2']
    """
    check_choice("granularity", granularity, ("block", "leaf"))
    root = read_parts(model)
    layers = cut_leaves(root) if granularity == "leaf" else cut_blocks(root) or cut_leaves(root)
    return number_layers(_filter(_with_clean_names(layers), include, exclude))


def layer_parameters(layers: Iterable[Layer]) -> dict[str, list[tuple[str, Parameter]]]:
    """Return the parameters of each layer, every parameter once.

    A parameter belongs to the innermost layer that holds it; one that several layers share
    belongs to the first.

    Args:
        layers: What ``select_layers`` returned.

    Returns:
        For each layer's name its parameters with their full clean names.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
        >>> layer_parameters(select_layers(net))["1"][0][0]
        '1.weight'
    """
    layers = list(layers)
    modules = {id(layer.module) for layer in layers}
    taken: set[int] = set()
    found: dict[str, list[tuple[str, Parameter]]] = {}
    for layer in layers:
        others = modules - {id(layer.module)}
        found[layer.name] = [
            (f"{layer.name}.{clean_name(name)}", parameter)
            for name, parameter in _own_parameters(layer.module, others)
            if id(parameter) not in taken
        ]
        taken.update(id(parameter) for _, parameter in found[layer.name])
    return found


def _with_clean_names(layers: list[Layer]) -> list[Layer]:
    counts = Counter(clean_name(layer.name) for layer in layers)
    return [
        replace(layer, name=name)
        if (name := clean_name(layer.name)) and counts[name] == 1
        else layer
        for layer in layers
    ]


def _filter(
    layers: list[Layer],
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> list[Layer]:
    names = [layer.name for layer in layers]
    wanted = _matches("include", include, names) if include is not None else set(names)
    unwanted = _matches("exclude", exclude, names) if exclude is not None else set()
    chosen = [layer for layer in layers if layer.name in wanted - unwanted]
    if layers and not wanted:
        raise invalid("include", "at least one pattern", include)
    if layers and not chosen:
        raise invalid("exclude", "a choice that leaves at least one layer", exclude)
    return chosen


def _matches(argument: str, patterns: str | Sequence[str], names: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            near = closest(pattern, names) or names[:3]
            raise ConfigurationError(
                f"`{argument}` must hold patterns that match a layer, but {pattern!r} matches "
                f"none; nearest: {', '.join(near) or 'the model has no layers'}."
            )
        found |= matched
    return found


def _own_parameters(module: nn.Module, others: set[int]) -> Iterator[tuple[str, Parameter]]:
    """The parameters of a module without those of other layers within it."""
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if id(child) not in others:
            for path, parameter in _own_parameters(child, others):
                yield f"{name}.{path}", parameter
