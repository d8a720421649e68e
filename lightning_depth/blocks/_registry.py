"""Blocks by name: the factory that builds them, and the door for blocks of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_depth.errors import ConfigurationError, check_name

__all__ = ["BlockFactory", "block_factory", "list_blocks", "register_block"]

GROUP = "lightning_depth.blocks"
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


@dataclass(frozen=True)
class BlockFactory:
    """Builds one kind of block at whatever width and stride a network asks for.

    Args:
        name: Name of the block, for messages.
        build: Called as ``build(in_channels, out_channels, stride, **options)``.
        options: Keyword options that every block of the network shares.

    Example:
        >>> factory = block_factory("residual", shortcut="A")
        >>> factory(16, 32, stride=2).out_channels
        32
    """

    name: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dims(self) -> int:
        """0 where the blocks take ``(B, C)``, 2 where they take images."""
        return int(self.options.get("dims", 2))

    def __call__(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        """Return a fresh block, after a check that it says how many channels it returns."""
        block = self.build(in_channels, out_channels, stride, **self.options)
        if not isinstance(getattr(block, "out_channels", None), int):
            raise ConfigurationError(
                f"Block {self.name!r} must have an attribute `out_channels` that says how many "
                f"channels it returns, but {type(block).__name__} has none."
            )
        return block

    def with_options(self, **options: Any) -> BlockFactory:
        """Return a factory of the same blocks with these options changed."""
        return replace(self, options={**self.options, **options})

    def accepts(self, option: str) -> bool:
        """Return whether the blocks have a keyword option of that name."""
        parameters = inspect.signature(self.build).parameters.values()
        return any(p.name == option or p.kind is p.VAR_KEYWORD for p in parameters)

    def default(self, option: str, otherwise: Any) -> Any:
        """Return the value of an option: as given, else the blocks' default, else another."""
        if option in self.options:
            return self.options[option]
        parameter = inspect.signature(self.build).parameters.get(option)
        return otherwise if parameter is None else parameter.default

    def trait(self, name: str, default: Any) -> Any:
        """Return what the kind of block says of itself, whatever its width."""
        return getattr(self.build, name, default)

    def measure(self, name: str, width: int, default: Any) -> Any:
        """Return an attribute of a block of that width, which is built without memory."""
        with torch.device("meta"):
            return getattr(self(width, width, 1), name, default)

    def try_out(self, width: int) -> None:
        """Run a block of another package once, so that what is wrong with it shows at assembly.

        Raises:
            ConfigurationError: The block fails, or returns other channels than it says.
        """
        if self.build.__module__.startswith(f"{__package__.partition('.')[0]}."):
            return
        shape = (2, width, 8, 8) if self.dims else (2, width)
        with torch.random.fork_rng([]), torch.device("cpu"), torch.no_grad():
            block = self(width, width, 1)
            try:
                channels = block(torch.zeros(shape)).shape[1]
            except Exception as error:
                raise ConfigurationError(
                    f"Block {self.name!r} fails on an input of shape {shape}: {error}"
                ) from error
        if channels != block.out_channels:
            raise ConfigurationError(
                f"Block {self.name!r} says `out_channels` (={block.out_channels}), but returns "
                f"{channels} channels."
            )


def register_block(name: str) -> Callable[[Builder], Builder]:
    """Register a class or function as a block that can be asked for by name.

    The entry-point group ``lightning_depth.blocks`` does the same for an installed package: the
    name of the entry point is the name of the block.

    Args:
        name: Name under which `block_factory` finds it; a taken name is refused.

    Returns:
        A decorator that leaves what it decorates unchanged.

    Raises:
        ConfigurationError: The name belongs to another block.

    Example:
        >>> class Doubled(nn.Module):
        ...     def __init__(self, in_channels, out_channels, stride=1):
        ...         super().__init__()
        ...         self.out_channels = out_channels
        >>> register_block("doubled_example")(Doubled).__name__
        'Doubled'
    """

    def register(build: Builder) -> Builder:
        if _BUILDERS.setdefault(name, build) is not build:
            raise ConfigurationError(
                f"Block {name!r} is registered already, as {_BUILDERS[name].__qualname__}."
            )
        return build

    return register


@cache
def _load_entry_points() -> None:
    for point in entry_points(group=GROUP):
        register_block(point.name)(point.load())


def list_blocks() -> list[str]:
    """Return the names of all blocks, those of other packages included, in order.

    Returns:
        Names that `block_factory` takes.

    Example:
        >>> "residual" in list_blocks()
        True
    """
    _load_entry_points()
    return sorted(_BUILDERS)


def block_factory(name: str, **options: Any) -> BlockFactory:
    """Return a factory of the blocks of that name.

    Args:
        name: One of `list_blocks`.
        **options: Keyword options of the block, ``dims`` among them (2 for images, 0 for MLPs).

    Returns:
        The factory, called as ``factory(in_channels, out_channels, stride)``.

    Raises:
        ConfigurationError: No block has that name, or the block has no such option.

    Example:
        >>> block = block_factory("plain", dims=0, activation="tanh")(8, 4)
        >>> tuple(block(torch.ones(2, 8)).shape)
        (2, 4)
    """
    build = _BUILDERS[check_name("block", name, list_blocks())]
    parameters = list(inspect.signature(build).parameters.values())
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    known = [parameter.name for parameter in parameters[3:]]
    if "dims" not in known and not takes_any:
        _check_images(name, options.pop("dims", 2))
    for option in options:
        check_name(f"{name} option", option, [option] if takes_any else known)
    return BlockFactory(name, build, options)


def _check_images(name: str, dims: object) -> None:
    if dims != 2:
        raise ConfigurationError(
            f"Block {name!r} is for images only, so `dims` must be 2, but got {dims!r}."
        )
