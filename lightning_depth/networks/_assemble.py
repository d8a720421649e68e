"""From a plan to a network: blocks in a row, with what goes before and after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from lightning_depth.blocks import BlockFactory, ReversibleSequence, block_factory
from lightning_depth.blocks._init import scale_branches
from lightning_depth.blocks._parts import append_activated, make_activation, make_norm
from lightning_depth.errors import ConfigurationError, invalid
from lightning_depth.networks._convnet import ConvNet
from lightning_depth.networks._heads import make_head
from lightning_depth.networks._mlp import MultilayerPerceptron
from lightning_depth.networks._stems import make_stem, make_stem_pool, stem_reduction

__all__ = ["Block", "Stage", "as_factory", "assemble", "assemble_mlp", "in_a_row"]

Block = str | BlockFactory | Callable[[int, int, int], nn.Module]
# (out_channels, stride) of each block, and options that only this block has
Stage = Sequence[tuple[int, int] | tuple[int, int, Mapping[str, Any]]]


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
    final_width: int = 0,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ConvNet:
    """Return the network that a plan describes.

    ``final_width`` puts a 1x1 convolution to so many channels after the last block.
    """
    preactivated = factory.trait("preactivated", False)
    grows = factory.trait("grows", False)
    activated = not preactivated or (grows and stem == "imagenet")
    activation, norm = _style(factory)
    first = make_stem(
        stem, in_channels, stem_width, activation=activation, norm=norm, activated=activated
    )
    reduction, pooled = stem_reduction(stem)
    info = [_level(stem_width, reduction, f"stem.{list(first.named_children())[-1][0]}")]
    rates = iter(_drop_path_rates(factory, sum(map(len, stages)), drop_path_rate))
    channels, reduction, depth, built = stem_width, pooled, 2, []  # the stem and the classifier
    for number, stage in enumerate(stages):
        blocks, channels = _build_stage(factory, stage, channels, rates)
        for entry in stage:
            reduction *= entry[1]
        depth += sum(getattr(block, "num_layers", 2) for block in blocks)
        built.append(in_a_row(blocks))
        info.append(_level(channels, reduction, f"stages.{number}"))
    final: nn.Module = nn.Identity()
    if preactivated:
        final = _last_norm(factory, channels, 2)
    if final_width:
        final = nn.Sequential()
        append_activated(final, channels, final_width, 1, activation, norm)
        channels, depth = final_width, depth + 1
    network = ConvNet(
        first,
        built,
        make_head(channels, num_classes, global_pool, drop_rate),
        pool=make_stem_pool(stem),
        final=final,
        feature_info=info,
        num_features=channels,
        depth=depth,
        num_classes=num_classes,
        min_size=reduction if grows else 1,
    )
    scale_branches(network)
    return network


def _level(channels: int, reduction: int, module: str) -> dict[str, Any]:
    return {"num_chs": channels, "reduction": reduction, "module": module}


def _build_stage(
    factory: BlockFactory, stage: Stage, channels: int, rates: Any
) -> tuple[list[nn.Module], int]:
    """Return the blocks of a stage and how many channels the last of them returns."""
    blocks = []
    for out_channels, stride, *options in stage:
        rate = next(rates)
        changed = {**(options[0] if options else {}), **({"drop_path": rate} if rate else {})}
        block = factory.with_options(**changed)(channels, out_channels, stride)
        channels = int(block.out_channels)  # type: ignore[arg-type]
        blocks.append(block)
    return blocks, channels


def in_a_row(blocks: Sequence[nn.Module]) -> nn.Sequential:
    """Return the blocks one after the other, neighbours that are reversible in one sequence."""
    row = nn.Sequential()
    waiting: list[nn.Module] = []
    for block in [*blocks, None]:
        if block is not None and getattr(block, "reversible", False):
            waiting.append(block)
            continue
        if waiting:
            row.append(ReversibleSequence(*waiting))
            waiting = []
        if block is not None:
            row.append(block)
    return row


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
    final = _last_norm(factory, widths[-1], 0) if preactivated else nn.Identity()
    hidden_layers = int(has_stem) + sum(getattr(block, "num_layers", 1) for block in blocks)
    network = MultilayerPerceptron(
        *(stem, in_a_row(blocks), final, widths[-1], num_classes),
        hidden_layers=hidden_layers,
        in_features=widths[0],
    )
    scale_branches(network)
    return network


def _style(factory: BlockFactory) -> tuple[Any, Any]:
    """Return the activation and normalisation of the blocks, for what stands around them."""
    default = factory.default
    return default("activation", "relu"), default("norm", "auto")


def _last_norm(factory: BlockFactory, channels: int, dims: int) -> nn.Sequential:
    """Return the normalisation and activation that preactivation blocks leave to the next."""
    activation, norm = _style(factory)
    last = nn.Sequential()
    layer = make_norm(norm, channels, dims)
    if layer is not None:
        last.add_module("norm", layer)
    last.add_module("act", make_activation(activation, inplace=layer is not None))
    return last


def _drop_path_rates(factory: BlockFactory, count: int, rate: float) -> list[float]:
    """Return rates that rise in equal steps from 0 to the rate (Huang et al. 2016)."""
    if rate and not factory.accepts("drop_path"):
        raise invalid("drop_path_rate", f"0 for {factory.name} blocks, which skip nothing", rate)
    return [rate * index / max(1, count - 1) for index in range(count)]
