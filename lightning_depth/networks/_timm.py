"""How a preset becomes a model of timm: importing the module that lists it is the registration.

Nothing is built here; the names and configurations go into timm's registry, the network is
assembled when `timm.create_model` asks for it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from timm.models._builder import build_model_with_cfg
from timm.models._registry import (
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import nn

__all__ = ["Preset", "image_config", "like_timm", "register_presets"]

KeyMap = Callable[[Mapping[str, Any], Any], dict[str, Any]]
NAMES: dict[str, Any] = {"first_conv": "stem.conv", "classifier": "head.fc"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
UNIT = {"mean": 0.5, "std": 0.5}


@dataclass(frozen=True)
class Preset:
    """A network that has a name: a builder, its arguments, and what timm wants to know.

    Args:
        build: Called with ``num_classes``, ``in_channels``, the options, and what the caller of
            `timm.create_model` changes among them.
        options: Arguments of the builder.
        config: Entries of timm's pretrained configuration.
        levels: Feature maps that ``features_only`` returns by default.
        key_map: Renames the weights of timm's or torchvision's network of the same shape.
    """

    build: Callable[..., nn.Module]
    options: Mapping[str, Any]
    config: Any
    levels: int = 5
    key_map: KeyMap | None = None


def image_config(size: int, pooled: int, num_classes: int, channels: int = 3) -> dict[str, Any]:
    """Return the configuration of a network without published weights."""
    statistics = (
        IMAGENET if size > 100 else {key: (value,) * channels for key, value in UNIT.items()}
    )
    return {
        "input_size": (channels, size, size),
        "pool_size": (pooled, pooled),
        "num_classes": num_classes,
        "interpolation": "bicubic",
        **statistics,
        **NAMES,
    }


def like_timm(name: str) -> Any:
    """Return timm's configuration of a network that is also ours, weights included."""
    known = get_pretrained_cfg(name)
    if known is None:  # a timm that does not have it yet, or no longer
        return image_config(224, 7, 1000)
    return dataclasses.replace(known, architecture=None, tag=None, **NAMES)


def register_presets(module_name: str, presets: Mapping[str, Preset]) -> None:
    """Register every preset of a module with timm, under the name it has in the table."""
    module = sys.modules[module_name]
    configs = {name: preset.config for name, preset in presets.items()}
    module.default_cfgs = generate_default_cfgs(configs)  # type: ignore[attr-defined]
    for name, preset in presets.items():
        entry = _entry_point(name, preset)
        entry.__name__ = entry.__qualname__ = name
        entry.__module__ = module_name
        setattr(module, name, register_model(entry))


def _entry_point(name: str, preset: Preset) -> Callable[..., nn.Module]:
    def build(in_chans: int = 3, **changes: Any) -> nn.Module:
        return preset.build(in_channels=in_chans, **{**preset.options, **changes})

    def create(pretrained: bool = False, **changes: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            build,
            name,
            pretrained,
            pretrained_filter_fn=preset.key_map,
            feature_cfg={"out_indices": tuple(range(preset.levels)), "flatten_sequential": True},
            **changes,
        )
        return model

    create.__doc__ = f"Return {name}, as `timm.create_model` asks for it."
    return create
