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
from lightning_depth.blocks.highway import HighwayBlock
from lightning_depth.blocks.inception import InceptionBlock
from lightning_depth.blocks.maxout import Maxout, MaxoutBlock
from lightning_depth.blocks.plain import PlainBlock
from lightning_depth.blocks.preactivation import PreactivationBlock, PreactivationBottleneckBlock
from lightning_depth.blocks.residual import BottleneckBlock, ResidualBlock
from lightning_depth.blocks.reversible import AdditiveCoupling, ReversibleBlock
from lightning_depth.blocks.reversible_sequence import ReversibleSequence
from lightning_depth.blocks.separable import InvertedResidualBlock, SeparableBlock

__all__ = [
    "AdditiveCoupling",
    "BlockFactory",
    "BottleneckBlock",
    "CReLU",
    "CReLUBlock",
    "DenseBlock",
    "DenseLayer",
    "HighwayBlock",
    "InceptionBlock",
    "InvertedResidualBlock",
    "Maxout",
    "MaxoutBlock",
    "PaddedShortcut",
    "PlainBlock",
    "PreactivationBlock",
    "PreactivationBottleneckBlock",
    "ResidualBlock",
    "ReversibleBlock",
    "ReversibleSequence",
    "SeparableBlock",
    "Transition",
    "block_factory",
    "list_blocks",
    "register_block",
]
