"""Where a strategy keeps gradients and weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.parameter import Parameter

__all__ = ["HIDDEN", "PLAIN", "Source", "choose_source"]

ReadTensor = Callable[[Parameter], "Tensor | None"]

HIDDEN = (
    "GradientFlowMonitor measures nothing in this run because DeepSpeed keeps the gradients to "
    "itself, and {reason}."
)


@dataclass(frozen=True)
class Source:
    """How gradients and weights are read.

    Args:
        gradient: Returns a parameter's gradient.
        weight: Returns a parameter's value.
        is_ready: Returns whether the gradient is complete.
        in_place: Whether weights change where they are read, so that a step can be compared.
    """

    gradient: ReadTensor
    weight: ReadTensor
    is_ready: Callable[[], bool]
    in_place: bool


def plain_weight(parameter: Parameter) -> Tensor:
    """Return the value where PyTorch keeps it."""
    return parameter


def always_ready() -> bool:
    """Lightning calls the hook once a step, after accumulation."""
    return True


PLAIN = Source(attrgetter("grad"), plain_weight, always_ready, in_place=True)


def choose_source(trainer: pl.Trainer) -> Source | str:
    """Return how the strategy's gradients are read, or why they cannot be.

    DeepSpeed shards gradients and calls the hook on every micro-batch. Its package is looked up
    among the loaded ones: a run under its strategy has imported it.
    """
    if not any(kind.__name__ == "DeepSpeedStrategy" for kind in type(trainer.strategy).__mro__):
        return PLAIN
    utils = sys.modules.get("deepspeed.utils")
    gradient = getattr(utils, "safe_get_full_grad", None)
    weight = getattr(utils, "safe_get_full_fp32_param", None)
    if gradient is None or weight is None:
        return "this version has no `safe_get_full_grad`"
    engine: Any = trainer.strategy.model
    if engine.fp16_enabled():
        return "with its own loss scaling they are not unscaled when they can be read"
    return Source(gradient, weight, engine.is_gradient_accumulation_boundary, in_place=False)
