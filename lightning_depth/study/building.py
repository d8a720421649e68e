"""Building the parts of a trial from what a recipe states, with file and key in every refusal."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from lightning_depth import callbacks as callback_room
from lightning_depth import data as data_room
from lightning_depth import modules as module_room
from lightning_depth.blocks import list_blocks
from lightning_depth.errors import ConfigurationError, check_name, closest
from lightning_depth.networks import build_convnet, build_mlp
from lightning_depth.study._reading import Place

__all__ = [
    "build_callbacks",
    "build_data",
    "build_network",
    "build_optimizer",
    "build_scheduler",
    "import_class",
]


def build_data(data: Mapping[str, Any], seed: int, place: Place) -> Any:
    """Return the data set of a recipe.

    Args:
        data: Its short name under ``name`` and its options.
        seed: Random seed of the split where the recipe gives none.
        place: Where in the recipe it stands.

    Returns:
        The LightningDataModule.
    """
    options = {"seed": seed} | {key: data[key] for key in data if key != "name"}
    with place.at("name").named():
        check_name("data set", data["name"], data_room.list_datasets())
    with place.named():
        return data_room.build_data(data["name"], **options)


def build_network(
    network: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int, place: Place
) -> nn.Module:
    """Return the network of an arm, its width being known.

    Args:
        network: What the recipe states.
        input_shape: Shape of one sample.
        num_classes: Number of classes.
        place: Where in the recipe it stands.

    Returns:
        The network.
    """
    if "class_path" in network:
        with place.at("class_path").named():
            cls = import_class(network["class_path"], nn.Module)
        built: nn.Module = _call(cls, (), network["init_args"], place.at("init_args"))
        return built
    with place.at("block").named():
        check_name("block", network["block"], list_blocks())
    try:
        return _build_ours(network, input_shape, num_classes)
    except ConfigurationError as error:
        with place.at(*_blamed(str(error), network)).named():
            raise


def _blamed(message: str, network: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the part of a network's description that an error speaks of."""
    options = network.get("block_options", {})
    words = set(re.findall(r"\w+", message))
    for key in options:
        if key in words or str(options[key]) in words:
            return ("block_options", key)
    return next(((key,) for key in network if key in words and key != "block"), ())


def _build_ours(
    network: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    block_options = dict(network.get("block_options", {}))
    if "hidden_layers" in network:
        return build_mlp(
            network["block"],
            network["hidden_layers"],
            network["width"],
            math.prod(input_shape),
            num_classes,
            block_options,
        )
    return build_convnet(
        network["block"],
        network["depth"],
        network["width"],
        num_classes,
        in_channels=input_shape[0],
        stem=network.get("stem", "cifar"),
        block_options=block_options,
        stem_width=network.get("stem_width"),
    )


def build_optimizer(optimizer: Mapping[str, Any], place: Place) -> Callable[..., Any]:
    """Return the factory of a recipe's optimizer: parameters in, optimizer out.

    Args:
        optimizer: ``class_path`` and ``init_args``.
        place: Where in the recipe it stands.

    Returns:
        The factory.
    """
    with place.named():
        factory: Callable[..., Any] = module_room.build_optimizer(
            optimizer["class_path"], **optimizer["init_args"]
        )
    return factory


def build_scheduler(scheduler: Mapping[str, Any] | None, place: Place) -> Callable[..., Any] | None:
    """Return the factory of a recipe's learning-rate scheduler, or None where it has none.

    Args:
        scheduler: ``class_path`` and ``init_args``, or None.
        place: Where in the recipe it stands.

    Returns:
        The factory.
    """
    if scheduler is None:
        return None
    with place.named():
        factory: Callable[..., Any] = module_room.build_scheduler(
            scheduler["class_path"], **scheduler["init_args"]
        )
    return factory


def build_callbacks(
    callbacks: Mapping[str, Mapping[str, Any]], place: Place
) -> dict[str, Callback]:
    """Return the callbacks of a recipe by name.

    Args:
        callbacks: Names of the package's callbacks with their options.
        place: Where in the recipe they stand.

    Returns:
        The callbacks.
    """
    classes = {
        name: value
        for name in callback_room.__all__
        if inspect.isclass(value := getattr(callback_room, name))
        and issubclass(value, Callback)
        and not inspect.isabstract(value)
        and name != "DepthCallback"
    }
    built = {}
    for name, options in callbacks.items():
        with place.named():
            check_name("callback", name, classes)
        built[name] = _call(classes[name], (), options, place.at(name))
    return built


def import_class(class_path: str, base: type) -> type:
    """Return a class by its dotted path, if it is one of the kind wanted.

    Args:
        class_path: Module and class, with dots between.
        base: What it must be a subclass of.

    Returns:
        The class.

    Raises:
        ConfigurationError: There is no such module or class, or it is of another kind.

    Example:
        >>> import_class("torch.nn.Linear", nn.Module).__name__
        'Linear'
    """
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"{class_path!r} cannot be imported: {error}. "
            f"A class of your own is found when its folder is on PYTHONPATH."
        ) from error
    if not hasattr(module, name):
        near = closest(name, vars(module), count=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"Module {module_name!r} has no class {name!r}.{hint}")
    found = getattr(module, name)
    if not inspect.isclass(found) or not issubclass(found, base):
        raise ConfigurationError(
            f"`class_path` must name a subclass of {base.__module__}.{base.__qualname__}, "
            f"but got {class_path!r}."
        )
    return found


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    place: Place,
) -> Any:
    """Call a constructor with a recipe's options; an unknown or unfit one is named."""
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names = [parameter.name for parameter in parameters][len(arguments) :]
        for key in options:
            with place.named():
                check_name("key", key, names)
    with place.named():
        try:
            return function(*arguments, **options)
        except ConfigurationError:
            raise
        except Exception as error:  # code of anyone's: whatever it raises is told with its place
            raise ConfigurationError(f"{type(error).__name__}: {error}") from error
