"""The MODEL of a command line: a timm name, a callable of the user, or a block with options."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import timm
import yaml
from torch import nn

from lightning_depth.blocks import list_blocks
from lightning_depth.errors import ConfigurationError, check_count, check_name, closest, invalid
from lightning_depth.networks import build_convnet, build_mlp

__all__ = ["Architecture", "find_model"]

_CLASSES = 10
_OWN_KEYS = ("depth", "hidden_layers", "width", "stem", "stem_width")


class Architecture(Protocol):
    """Builds a network, at a width where the command line left it open."""

    def __call__(self, width: int | None = None) -> nn.Module:
        """Return the network.

        Args:
            width: Width for a block with options; None takes the one that was written.
        """
        ...


def find_model(text: str, input_shape: tuple[int, ...], num_classes: int | None) -> Architecture:
    """Return what builds the model that a command line names.

    Args:
        text: A timm name, ``module:callable``, or ``block:key=value,...``.
        input_shape: Shape of one sample without the batch.
        num_classes: Number of classes; None for the model's own.

    Returns:
        A function that builds it.

    Raises:
        ConfigurationError: There is no such model, or an option is wrong.
    """
    name, colon, rest = text.partition(":")
    if "=" in rest:
        block = check_name("block", name, list_blocks())
        return partial(_build_ours, block, _read_options(rest), input_shape, num_classes)
    if colon:
        return partial(_build_own, text, name, rest)
    return partial(_build_timm, name, num_classes)


def _read_options(text: str) -> dict[str, Any]:
    pairs = [part.partition("=") for part in text.split(",")]
    for key, equals, value in pairs:
        if not (key.strip() and equals and value.strip()):
            raise invalid("MODEL", "block:key=value,key=value", text)
    return {key.strip(): yaml.safe_load(value) for key, _, value in pairs}


def _build_ours(
    block: str,
    options: Mapping[str, Any],
    input_shape: tuple[int, ...],
    num_classes: int | None,
    width: int | None = None,
) -> nn.Module:
    stated = {key: options[key] for key in options if key in _OWN_KEYS}
    block_options = {key: options[key] for key in options if key not in _OWN_KEYS}
    if ("depth" in stated) == ("hidden_layers" in stated):
        raise ConfigurationError(
            "MODEL needs either depth (convolutional) or hidden_layers (MLP), as in "
            "'plain:depth=20,width=16'."
        )
    if width is None and "width" not in stated:
        raise ConfigurationError("MODEL needs a width, or give --like or --target to find one.")
    stated["width"] = check_count("width", width or stated["width"])
    classes = num_classes or _CLASSES
    if "hidden_layers" in stated:
        features = math.prod(input_shape)
        return build_mlp(
            block,
            num_classes=classes,
            in_features=features,
            block_options=block_options,
            **_without(stated, ("stem", "stem_width")),
        )
    return build_convnet(
        block,
        num_classes=classes,
        in_channels=input_shape[0],
        block_options=block_options,
        **stated,
    )


def _without(options: Mapping[str, Any], unfit: tuple[str, ...]) -> dict[str, Any]:
    for key in unfit:
        if key in options:
            raise ConfigurationError(f"{key!r} belongs to a network with depth, not to an MLP.")
    return dict(options)


def _build_own(text: str, module_name: str, name: str, width: int | None = None) -> nn.Module:
    _refuse_width(width, text)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(f"The module of {text!r} cannot be imported: {error}.") from error
    if not callable(build := getattr(module, name, None)):
        near = closest(name, vars(module), count=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"Module {module_name!r} has no callable {name!r}.{hint}")
    model = build()
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"{text!r} must return a torch.nn.Module, but returned {type(model).__name__}."
        )
    return model


def _build_timm(name: str, num_classes: int | None, width: int | None = None) -> nn.Module:
    _refuse_width(width, name)
    check_name("model", name, _timm_names(name))
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    model: nn.Module = timm.create_model(name, **classes)
    return model


def _timm_names(name: str) -> list[str]:
    """Return the names worth showing: all if the name is right, else the nearest few of 1,300."""
    names = [*timm.list_models(), *list_blocks()]
    return names if name in names else closest(name, names, count=8)


def _refuse_width(width: int | None, text: str) -> None:
    if width is not None:
        raise ConfigurationError(
            f"{text!r} has no width to search; write MODEL as a block with its options, as in "
            "'plain:depth=20'."
        )
