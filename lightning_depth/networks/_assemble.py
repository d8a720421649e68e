"""From a plan to a network: blocks in a row, with what goes before and after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from lightning_depth.blocks import BlockFactory, block_factory
from lightning_depth.blocks._init import scale_branches
from lightning_depth.blocks._parts import make_activation, make_norm
from lightning_depth.errors import ConfigurationError
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._mlp import MultilayerPerceptron
from lightning_depth.networks._stems import make_stem

__all__ = ["Block", "Stage", "as_factory", "assemble", "assemble_mlp"]

Block = str | BlockFactory | Callable[[int, int, int], nn.Module]
Stage = list[tuple[int, int]]  # (out_channels, stride) of each block
STEM_STRIDES = {"cifar": 1, "imagenet": 4}


def as_factory(block: Block, dims: int, options: Mapping[str, Any] | None) -> BlockFactory:
    """Return the factory that a name, a factory or any callable stands for."""
    if isinstance(block, str):
        return block_factory(block, **({} if dims == 2 else {"dims": dims}) | dict(options or {}))
    if options:
        raise ConfigurationError(
            "`block_options` must be left out where `block` is a factory, which has its own, "
            f"but got {dict(options)!r}."
        )
    if not isinstance(block, BlockFactory):
        return BlockFactory(getattr(block, "__name__", type(block).__name__), block)
    if block.dims != dims:
        raise ConfigurationError(
            f"Block {block.name!r} was made with `dims` (={block.dims}), but this network needs "
            f"`dims` (={dims})."
        )
    return block


def assemble(
    factory: BlockFactory,
    stages: Sequence[Stage],
    stem_width: int,
    num_classes: int,
    *,
    in_channels: int = 3,
    stem: str = "cifar",
    drop_path_rate: float = 0.0,
    **head: Any,
) -> ConvNet:
    """Return the network that a plan describes; ``head`` goes to `ConvNet`."""
    preactivated = factory.trait("preactivated", False)
    activation, norm = _style(factory)
    first = make_stem(
        *(stem, in_channels, stem_width),
        activation=activation,
        norm=norm,
        activated=not preactivated or stem == "imagenet",
    )
    rates = iter(_drop_path_rates(sum(map(len, stages)), drop_path_rate))
    channels, reduction = stem_width, STEM_STRIDES[stem]
    info = [{"num_chs": channels, "reduction": reduction, "module": "stem"}]
    built: list[nn.Module] = []
    depth = 2  # the stem and the classifier
    for number, stage in enumerate(stages):
        blocks = nn.Sequential()
        for position, (out_channels, stride) in enumerate(stage):
            block = _with_drop_path(factory, next(rates))(channels, out_channels, stride)
            blocks.add_module(str(position), block)
            depth += getattr(block, "num_layers", 2)
            channels, reduction = int(block.out_channels), reduction * stride  # type: ignore[arg-type]
        built.append(blocks)
        info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{number}"})
    last = _last_norm(factory, channels, 2) if preactivated else nn.Identity()
    network = ConvNet(
        first, built, last, feature_info=info, depth=depth, num_classes=num_classes, **head
    )
    scale_branches(network)
    return network


def assemble_mlp(
    factory: BlockFactory, widths: Sequence[int], num_classes: int, *, has_stem: bool
) -> MultilayerPerceptron:
    """Return the perceptron whose layers have these widths, the inputs first."""
    preactivated = factory.trait("preactivated", False)
    activation, norm = _style(factory)
    pairs = list(pairwise(widths))
    stem: nn.Module = nn.Identity()
    if has_stem:
        inputs, outputs = pairs.pop(0)
        stem = make_stem(
            *("cifar", inputs, outputs),
            dims=0,
            activation=activation,
            norm=norm,
            activated=not preactivated,
        )
    blocks = [factory(inputs, outputs, 1) for inputs, outputs in pairs]
    last = _last_norm(factory, widths[-1], 0) if preactivated else nn.Identity()
    hidden_layers = int(has_stem) + sum(getattr(block, "num_layers", 1) for block in blocks)
    network = MultilayerPerceptron(
        stem, blocks, last, widths[-1], num_classes, hidden_layers=hidden_layers
    )
    scale_branches(network)
    return network


def _style(factory: BlockFactory) -> tuple[Any, Any]:
    return factory.options.get("activation", "relu"), factory.options.get("norm", "auto")


def _last_norm(factory: BlockFactory, channels: int, dims: int) -> nn.Sequential:
    """Return the normalisation and activation that preactivation blocks leave to the next."""
    activation, norm = _style(factory)
    last = nn.Sequential()
    layer = make_norm(norm, channels, dims)
    if layer is not None:
        last.add_module("norm", layer)
    last.add_module("act", make_activation(activation, inplace=layer is not None))
    return last


def _drop_path_rates(count: int, rate: float) -> list[float]:
    """Return rates that rise in equal steps from 0 to the rate (Huang et al. 2016)."""
    return [rate * index / max(1, count - 1) for index in range(count)]


def _with_drop_path(factory: BlockFactory, rate: float) -> BlockFactory:
    return factory.with_options(drop_path=rate) if rate else factory
