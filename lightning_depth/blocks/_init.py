"""Initial weights as an option, by name or callable.

============== ==========================================================================
name           weights
============== ==========================================================================
kaiming        normal, variance 2 / fan-out (convolutions) or 2 / fan-in (linear layers)
xavier         normal, variance 2 / (fan-in + fan-out)
gaussian       normal, standard deviation 0.01
zero_last_gamma kaiming; the last normalisation of a residual branch starts at zero
depth_scaled   kaiming; the last weights of each branch divided by sqrt(number of blocks)
============== ==========================================================================

Biases start at zero, normalisations at the identity.
"""

from __future__ import annotations

from collections.abc import Callable
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
    branch = getattr(block, "branch", None)
    if init == "zero_last_gamma" and branch is not None:
        _zero_last_gamma(branch)


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


def _zero_last_gamma(branch: nn.Module) -> None:
    gammas: list[Any] = [
        module.weight
        for module in branch.modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and not isinstance(module, nn.Conv2d | nn.Linear | nn.PReLU)
    ]
    if gammas:
        nn.init.zeros_(gammas[-1])


def scale_branches(network: nn.Module) -> None:
    """Divide the last weights of every ``depth_scaled`` branch by the root of their number."""
    blocks = [m for m in network.modules() if getattr(m, "init", None) == "depth_scaled"]
    for block in blocks:
        weights = [m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        with torch.no_grad():
            weights[-1].weight.div_(len(blocks) ** 0.5)
