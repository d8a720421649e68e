"""Initial weights as an option, by name or callable.

=============== =========================================================================
name            weights
=============== =========================================================================
kaiming         normal, variance 2 / fan-out (convolutions) or 2 / fan-in (linear layers)
xavier          normal, variance 2 / (fan-in + fan-out)
gaussian        normal, standard deviation 0.01
zero_last_gamma kaiming; the last layer of each residual branch, which is a normalisation or, in
                preactivation blocks, has the weights, starts at zero
depth_scaled    kaiming; the last weights of each residual branch divided by sqrt(number of blocks)
=============== =========================================================================

Biases start at zero, normalisations at the identity. A residual branch is one whose output is added
to something: a block names its own in ``residual_branches``, and where there is none the last two
mean kaiming.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from lightning_depth.errors import check_choice

__all__ = ["INITS", "Init", "initialize", "scale_branches"]

Init = str | Callable[[nn.Module], None]
INITS = ("kaiming", "xavier", "gaussian", "zero_last_gamma", "depth_scaled")


def initialize(block: nn.Module, init: Init) -> None:
    """Give every weight layer inside a block its initial weights."""
    if not isinstance(init, str):
        block.apply(init)
        return
    check_choice("init", init, INITS)
    for module in block.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _initialize_weight(module, init)
    if init == "zero_last_gamma":
        for branch in _residual_branches(block):
            nn.init.zeros_(_with_weights(branch)[-1].weight)


def _initialize_weight(layer: nn.Conv2d | nn.Linear, init: str) -> None:
    if init == "xavier":
        nn.init.xavier_normal_(layer.weight)
    elif init == "gaussian":
        nn.init.normal_(layer.weight, std=0.01)
    else:
        mode = "fan_out" if isinstance(layer, nn.Conv2d) else "fan_in"
        nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def scale_branches(network: nn.Module) -> None:
    """Divide the last weights of ``depth_scaled`` branches by the root of their blocks' number."""
    scaled = [m for m in network.modules() if getattr(m, "init", None) == "depth_scaled"]
    blocks = [branches for branches in map(_residual_branches, scaled) if branches]
    for branch in chain.from_iterable(blocks):
        weights = [m for m in _with_weights(branch) if isinstance(m, nn.Conv2d | nn.Linear)]
        with torch.no_grad():
            weights[-1].weight.div_(len(blocks) ** 0.5)


def _residual_branches(block: nn.Module) -> list[nn.Module]:
    return [block.get_submodule(name) for name in getattr(block, "residual_branches", ())]


def _with_weights(branch: nn.Module) -> list[Any]:
    return [m for m in branch.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
