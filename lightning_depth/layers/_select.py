"""Choosing the layers of a model and dividing its parameters among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import Parameter, is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_depth.errors import ConfigurationError, check_choice, closest, invalid
from lightning_depth.layers._blocks import cut_blocks, cut_leaves
from lightning_depth.layers._names import Granularity, Layer, clean_name
from lightning_depth.layers._order import number_layers
from lightning_depth.layers._tree import (
    own_parameters,
    read_parts,
    trained_parameters,
    unwrap,
)

__all__ = ["layer_parameters", "select_layers", "unwatched_parameters", "watched_share"]


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
    where nothing repeats every module that owns weights is a layer.

    Every trained parameter belongs to a layer. What has weights before, between and after the
    blocks is one: a module as the user made it, be it a Sequential, unless that holds four or
    more single modules of one class. What a model or a module around the layers owns itself, such
    as a class token, a position embedding or a scale, is a layer without an output, named by
    the one parameter or else by the module. Metrics, losses that train nothing, averaged and
    frozen copies of a trained network are no layers.

    Args:
        model: Any module; it is not touched.
        granularity: "block" for blocks with what comes before, between and after them, "leaf"
            for every module that owns weights.
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
            (name, parameter)
            for name, parameter in _named(layer, others)
            if id(parameter) not in taken
        ]
        taken.update(id(parameter) for _, parameter in found[layer.name])
    return found


def unwatched_parameters(model: nn.Module, layers: Iterable[Layer]) -> list[str]:
    """Return the names of the trained parameters that belong to no layer.

    By default there are none: they come of ``include`` and ``exclude``, or of modules that were
    added after the layers were chosen. Metrics and averaged copies of a network do not count.

    Args:
        model: The model to which the layers belong.
        layers: What ``select_layers`` returned.

    Returns:
        Full clean names in order of registration.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8, bias=False))
        >>> unwatched_parameters(net, select_layers(net, include="0"))
        ['1.weight']
    """
    watched = _watched(layers)
    trained = trained_parameters(model)
    return [name for name, parameter in trained.items() if id(parameter) not in watched]


def watched_share(model: nn.Module, layers: Iterable[Layer]) -> float:
    """Return the share of the trained weights that belong to the given layers.

    Args:
        model: The model to which the layers belong.
        layers: What ``select_layers`` returned.

    Returns:
        1.0 where no parameter is left out, also of a model that trains none.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False))
        >>> watched_share(net, select_layers(net, include="0"))
        0.5
    """
    watched = _watched(layers)
    sizes = {
        id(parameter): 0 if is_lazy(parameter) else parameter.numel()
        for parameter in trained_parameters(model).values()
    }
    total = sum(sizes.values())
    return sum(sizes[key] for key in sizes.keys() & watched) / total if total else 1.0


def _watched(layers: Iterable[Layer]) -> set[int]:
    return {id(parameter) for owned in layer_parameters(layers).values() for _, parameter in owned}


def _named(layer: Layer, others: set[int]) -> list[tuple[str, Parameter]]:
    """The parameters of a layer with their full clean names."""
    if layer.has_output:
        inner = list(_without(layer.module, others))
    else:
        inner = list(own_parameters(layer.module))
        if len(inner) == 1:  # the layer has the parameter's name
            return [(clean_name(layer.name), inner[0][1])]
    is_model = layer.name == type_before_parametrizations(unwrap(layer.module)).__name__
    prefix = "" if is_model else f"{layer.name}."
    return [(prefix + clean_name(name), parameter) for name, parameter in inner]


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


def _without(module: nn.Module, others: set[int]) -> Iterator[tuple[str, Parameter]]:
    """The parameters of a module without those of other layers within it."""
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if id(child) not in others:
            for path, parameter in _without(child, others):
                yield f"{name}.{path}", parameter
