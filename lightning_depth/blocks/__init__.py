"""The blocks that networks are made of, by name, for images and for MLPs."""

from lightning_depth.blocks._registry import (
    BlockFactory,
    block_factory,
    list_blocks,
    register_block,
)
from lightning_depth.blocks._shortcuts import PaddedShortcut
from lightning_depth.blocks.crelu import CReLU, CReLUBlock
from lightning_depth.blocks.dense import DenseBlock, DenseLayer, Transition
from lightning_depth.blocks.plain import PlainBlock
from lightning_depth.blocks.residual import BottleneckBlock, ResidualBlock

__all__ = [
    "BlockFactory",
    "BottleneckBlock",
    "CReLU",
    "CReLUBlock",
    "DenseBlock",
    "DenseLayer",
    "PaddedShortcut",
    "PlainBlock",
    "ResidualBlock",
    "Transition",
    "block_factory",
    "list_blocks",
    "register_block",
]
