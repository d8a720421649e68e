"""From factories to an optimizer with penalties, learning rates by depth and a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_depth.errors import ConfigurationError
from lightning_depth.layers import layer_parameters, select_layers
from lightning_depth.modules.factories import OptimizerFactory

__all__ = ["l1_norm", "make_optimizer", "scale_schedule", "shrink_after_steps"]

_SCALE = "lr_scale"  # timm's name for the factor of a group


def make_optimizer(
    factory: OptimizerFactory, network: nn.Module, *, l2: float, layer_decay: float
) -> Optimizer:
    """Make an optimizer over a network, in one group where nothing asks for more.

    Args:
        factory: Makes the optimizer from parameters or groups of them.
        network: The network to train.
        l2: Weight decay of the weights; 0 leaves the optimizer's own to all parameters.
        layer_decay: Factor of the learning rate for each layer nearer to the input.

    Returns:
        The optimizer; a group's factor is kept in it as `lr_scale`.

    Raises:
        ConfigurationError: The factory returns something else, or knows no weight decay.
    """
    optimizer = factory(_groups(network, l2, layer_decay))
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"`optimizer` must be a callable that returns a torch optimizer, "
            f"but it returned {optimizer!r}."
        )
    if l2 and "weight_decay" not in optimizer.defaults:
        raise ConfigurationError(
            f"`l2` needs an optimizer with weight decay, but {type(optimizer).__name__} has none."
        )
    for group in optimizer.param_groups:
        group["lr"] *= group.get(_SCALE, 1.0)
    return optimizer


def _groups(network: nn.Module, l2: float, layer_decay: float) -> Any:
    if layer_decay != 1.0:
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # re-export

        view: Any = network if hasattr(network, "group_matcher") else _ByDepth(network)
        groups = param_groups_layer_decay(view, weight_decay=l2, layer_decay=layer_decay)
    else:
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not l2:
            return trained
        weights = [parameter for parameter in trained if parameter.ndim >= 2]
        others = [parameter for parameter in trained if parameter.ndim < 2]
        groups = [
            {"params": weights, "weight_decay": l2},
            {"params": others, "weight_decay": 0.0},
        ]
    kept = ("params", _SCALE, "weight_decay") if l2 else ("params", _SCALE)
    return [{key: group[key] for key in kept if key in group} for group in groups]


class _ByDepth:
    """A network as timm wants to see it, grouped by depth: without this timm groups by twelves."""

    def __init__(self, network: nn.Module) -> None:
        self.named_parameters = network.named_parameters
        layers = select_layers(network)
        depths = {
            id(parameter): layer.depth
            for layer, named in zip(layers, layer_parameters(layers).values(), strict=True)
            for _, parameter in named
        }
        self._depths: dict[str, int] = {}
        depth = 1
        for name, parameter in network.named_parameters():
            # what lies between two blocks goes with the one before it
            depth = self._depths[name] = depths.get(id(parameter), depth)

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        """Return what tells the depth of a parameter by its name."""
        return self._depths.__getitem__


def scale_schedule(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    """Keep the factors of the groups where a scheduler set one learning rate for all.

    Args:
        scheduler: A scheduler that was just made.
        optimizer: Its optimizer.

    Raises:
        ConfigurationError: The scheduler leaves no room for learning rates by group.
    """
    groups = optimizer.param_groups
    if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
        for group in groups:
            for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                group[key] *= group.get(_SCALE, 1.0)
    rates = [float(group["lr"]) / group.get(_SCALE, 1.0) for group in groups]
    if max(rates) - min(rates) > 1e-6 * max(rates):
        raise ConfigurationError(
            f"`layer_decay` cannot be kept by {type(scheduler).__name__}, "
            f"which sets one learning rate for all layers."
        )


def shrink_after_steps(optimizer: Optimizer, l1: float) -> None:
    """Apply the proximal operator of an L1 penalty to the weights after each step.

    A gradient step on ``l1 * |w|`` oversteps zero; soft thresholding by learning rate times `l1`
    stops there (Parikh and Boyd, Proximal Algorithms, 2014, section 6.5.2).

    Args:
        optimizer: Its weights, tensors of two or more dimensions, are shrunk.
        l1: Strength of the penalty.
    """

    @torch.no_grad()
    def shrink(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.ndim >= 2 and weight.grad is not None:
                    weight.copy_(softshrink(weight, float(group["lr"]) * l1))

    optimizer.register_step_post_hook(shrink)


def l1_norm(network: nn.Module) -> Tensor:
    """Return the sum of the absolute values of the trained weights.

    Args:
        network: Biases and parameters of its normalisation layers are left out.

    Returns:
        The sum; its gradient is the sign of each weight, 0 at 0.
    """
    trained = (parameter for parameter in network.parameters() if parameter.requires_grad)
    return torch.stack([weight.abs().sum() for weight in trained if weight.ndim >= 2]).sum()
